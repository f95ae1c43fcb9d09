/** Objects on a web server: the contract of read-only stores, on a real nginx, and misbehaving servers. */

import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { HttpObjects } from '../../../src/store/objects/http-objects.ts';
import { HttpProxy, reset, serveTls, silent, trickling, truncated } from '../../support/http-proxy.ts';
import { serveHttp } from '../../support/http-server.ts';
import { Nginx } from '../../support/nginx.ts';
import { skipWithout } from '../../support/tools.ts';
import { listed, readingObjects, readingSuite, refusalSuite } from './objects-suite.ts';

function open(t: Test, url: string, options?: ConstructorParameters<typeof HttpObjects>[1]): HttpObjects {
  const store = new HttpObjects(url, options);
  t.teardown(() => store.close());
  return store;
}

t.test('on nginx', async (t) => {
  if (skipWithout(t, 'nginx')) return;
  const root = t.testdir();
  for (const [key, bytes] of readingObjects) {
    const path = join(root, 'a/store', key);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, bytes);
  }
  const nginx = await Nginx.start(
    root,
    `rewrite ^/moved/(.*)$ /a/store/$1 redirect;
     location /around/ { return 302 /around/again; }
     location /busy/ { return 503; }
     location /gone/ { return 410; }
     location /broken/ { return 500; }
     location /members/ { alias ${root}/a/; auth_basic members; auth_basic_user_file ${root}/users; }
     location /zipped/ { alias ${root}/a/; add_header Content-Encoding gzip; }`,
  );
  t.teardown(() => nginx.close());
  const origin = `http://127.0.0.1:${nginx.port}`;
  // With the {PLAIN} prefix, nginx accepts an unhashed password.
  writeFileSync(join(root, 'users'), 'me:{PLAIN}pass%word\n');

  t.test('contract of reading', (t) => {
    readingSuite(t, async () => async () => new HttpObjects(`${origin}/a/store`));
    t.end();
  });

  t.test('contract of refusals', (t) => {
    refusalSuite(t, async (t) => open(t, `${origin}/members/store`));
    t.end();
  });

  t.test('a redirect is followed, within bounds', async (t) => {
    t.ok((await open(t, `${origin}/moved`).get('top', 10))?.bytes.equals(readingObjects[0]![1]));
    t.match(await open(t, `${origin}/moved`).head('top'), { sizeBytes: 5 });
    await t.rejects(open(t, `${origin}/around`).get('x', 10), {
      code: 'UNAVAILABLE',
      message: /5 redirects/,
    });
  });

  t.test('what the server answers is told apart', async (t) => {
    t.equal(await open(t, `${origin}/gone`).get('x', 10), undefined);
    t.equal(await open(t, `${origin}/gone`).head('x'), undefined);
    await t.rejects(open(t, `${origin}/busy`).get('x', 10), {
      code: 'OVERLOAD',
      message: /busy\/?: .* x: .* 503/,
    });
    const broken = await open(t, `${origin}/broken`)
      .get('x', 10)
      .catch((error) => error);
    t.match(broken, { code: 'UNAVAILABLE', message: /500/ });
    t.ok(broken.retryable, 'and may pass');
  });

  t.test('a user and password go in, and never out again', async (t) => {
    const url = `http://me:pass%25word@127.0.0.1:${nginx.port}/members/store`;
    const store = open(t, url);
    t.equal(store.url, `${origin}/members/store`);
    t.ok(await store.get('top', 10));
    const error = await open(t, url.replace('word', 'wrong-secret'))
      .get('top', 10)
      .catch((error) => error);
    t.match(error, { code: 'UNAVAILABLE', retryable: false });
    t.match(error.message, /401/);
    t.notMatch(error.message + error.stack, /secret|pass/);
    const nobody = open(t, `${origin}/members/store`);
    t.match(await nobody.get('top', 10).catch((error) => error), { code: 'UNAVAILABLE', retryable: false });
  });

  t.test('what is compressed on the way is refused', async (t) => {
    await t.rejects(open(t, `${origin}/zipped/store`).get('top', 10), {
      code: 'UNAVAILABLE',
      message: /gzip/,
    });
  });

  t.test('an answer that breaks off, stops or never comes is an error', async (t) => {
    const proxy = await HttpProxy.start(nginx.port);
    t.teardown(() => proxy.close());
    const store = open(t, `${proxy.endpoint}/a/store`, { stallMs: 300 });
    const read = () => store.get('chunks/ab/cd/0123', 300_000);
    proxy.next(1, truncated(1000));
    await t.rejects(read(), { code: 'UNAVAILABLE', message: /truncated, 1000 of 300000 bytes/ });
    proxy.next(1, reset);
    await t.rejects(open(t, `${proxy.endpoint}/a/store`).get('top', 10), {
      code: 'UNAVAILABLE',
      message: /hang up|RESET/i,
    });
    for (const fault of [trickling, silent]) {
      proxy.next(1, fault);
      await t.rejects(read(), { code: 'TIMEOUT' });
    }
    t.equal((await read())?.bytes.length, 300_000, 'and the next one is fine');
    // If a kept connection has just been closed, the request is sent again.
    proxy.next(1, reset);
    t.equal((await read())?.bytes.length, 300_000);
  });
});

t.test('a server that sends no length is read to its end', async (t) => {
  const origin = await serveHttp(t, (_, response) => {
    response.write('abc');
    setTimeout(() => response.end('def'), 20);
  });
  const store = open(t, origin);
  t.equal(String((await store.get('x', 6))?.bytes), 'abcdef');
  t.equal(String((await store.get('x', 3))?.bytes), 'abcd', 'up to the bound');
});

t.test('a redirect elsewhere does not take the password along', async (t) => {
  const seen: (string | undefined)[] = [];
  const other = await serveHttp(t, (request, response) => {
    seen.push(request.headers.authorization);
    response.end('there');
  });
  const origin = await serveHttp(t, (request, response) => {
    seen.push(request.headers.authorization);
    response.writeHead(307, { location: `${other}/x?token=1` }).end();
  });
  const store = open(t, origin.replace('://', '://user:secret@'));
  t.equal(String((await store.get('x', 10))?.bytes), 'there');
  t.same(seen, [`Basic ${Buffer.from('user:secret').toString('base64')}`, undefined]);
});

t.test('a redirect from https to http is not followed', async (t) => {
  if (skipWithout(t, 'openssl')) return;
  let asked = 0;
  const plain = await serveHttp(t, (_, response) => {
    asked++;
    response.end('in the clear');
  });
  const origin = await serveTls(t, ({ url }, response) => {
    if (url?.includes('far')) response.writeHead(302, { location: `${plain}/x` }).end();
    else if (url?.includes('near')) response.writeHead(302, { location: '/there' }).end();
    else response.end('over TLS');
  });
  const store = open(t, origin);
  t.equal(String((await store.get('near', 10))?.bytes), 'over TLS');
  await t.rejects(store.get('far', 10), { code: 'UNAVAILABLE', message: /from https to http/ });
  t.equal(asked, 0);
});

t.test('nothing can be written or listed', async (t) => {
  const store = open(t, 'https://127.0.0.1:1/store');
  t.equal(store.isWritable, false);
  const expected = { code: 'UNSUPPORTED', message: /can only be read/ };
  await t.rejects(store.put(), expected);
  await t.rejects(store.copy(), expected);
  await t.rejects(store.delete(), expected);
  await t.rejects(listed(store, 'x/'), expected);
  t.equal(await store.canCompareAndSet(), false);
  await store.close();
});

t.test('what is no URL of a store is USAGE, and is not repeated', (t) => {
  const bad = [
    '',
    'http://',
    'ftp://x/y',
    'http://h/p?token=secret',
    'http://h/p#secret',
    'http://u%zz:secret@h/',
  ];
  for (const url of bad) {
    t.throws(() => new HttpObjects(url), { code: 'USAGE' }, url);
    try {
      new HttpObjects(url);
    } catch (error) {
      t.notMatch((error as Error).message, /secret/);
    }
  }
  t.end();
});

t.test('a server that is not there is UNAVAILABLE', async (t) => {
  await t.rejects(open(t, 'http://127.0.0.1:1/x').get('y', 1), {
    code: 'UNAVAILABLE',
    message: /cannot read y: .*REFUSED/,
  });
});
