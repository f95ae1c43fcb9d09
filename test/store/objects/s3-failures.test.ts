/** S3 that misbehaves: a real RGW behind a stand-in that spoils responses, with and without the retry wrapper. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { inspect, promisify } from 'node:util';
import t, { type Test } from 'tap';
import { Origin } from '../../../src/daemon/origin.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import type { ObjectStore } from '../../../src/store/objects/object-store.ts';
import { RetryObjects } from '../../../src/store/objects/retry-objects.ts';
import { S3Objects } from '../../../src/store/objects/s3-objects.ts';
import { parseS3Url } from '../../../src/store/objects/s3-url.ts';
import { RootStore } from '../../../src/store/roots/root-store.ts';
import {
  type Fault,
  HttpProxy,
  reset,
  s3Error,
  serveTls,
  silent,
  trickling,
  truncated,
} from '../../support/http-proxy.ts';
import { RGW_TOOLS, Rgw } from '../../support/rgw.ts';
import { demand } from '../../support/tiers.ts';
import { skipWithout } from '../../support/tools.ts';
import { listed, refusalSuite } from './objects-suite.ts';

const run = promisify(execFile);

if (!skipWithout(t, ...RGW_TOOLS)) await all();

async function all(): Promise<void> {
  const rgw = await Rgw.start();
  t.teardown(() => rgw.close());
  rgw.useInThisProcess();
  await rgw.createBucket('bucket');
  const bytes = randomBytes(200_000);

  /** A store behind a stand-in, and the same with retries; it contains `x` and `f/0` to `f/9`. */
  async function open(t: Test): Promise<{ proxy: HttpProxy; store: S3Objects; retrying: RetryObjects }> {
    const proxy = await HttpProxy.start(rgw.port);
    const url = `s3://bucket/${randomBytes(4).toString('hex')}?endpoint=${proxy.endpoint}`;
    const store = new S3Objects(parseS3Url(url), { stallMs: 400 });
    t.teardown(async () => {
      await store.close();
      await proxy.close();
    });
    await store.put('x', bytes);
    for (let n = 0; n < 10; n++) await store.put(`f/${n}`, Buffer.from(String(n)));
    return { proxy, store, retrying: new RetryObjects(store, { pauses: { firstMs: 5, longestMs: 5 } }) };
  }

  /** Makes every kind of call and checks its result. */
  async function callAll(t: Test, store: ObjectStore, before: () => void = () => undefined): Promise<void> {
    const calls: [string, () => Promise<unknown>][] = [
      ['get', async () => (await store.get('x', 200_000))?.bytes.equals(bytes)],
      ['head', async () => (await store.head('x'))?.sizeBytes === bytes.length],
      ['put', async () => (await store.put('y', bytes)) === undefined],
      ['copy', () => store.copy('x', 'z')],
      ['list', async () => (await listed(store, 'f/', { pageMax: 3 })).length === 10],
      ['delete', async () => (await store.delete(['y', 'z'])) === undefined],
      ['gone', async () => (await store.head('y')) === undefined && (await store.get('z', 1)) === undefined],
    ];
    for (const [name, call] of calls) {
      before();
      t.equal(await call().catch((error) => error), true, name);
    }
  }

  t.test('what passes is an error of its own, and nobody sees it who tries again', async (t) => {
    const { proxy, store, retrying } = await open(t);
    const faults: [Fault, string, RegExp][] = [
      [s3Error(503, 'SlowDown'), 'OVERLOAD', /asks for less \(503 SlowDown\)/],
      [s3Error(429, 'TooManyRequests'), 'OVERLOAD', /429/],
      [s3Error(500, 'InternalError'), 'UNAVAILABLE', /GetObject failed \(500 InternalError\)/],
      [s3Error(400, 'RequestTimeout'), 'UNAVAILABLE', /400 RequestTimeout/],
      [truncated(1000), 'UNAVAILABLE', /truncated, 1000 of 200000 bytes/],
      [reset, 'UNAVAILABLE', /RESET|hang up/],
      [silent, 'TIMEOUT', /no more bytes/],
      [trickling, 'TIMEOUT', /no more bytes, \d+ received/],
    ];
    for (const [fault, code, message] of faults) {
      // Twice, because a kept connection that breaks at once is retried immediately.
      proxy.next(2, fault);
      await t.rejects(store.get('x', 200_000), { code, message });
      proxy.next(2, fault);
      t.ok((await retrying.get('x', 200_000))?.bytes.equals(bytes), code);
      proxy.next(1, () => undefined);
    }
    proxy.fault = () => undefined;
    for (const fault of [s3Error(503, 'SlowDown'), s3Error(500, 'InternalError'), reset])
      await callAll(t, retrying, () => proxy.next(2, fault));
  });

  t.test('a redirect to another host is signed anew and followed', async (t) => {
    const { proxy, store } = await open(t);
    const away: Fault = (exchange) => {
      const location = `${rgw.endpoint}${exchange.request.url}`;
      return s3Error(307, 'TemporaryRedirect', { location })(exchange);
    };
    await callAll(t, store, () => proxy.next(99, away));
    const around: Fault = (exchange) =>
      s3Error(307, 'TemporaryRedirect', { location: `${proxy.endpoint}${exchange.request.url}` })(exchange);
    proxy.next(99, around);
    const before = proxy.seen.length;
    await t.rejects(store.get('x', 1), { code: 'UNAVAILABLE', message: /307 TemporaryRedirect/ });
    t.equal(proxy.seen.length - before, 3, 'two hops');
    for (const location of ['ftp://127.0.0.1/x', 'http://[', undefined]) {
      proxy.next(1, s3Error(307, 'TemporaryRedirect', location ? { location } : {}));
      await t.rejects(store.get('x', 1), { code: 'UNAVAILABLE' });
    }
  });

  t.test('a redirect from https to http is not followed', async (t) => {
    if (skipWithout(t, 'openssl')) return;
    const { proxy } = await open(t);
    const asked = proxy.seen.length;
    const endpoint = await serveTls(t, ({ url }, response) => {
      response.writeHead(307, { location: `${proxy.endpoint}${url}` }).end();
    });
    const store = new S3Objects(parseS3Url(`s3://bucket?endpoint=${endpoint}`));
    t.teardown(() => store.close());
    await t.rejects(store.get('x', 1), { code: 'UNAVAILABLE', message: /307/ });
    await t.rejects(store.put('x', bytes), { code: 'UNAVAILABLE', message: /307/ });
    t.equal(proxy.seen.length, asked);
  });

  t.test('a bucket in another region is found there, from then on at once', async (t) => {
    const { proxy, store } = await open(t);
    const regions: string[] = [];
    const elsewhere = s3Error(301, 'PermanentRedirect', { 'x-amz-bucket-region': 'eu-far-1' });
    proxy.fault = (request) => {
      const region = /\/\d{8}\/([^/]*)\/s3\//.exec(request.headers.authorization ?? '')![1]!;
      regions.push(region);
      return region === 'eu-far-1' ? undefined : elsewhere;
    };
    await callAll(t, store);
    t.same(regions.slice(0, 3), ['us-east-1', 'eu-far-1', 'eu-far-1']);
    t.equal(regions.filter((region) => region === 'us-east-1').length, 1);
  });

  t.test('a copy that says 200 and then that it failed has failed', async (t) => {
    const { proxy, store, retrying } = await open(t);
    for (const end of ['', '\n']) {
      const failed: Fault = ({ request, response }) => {
        request.resume();
        response.end(
          `<?xml version="1.0"?>\n<Error><Code>InternalError</Code><Message>no</Message></Error>${end}`,
        );
      };
      proxy.next(1, failed);
      await t.rejects(store.copy('x', 'copy'), { code: 'UNAVAILABLE', message: /cannot copy x/ });
      proxy.next(1, failed);
      t.equal(await retrying.copy('x', 'copy'), true);
    }
    t.ok((await store.get('copy', 200_000))?.bytes.equals(bytes));
  });

  t.test('a store that knows no delete of many deletes one by one', async (t) => {
    const { proxy, store } = await open(t);
    const none = s3Error(501, 'NotImplemented');
    proxy.fault = (request) => (request.url?.includes('?delete') ? none : undefined);
    await store.delete(['f/1', 'f/2', 'f/never', 'f/3']);
    t.same((await listed(store, 'f/')).length, 7);
    await store.delete(['f/4', 'f/5']);
    t.equal(proxy.seen.filter((line) => line.includes('?delete')).length, 1, 'and is not asked again');
  });

  t.test('what a delete of many left is an error with its cause', async (t) => {
    const { proxy, store } = await open(t);
    const answer =
      (code: string): Fault =>
      ({ request, response }) => {
        request.resume();
        const key = /\/bucket\/?\?/.test(request.url ?? '') ? prefixOf(store) : '';
        response.end(
          `<DeleteResult><Error><Key>${key}f/1</Key><Code>NoSuchKey</Code></Error><Error><Key>${key}f/2</Key><Code>${code}</Code></Error></DeleteResult>`,
        );
      };
    proxy.next(1, answer('InternalError'));
    await t.rejects(store.delete(['f/1', 'f/2']), { code: 'UNAVAILABLE', message: /1 stay, "f\/2" first/ });
    proxy.next(1, answer('SlowDown'));
    await t.rejects(store.delete(['f/1', 'f/2']), { code: 'OVERLOAD' });
    proxy.next(1, answer('AccessDenied'));
    const denied = await store.delete(['f/1', 'f/2']).catch((error) => error);
    t.match(denied, { code: 'UNAVAILABLE', retryable: false });
    proxy.next(1, answer('NoSuchKey'));
    await store.delete(['f/1', 'f/2']);
  });

  t.test('a list that is not of what was asked, or that cannot end, is refused', async (t) => {
    const { proxy, store } = await open(t);
    const page =
      (body: string): Fault =>
      ({ request, response }) => {
        request.resume();
        response.end(`<ListBucketResult>${body}</ListBucketResult>`);
      };
    const entry = (key: string) =>
      `<Contents><Key>${key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>`;
    const prefix = prefixOf(store);
    const bad = [
      entry('elsewhere/f/1'),
      entry(`${prefix}g/1`),
      entry(`${prefix}f`),
      `<Contents><Key>${prefix}f/1</Key><Size>1</Size></Contents>`,
      '<IsTruncated>true</IsTruncated>',
    ];
    for (const body of bad) {
      proxy.next(1, page(body));
      await t.rejects(listed(store, 'f/'), { code: 'UNAVAILABLE', message: /cannot list f\// }, body);
    }
    proxy.next(9, page('<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>'));
    await t.rejects(listed(store, 'f/'), { code: 'UNAVAILABLE', message: /more was promised/ });
    proxy.next(1, page(entry(`${prefix}f/../../x`) + entry(`${prefix}f/`) + entry(`${prefix}f/1`)));
    t.same(
      (await listed(store, 'f/')).map(({ key }) => key),
      ['f/1'],
      'what is no key is left out',
    );
    proxy.next(1, ({ response }) => void response.end('<ListBucketResult><Contents>'));
    await t.rejects(listed(store, 'f/'), { code: 'UNAVAILABLE' });
  });

  t.test('stores that ignore or refuse conditions are found out; writes then go without', async (t) => {
    const ignoring: Fault = ({ request, response }) => {
      request.resume();
      response.writeHead(200, { etag: '"e"' }).end(request.method === 'GET' ? 'x' : undefined);
    };
    for (const fault of [ignoring, s3Error(501, 'NotImplemented'), s3Error(400, 'InvalidArgument')]) {
      const { proxy, store } = await open(t);
      // A store that refuses conditions accepts everything else.
      proxy.fault = ({ headers }) =>
        fault === ignoring || headers['if-match'] || headers['if-none-match'] ? fault : undefined;
      t.equal(await store.canCompareAndSet(), false);
      proxy.fault = () => undefined;
      await store.put('x', Buffer.from('over it'), { ifVersion: null });
    }
    const { proxy, store } = await open(t);
    proxy.next(1, s3Error(503, 'SlowDown'));
    await t.rejects(store.canCompareAndSet(), { code: 'OVERLOAD' });
    t.equal(await store.canCompareAndSet(), true, 'who could not tell is asked again');
  });

  t.test('a 404 that is not S3 saying that there is no such key is no answer', async (t) => {
    const { proxy, store } = await open(t);
    proxy.next(1, ({ response }) => void response.writeHead(404).end('<html>no such site</html>'));
    await t.rejects(store.get('x', 1), { code: 'UNAVAILABLE', message: /404/ });
  });

  t.test('a store that is full is NO_SPACE', async (t) => {
    const { proxy, store } = await open(t);
    for (const fault of [s3Error(403, 'QuotaExceeded'), s3Error(507, 'XMinioStorageFull')]) {
      proxy.next(1, fault);
      await t.rejects(store.put('y', bytes), { code: 'NO_SPACE' });
    }
  });

  t.test('clocks that differ are no error, whose ever is wrong', async (t) => {
    for (const hours of [-1, 1]) {
      const script = `
        const RealDate = Date, shift = ${hours} * 3600_000;
        globalThis.Date = class extends RealDate {
          constructor(...words) { words.length ? super(...words) : super(RealDate.now() + shift); }
          static now() { return RealDate.now() + shift; }
        };
        const { S3Objects } = await import(${JSON.stringify(import.meta.resolve('../../../src/store/objects/s3-objects.ts'))});
        const { parseS3Url } = await import(${JSON.stringify(import.meta.resolve('../../../src/store/objects/s3-url.ts'))});
        const open = () => new S3Objects(parseS3Url('s3://bucket/clock?endpoint=${rgw.endpoint}'));
        let store = open();
        await store.put('x', Buffer.from('x'));
        store = open();
        const read = await store.get('x', 10);
        store = open();
        const info = await store.head('x');
        store = open();
        await Array.fromAsync(store.list('f/'));
        console.log(String(read.bytes), info.sizeBytes);
        process.exit();`;
      const { stdout } = await run(process.execPath, ['--input-type=module', '-e', script]);
      t.equal(stdout, 'x 1\n', `${hours} hours`);
    }
  });

  t.test('who may not is told what, and is not tried again; no secret is in any error', async (t) => {
    const { proxy, store } = await open(t);
    const stranger = await rgw.addStranger();
    t.teardown(() => rgw.useInThisProcess());
    process.env.AWS_ACCESS_KEY_ID = stranger.accessKeyId;
    process.env.AWS_SECRET_ACCESS_KEY = stranger.secretAccessKey;
    const denied = new S3Objects(parseS3Url(store.url));
    t.teardown(() => denied.close());
    const retrying = new RetryObjects(denied, { pauses: { firstMs: 5, longestMs: 5 } });
    const calls: [string, () => Promise<unknown>][] = [
      ['GetObject', () => retrying.get('x', 1)],
      ['HeadObject', () => retrying.head('x')],
      ['PutObject', () => retrying.put('x', bytes)],
      ['CopyObject', () => retrying.copy('x', 'y')],
      ['ListObjectsV2', () => listed(retrying, 'f/')],
    ];
    const secrets = [stranger, rgw.key].flatMap((key) => [key.accessKeyId, key.secretAccessKey]);
    for (const [operation, call] of calls) {
      proxy.seen.length = 0;
      const error = (await call().catch((error) => error)) as Error;
      t.match(error, { code: 'UNAVAILABLE', retryable: false }, operation);
      t.match(error.message, new RegExp(`access denied to ${operation} \\(403 AccessDenied\\)`));
      t.ok(proxy.seen.length <= 2, 'not tried again');
      const text = inspect(error, { depth: 9, showHidden: true });
      t.notOk(secrets.some((secret) => text.includes(secret)));
    }
    process.env.AWS_SECRET_ACCESS_KEY = 'another-secret';
    const wrong = new S3Objects(parseS3Url(store.url));
    t.teardown(() => wrong.close());
    for (const call of [() => wrong.get('x', 1), () => wrong.put('y', bytes), () => wrong.head('x')]) {
      const error = await call().catch((error) => error);
      t.match(error, { code: 'UNAVAILABLE', message: /credentials were refused .*SignatureDoesNotMatch/ });
      t.notMatch(inspect(error, { depth: 9, showHidden: true }), /another-secret|AK[0-9A-F]{18}/);
    }
  });

  t.test('contract of refusals', (t) => {
    const denied = async (t: Test) => {
      const { proxy, store } = await open(t);
      proxy.fault = () => s3Error(403, 'AccessDenied');
      return store;
    };
    refusalSuite(t, denied);
    t.end();
  });

  t.test('a chunk that is denied is asked for once through the tiers of a daemon, too', async (t) => {
    const { proxy, store } = await open(t);
    const images = await RootStore.open(new RetryObjects(store), { create: true });
    const { tier } = new Origin(images, {
      originTimeoutMs: 10_000,
      originTries: 3,
      originConcurrency: 4,
      originRate: undefined,
      originBandwidth: undefined,
    });
    t.teardown(() => tier.close());
    const id = 'ab'.repeat(32) as ChunkId;
    t.equal(await tier.get(id, 100, demand()), undefined);
    proxy.fault = () => s3Error(403, 'AccessDenied');
    proxy.seen.length = 0;
    await t.rejects(images.getChunkOnce(id), { code: 'UNAVAILABLE' });
    const once = proxy.seen.length;
    const error = await tier.get(id, 100, demand()).catch((error) => error);
    t.match(error, { code: 'UNAVAILABLE', retryable: false, message: /access denied to GetObject/ });
    t.equal(proxy.seen.length, 2 * once);
  });

  t.test('a store that is not there is UNAVAILABLE', async (t) => {
    const store = new S3Objects(parseS3Url('s3://bucket/x?endpoint=http://127.0.0.1:1'));
    t.teardown(() => store.close());
    const calls: (() => Promise<unknown>)[] = [
      () => store.get('x', 1),
      () => store.put('x', bytes),
      () => listed(store, 'f/'),
    ];
    for (const call of calls)
      await t.rejects(call(), { code: 'UNAVAILABLE', message: /s3:\/\/bucket.*REFUSED/ });
  });
}

/** The prefix of a store's keys in the bucket. */
function prefixOf(store: S3Objects): string {
  return `${new URL(store.url).pathname.slice(1)}/`;
}
