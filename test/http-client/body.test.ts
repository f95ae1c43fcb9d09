/** Bodies as streams: complete or an error, paused by slow consumers, and their connections are reused. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http, { type RequestListener } from 'node:http';
import { pipeline } from 'node:stream/promises';
import { setImmediate as turn } from 'node:timers/promises';
import t, { type Test } from 'tap';
import {
  HttpClient,
  type HttpClientOptions,
  type HttpStreamRequest,
  targetOf,
} from '../../src/http-client/client.ts';
import { serveOwnTls } from '../support/http-proxy.ts';
import { listen } from '../support/http-server.ts';
import { skipWithout } from '../support/tools.ts';

const BODY = randomBytes(5_000_000);

interface Served {
  readonly url: string;
  /** Connections accepted so far. */
  connections: number;
}

async function serve(t: Test, listener: RequestListener): Promise<Served> {
  const server = http.createServer(listener);
  const served = { url: `http://127.0.0.1:${await listen(t, server)}`, connections: 0 };
  server.on('connection', () => served.connections++);
  return served;
}

function open(t: Test, url: string, options: HttpClientOptions = {}) {
  const client = new HttpClient(options);
  t.teardown(() => client.close());
  return (path = '/x', request: Partial<HttpStreamRequest> = {}) => {
    const target = targetOf(new URL(path, url));
    return client.stream({ method: 'GET', url: target, headers: {}, signal: undefined, ...request });
  };
}

async function bytesOf(body: AsyncIterable<Buffer>): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(body));
}

t.test('bodies of any framing arrive complete, one after the other over one connection', async (t) => {
  const served = await serve(t, (request, response) => {
    if (request.url === '/length') response.setHeader('content-length', BODY.length);
    response.end(request.url === '/empty' ? '' : BODY);
  });
  const stream = open(t, served.url);
  for (const path of ['/length', '/chunked', '/empty', '/length']) {
    const { status, headers, body } = await stream(path);
    t.equal(status, 200);
    if (path === '/length') t.equal(headers['content-length'], String(BODY.length));
    t.ok((await bytesOf(body)).equals(path === '/empty' ? Buffer.alloc(0) : BODY), path);
    // The connection is returned to the pool a moment after the end of a body.
    await turn();
  }
  t.equal(served.connections, 1);
});

t.test(
  'status and headers are available before the body, and errors and redirects have bodies too',
  async (t) => {
    const held: http.ServerResponse[] = [];
    const { url } = await serve(t, (request, response) => {
      const status = Number(request.url!.slice(1));
      response.writeHead(status, { location: '/elsewhere' }).flushHeaders();
      held.push(response);
    });
    const stream = open(t, url);
    for (const expected of [200, 307, 404, 503]) {
      const { status, headers, body } = await stream(`/${expected}`);
      t.equal(status, expected);
      t.equal(headers.location, '/elsewhere');
      held.pop()!.end(BODY);
      t.ok((await bytesOf(body)).equals(BODY));
    }
  },
);

t.test('a slow consumer makes the server wait, which does not count as a stall', async (t) => {
  const served = await serve(t, async (_, response) => {
    for (let n = 0; n < 20 && !response.destroyed; n++)
      if (!response.write(BODY)) await once(response, 'drain');
    response.end();
  });
  const { body } = await open(t, served.url, { stallMs: 100 })();
  let bytes = 0;
  let held = 0;
  for await (const piece of body as AsyncIterable<Buffer>) {
    if (bytes === 0) {
      // Several times the stall timeout, during which memory must not grow.
      await new Promise((resolve) => setTimeout(resolve, 500));
      held = body.readableLength;
    }
    bytes += piece.length;
  }
  t.equal(bytes, 20 * BODY.length);
  t.ok(held > 0 && held <= 1024 * 1024, `${held} bytes were held`);
});

t.test('a body that stalls fails with TIMEOUT, even if its consumer was slow before', async (t) => {
  const { url } = await serve(t, (_, response) => {
    response.setHeader('content-length', 2 * BODY.length);
    response.write(BODY);
  });
  const { body } = await open(t, url, { stallMs: 100 })();
  await new Promise((resolve) => setTimeout(resolve, 300));
  await t.rejects(bytesOf(body), { code: 'TIMEOUT', message: new RegExp(`${BODY.length} received`) });
});

t.test('a response without a head within the timeout fails with TIMEOUT', async (t) => {
  const { url } = await serve(t, () => undefined);
  await t.rejects(open(t, url, { stallMs: 100 })(), { code: 'TIMEOUT' });
});

t.test('a truncated body fails with UNAVAILABLE, even before its consumer begins to read', async (t) => {
  const { url } = await serve(t, (request, response) => {
    if (request.url === '/length') response.setHeader('content-length', BODY.length);
    response.write(BODY.subarray(0, 100_000), () => response.destroy());
  });
  for (const path of ['/length', '/chunked']) {
    const { body } = await open(t, url)(path);
    await new Promise((resolve) => body.once('close', resolve));
    await t.rejects(bytesOf(body), { code: 'UNAVAILABLE', message: /truncated/ }, path);
    const second = await open(t, url)(path);
    const sink = async (pieces: AsyncIterable<Buffer>) => void (await bytesOf(pieces));
    await t.rejects(pipeline(second.body, sink), { code: 'UNAVAILABLE' });
  }
});

t.test('a consumer that stops early closes its own connection and no other', async (t) => {
  const served = await serve(t, (_, response) => response.end(BODY));
  const stream = open(t, served.url);
  for await (const piece of (await stream()).body) if (piece.length > 0) break;
  const { body } = await stream();
  const whole = bytesOf(body);
  await whole;
  t.equal(served.connections, 2);
  const next = await stream();
  body.destroy();
  t.ok((await bytesOf(next.body)).equals(BODY), 'destroying a body that has ended closes no connection');
  t.equal(served.connections, 2);
});

t.test('a consumer that stops at the last byte does not disturb other requests', async (t) => {
  const served = await serve(t, (_, response) => response.end(BODY));
  const stream = open(t, served.url);
  for (let n = 0; n < 20; n++) {
    let bytes = 0;
    for await (const piece of (await stream()).body) {
      bytes += piece.length;
      if (bytes === BODY.length) break;
    }
    t.equal(bytes, BODY.length);
  }
});

t.test('cancelling a request or closing its client fails its body with ABORTED', async (t) => {
  const { url } = await serve(t, (_, response) => void response.write(BODY));
  const controller = new AbortController();
  const { body } = await open(t, url)('/x', { signal: controller.signal });
  const reading = bytesOf(body);
  controller.abort();
  await t.rejects(reading, { code: 'ABORTED' });
  const client = new HttpClient();
  const request = { method: 'GET', url: targetOf(new URL(url)), headers: {}, signal: undefined } as const;
  const other = await client.stream(request);
  client.close();
  await t.rejects(bytesOf(other.body), { code: 'ABORTED' });
});

t.test('a connection that was closed while idle is replaced transparently', async (t) => {
  let sockets = 0;
  const served = await serve(t, (request, response) => {
    if ((request.socket as { isUsed?: boolean }).isUsed) request.socket.resetAndDestroy();
    else response.end(BODY);
    (request.socket as { isUsed?: boolean }).isUsed = true;
    sockets++;
  });
  const stream = open(t, served.url);
  for (let n = 0; n < 3; n++) {
    t.ok((await bytesOf((await stream()).body)).equals(BODY));
    await turn();
  }
  t.equal(served.connections, 3);
  t.equal(sockets, 5, 'two requests were sent on a closed connection');
});

t.test('a TLS server is trusted only by the given certificates', async (t) => {
  if (skipWithout(t, 'openssl')) return;
  const { url, cert } = await serveOwnTls(t, (_, response) => response.end(BODY));
  const stream = open(t, url, { ca: cert });
  for (let n = 0; n < 2; n++) t.ok((await bytesOf((await stream()).body)).equals(BODY));
  await t.rejects(open(t, url)(), { code: 'UNAVAILABLE', message: /certificate/ });
});
