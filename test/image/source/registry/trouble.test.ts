/**
 * A registry that truncates, refuses, redirects, returns wrong bytes and is overloaded: a real one behind a proxy that
 * does so.
 */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import http, { type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { inspect } from 'node:util';
import t, { type Test } from 'tap';
import { openSource } from '../../../../src/image/source/open-source.ts';
import type { RegistryOptions } from '../../../../src/image/source/registry/open.ts';
import { DockerRegistry } from '../../../support/docker-registry.ts';
import { type Fault, HttpProxy, reset, serveTls, truncated } from '../../../support/http-proxy.ts';
import { type MadeImage, makeOciLayout, packTar } from '../../../support/oci.ts';
import { skipWithout } from '../../../support/tools.ts';

const PASSWORD = 'open sesame';
const LOGIN = Buffer.from(`alice:${PASSWORD}`).toString('base64');

/** Ten parts, and less than one. */
const tars = [packTar([{ name: 'large', body: randomBytes(9 * 2 ** 20) }]), packTar([{ name: 'small' }])];

const dir = t.testdir({ image: {}, auth: {} });
const authFile = join(dir, 'auth', 'auth.json');
process.env.REGISTRY_AUTH_FILE = authFile;
let registry: DockerRegistry;
let made: MadeImage;

const isBlob = ({ url }: IncomingMessage) => url?.includes('/blobs/') ?? false;
const isManifest = ({ url }: IncomingMessage) => url?.includes('/manifests/') ?? false;

async function proxied(t: Test): Promise<{ proxy: HttpProxy; spec: string }> {
  const proxy = await HttpProxy.start(registry.port);
  t.teardown(() => proxy.close());
  await writeFile(authFile, JSON.stringify({ auths: { '127.0.0.1': { auth: LOGIN } } }));
  const auths = { [`127.0.0.1:${proxy.port}`]: { auth: LOGIN }, [registry.host]: { auth: LOGIN } };
  await writeFile(authFile, JSON.stringify({ auths }));
  return { proxy, spec: `127.0.0.1:${proxy.port}/app` };
}

async function readAll(spec: string, registryOptions: RegistryOptions = {}): Promise<boolean> {
  const source = await openSource(spec, { registry: registryOptions });
  try {
    for (const [at, layer] of source.layers.entries()) {
      const parts: Buffer[] = [];
      for await (const part of layer.open()) parts.push(Buffer.from(part));
      if (!Buffer.concat(parts).equals(tars[at]!)) return false;
    }
    return true;
  } finally {
    await source.close();
  }
}

/** Applies `fault` to the first request for each URL and range. */
function firstTime(wanted: (request: IncomingMessage) => boolean, fault: Fault): HttpProxy['fault'] {
  const met = new Set<string>();
  return (request) => {
    const name = `${request.url} ${request.headers.range}`;
    if (!wanted(request) || met.has(name)) return undefined;
    met.add(name);
    return fault;
  };
}

const answerWith =
  (status: number, headers: http.OutgoingHttpHeaders = {}, body = ''): Fault =>
  ({ request, response }) => {
    request.resume();
    response.writeHead(status, { 'content-length': Buffer.byteLength(body), ...headers }).end(body);
  };

if (!skipWithout(t, 'docker-registry', 'skopeo', 'openssl')) {
  t.before(async () => {
    registry = await DockerRegistry.start({ auth: 'htpasswd' });
    made = await makeOciLayout(join(dir, 'image'), { layers: tars, compression: 'none' });
    const creds = ['--preserve-digests', '--dest-creds', `alice:${PASSWORD}`];
    await registry.push(`oci:${dir}/image:latest`, 'app', ...creds);
  });
  t.teardown(() => registry.close());

  t.test('an interrupted blob resumes where it ended', async (t) => {
    const { proxy, spec } = await proxied(t);
    const asked: (string | undefined)[] = [];
    const cut = firstTime((request) => request.headers.range !== undefined, truncated(1_000_000));
    proxy.fault = (request) => {
      if (isBlob(request)) asked.push(request.headers.range);
      return cut(request);
    };
    t.ok(await readAll(spec));
    const part = 2 ** 20;
    for (const start of [0, part, 5 * part]) {
      const later = asked.filter((range) => range?.startsWith(`bytes=${start + 1_000_000}-`));
      t.ok(later.length > 0, `the part at ${start} resumed at its millionth byte`);
    }
    t.notOk(asked.filter((range) => range === 'bytes=0-1048575').length > 1, 'nothing was fetched twice');
  });

  t.test('a connection that breaks after the last byte causes no retry', async (t) => {
    const { proxy, spec } = await proxied(t);
    const endless: Fault = async ({ response, ask }) => {
      const { status, headers, body } = await ask();
      delete headers['content-length'];
      response.writeHead(status, headers);
      response.write(body, () => response.socket?.destroy());
    };
    proxy.fault = (request) => (isBlob(request) && request.headers.range ? endless : undefined);
    t.ok(await readAll(spec));
  });

  t.test('a server that returns only whole blobs is supported', async (t) => {
    const { proxy, spec } = await proxied(t);
    const whole: Fault = async ({ request, response, ask }) => {
      delete request.headers.range;
      const { status, headers, body } = await ask();
      response.writeHead(status, headers).end(body);
    };
    const large = `/v2/app/blobs/${made.layerDigests[0]}`;
    proxy.fault = (request) => (isBlob(request) ? whole : undefined);
    t.ok(await readAll(spec));
    t.equal(proxy.seen.filter((line) => line.endsWith(large)).length, 1, 'one request for all parts');

    // It breaks in the second part, or in the last but one part.
    for (const cutBytes of [1_500_000, 9_000_000]) {
      let cuts = 0;
      proxy.fault = (request) => {
        if (!isBlob(request)) return undefined;
        return async (exchange) => {
          delete request.headers.range;
          if (request.url === large && cuts++ === 0) return truncated(cutBytes)(exchange);
          return whole(exchange);
        };
      };
      t.ok(await readAll(spec), `cut after ${cutBytes} bytes`);
      t.equal(cuts, 2);
    }
  });

  t.test('broken connections, errors and overload are retried', async (t) => {
    const { proxy, spec } = await proxied(t);
    const any = () => true;
    const faults: [string, Fault][] = [
      ['reset', reset],
      ['500', answerWith(500)],
      ['502 in HTML', answerWith(502, { 'content-type': 'text/html' }, '<html>bad gateway</html>')],
      ['503', answerWith(503, { 'retry-after': '0' })],
      ['429', answerWith(429, { 'retry-after': '1' })],
    ];
    for (const [name, fault] of faults) {
      // The first request probes whether the server speaks TLS.
      proxy.fault = firstTime(any, fault);
      t.ok(await readAll(spec), name);
    }
  });

  t.test('lasting errors are reported in one line', async (t) => {
    const { proxy, spec } = await proxied(t);
    const code = '{"errors":[{"code":"TOOMANYREQUESTS","message":"no more"}]}';
    const cases: [Fault, { code?: string; message: string | RegExp }][] = [
      [
        answerWith(429, { 'retry-after': '3600' }, code),
        {
          code: 'OVERLOAD',
          message: `${spec}: tag latest: rate limit reached (429 TOOMANYREQUESTS), retry after 1 h 0 min`,
        },
      ],
      [
        answerWith(500),
        { code: 'UNAVAILABLE', message: `${spec}: tag latest: failed (500) (tried 5 times)` },
      ],
      [answerWith(403), { code: 'UNAVAILABLE', message: /latest: access denied \(403\), with(?:out)? / }],
      [answerWith(418), { code: 'UNAVAILABLE', message: `${spec}: tag latest: refused (418)` }],
      [answerWith(401), { code: 'UNAVAILABLE', message: /the registry offers no supported way to log in$/ }],
      [answerWith(302), { code: 'UNAVAILABLE', message: `${spec}: tag latest: refused (302)` }],
      [
        answerWith(302, { location: 'file:///etc/passwd' }),
        { message: /redirects to a URL that is not https$/ },
      ],
      [answerWith(302, { location: '/v2/again' }), { message: /more than 5 redirects$/ }],
    ];
    for (const [fault, error] of cases) {
      proxy.fault = (request) => (isManifest(request) || request.url === '/v2/again' ? fault : undefined);
      await t.rejects(readAll(spec), error);
    }
    await t.rejects(readAll('registry.invalid/app:1'), {
      code: 'UNAVAILABLE',
      retryable: false,
      message: 'registry.invalid/app: tag 1: the host name does not exist',
    });
    proxy.fault = (request) => (isBlob(request) ? answerWith(404) : undefined);
    await t.rejects(readAll(spec), {
      code: 'NOT_FOUND',
      message: `${spec}: blob ${made.configDigest}: not found (404)`,
    });
  });

  t.test('wrong bytes are never accepted, and the error names the digest', async (t) => {
    const { proxy, spec } = await proxied(t);
    const corrupt: Fault = async ({ response, ask }) => {
      const { status, headers, body } = await ask();
      body[body.length >> 1]! ^= 1;
      response.writeHead(status, headers).end(body);
    };
    const cases: [(request: IncomingMessage) => boolean, string | RegExp][] = [
      [isManifest, `tag latest: its manifest has digest`],
      [({ url }) => url!.endsWith(made.configDigest), `blob ${made.configDigest}: it has digest`],
      [({ url }) => url!.endsWith(made.layerDigests[0]!), `blob ${made.layerDigests[0]} has digest`],
      [({ url }) => url!.endsWith(made.layerDigests[1]!), `blob ${made.layerDigests[1]} has digest`],
    ];
    for (const [wanted, text] of cases) {
      proxy.fault = (request) => (wanted(request) && request.headers.authorization ? corrupt : undefined);
      await t.rejects(readAll(spec), { code: 'CORRUPT', message: new RegExp(`^${spec}: ${text} sha256:`) });
    }
    // Another range than the requested one.
    proxy.fault = (request) => {
      if (request.headers.range)
        request.headers.range = request.headers.range.replace('bytes=0-', 'bytes=1-');
      return undefined;
    };
    await t.rejects(readAll(spec), { code: 'UNAVAILABLE', message: /not the requested range/ });
  });

  t.test('manifests that are malformed, ambiguous, too old or too long are refused', async (t) => {
    const { proxy, spec } = await proxied(t);
    const oci = 'application/vnd.oci.image.manifest.v1+json';
    const schema1 = 'application/vnd.docker.distribution.manifest.v1+prettyjws';
    const cases: [string, string, string, RegExp][] = [
      [schema1, '{"schemaVersion":1}', 'UNSUPPORTED', /schema 1, deprecated since 2016/],
      ['', '{"schemaVersion":1,"fsLayers":[]}', 'UNSUPPORTED', /schema 1/],
      [oci, '{', 'CORRUPT', /it is not a JSON object/],
      [oci, '[]', 'CORRUPT', /manifest sha256:\w+: /],
      [oci, 'null', 'CORRUPT', /it is not a JSON object/],
      [oci, '{"schemaVersion":2,"layers":[],"config":{},"manifests":[]}', 'CORRUPT', /something else/],
      [oci, '{"mediaType":"application/vnd.oci.image.index.v1+json"}', 'CORRUPT', /something else/],
      ['text/html', '{}', 'UNSUPPORTED', /of type "text\/html", not an image/],
      ['application/json', '{}', 'UNSUPPORTED', /not an image/],
      [oci, JSON.stringify({ pad: 'x'.repeat(5 * 2 ** 20) }), 'CORRUPT', /more than 4194304 bytes/],
    ];
    for (const [type, body, code, message] of cases) {
      const fault = answerWith(200, type ? { 'content-type': type } : {}, body);
      proxy.fault = (request) => (isManifest(request) ? fault : undefined);
      await t.rejects(readAll(spec), { code, message });
    }
  });

  t.test('blobs are read from where the registry redirects to, without sending a login there', async (t) => {
    const { proxy, spec } = await proxied(t);
    const tickets = new Set<string>();
    const logins: unknown[] = [];
    let denials = 0;
    // Each URL is valid twice.
    const uses = new Map<string, number>();
    const blobStore = http.createServer(async (request, response) => {
      logins.push(request.headers.authorization);
      const url = new URL(request.url!, 'http://localhost');
      const ticket = url.searchParams.get('ticket')!;
      uses.set(ticket, (uses.get(ticket) ?? 0) + 1);
      if (!tickets.has(ticket) || uses.get(ticket)! > 2) {
        denials++;
        return void response.writeHead(403).end('<Error>expired</Error>');
      }
      const headers = {
        authorization: `Basic ${LOGIN}`,
        ...(request.headers.range && { range: request.headers.range }),
      };
      const answer = await fetch(`http://${registry.host}${url.pathname}`, { headers });
      const range = answer.headers.get('content-range');
      response.writeHead(answer.status, {
        'content-length': answer.headers.get('content-length')!,
        ...(range && { 'content-range': range }),
      });
      response.end(Buffer.from(await answer.arrayBuffer()));
    });
    blobStore.listen(0, '127.0.0.1');
    await once(blobStore, 'listening');
    t.teardown(() => {
      blobStore.closeAllConnections();
      blobStore.close();
    });
    const { port } = blobStore.address() as AddressInfo;
    const status = [302, 307, 308];
    proxy.fault = (request) => {
      if (!isBlob(request) || !request.headers.authorization) return undefined;
      const ticket = `${tickets.size}`;
      tickets.add(ticket);
      const location = `http://localhost:${port}${request.url}?ticket=${ticket}`;
      return answerWith(status[tickets.size % 3]!, { location });
    };
    t.ok(await readAll(spec));
    t.ok(logins.length >= 5);
    t.ok(
      logins.every((login) => login === undefined),
      'no login was sent elsewhere',
    );
    t.ok(tickets.size < logins.length, 'URLs were reused');
    t.ok(denials > 0, 'expired URLs were dropped');
  });

  t.test('redirects from TLS to plain HTTP are refused', async (t) => {
    const { spec } = await proxied(t);
    let location = '';
    const url = await serveTls(t, (_request, response) => void response.writeHead(302, { location }).end());
    const { host } = new URL(url);
    location = `http://${spec.split('/')[0]}/v2/`;
    await t.rejects(openSource(`${host}/app`), { message: /redirects to a URL that is not https$/ });
    for (const realm of [`http://${host}/token`, `https://a:b@${host}/`, 'file:///', 'x']) {
      const challenger = await serveTls(t, (_request, response) => {
        response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}",service="s"` }).end();
      });
      await t.rejects(openSource(`${new URL(challenger).host}/app`), {
        retryable: false,
        message: /it names a token server that is not an https URL$/,
      });
    }
  });

  t.test('no error contains a login or a token, whatever the server echoes', async (t) => {
    const { proxy, spec } = await proxied(t);
    const secrets = [LOGIN, PASSWORD, 'sesame'];
    for (const status of [301, 400, 401, 403, 404, 409, 429, 500]) {
      proxy.fault = (request) => {
        if (!request.headers.authorization) return undefined;
        const text = JSON.stringify({ errors: [{ code: request.headers.authorization, message: PASSWORD }] });
        return answerWith(status, { 'x-echo': LOGIN, location: `x://${LOGIN}`, 'retry-after': '9999' }, text);
      };
      const error = await readAll(spec).then(
        () => undefined,
        (error: unknown) => error,
      );
      const shown = inspect(error, { depth: 20, showHidden: true });
      t.ok(error instanceof Error, `${status}`);
      for (const secret of secrets) t.notOk(shown.includes(secret), `${status} hides it`);
    }
  });

  t.test('when a mirror fails midway, the registry is used', async (t) => {
    const { proxy } = await proxied(t);
    const mirrors = [`${registry.host}=127.0.0.1:${proxy.port}`];
    let blobs = 0;
    proxy.fault = (request) => (isBlob(request) && ++blobs > 2 ? answerWith(500) : undefined);
    t.ok(await readAll(`${registry.host}/app`, { mirrors }));
    t.ok(blobs > 2);
  });

  t.test('an aborted build leaves no request behind', async (t) => {
    const { proxy, spec } = await proxied(t);
    const stop = new AbortController();
    const source = await openSource(spec);
    const held: http.ServerResponse[] = [];
    proxy.fault = (request) => (isBlob(request) ? ({ response }) => void held.push(response) : undefined);
    const reading = Array.fromAsync(source.layers[0]!.open(stop.signal));
    while (held.length === 0) await once(proxy.server, 'request');
    stop.abort(new Error('stop'));
    await t.rejects(reading);
    await Promise.all(held.map((response) => response.destroyed || once(response, 'close')));
    // Likewise one that is closed, or whose signal is aborted.
    held.length = 0;
    const again = Array.fromAsync(source.layers[0]!.open());
    while (held.length === 0) await once(proxy.server, 'request');
    await source.close();
    await t.rejects(again, { code: 'ABORTED' });
    const aborted = AbortSignal.abort();
    await t.rejects(openSource(spec, { registry: { patience: { forMs: 60_000, signal: aborted } } }), {
      code: 'ABORTED',
    });
  });
}
