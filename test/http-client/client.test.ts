/** The HTTP client of object stores, against servers that imitate real and broken ones byte by byte. */
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { HttpClient, type HttpClientOptions, type HttpRequest } from '../../src/http-client/client.ts';
import { serveTls } from '../support/http-proxy.ts';
import { skipWithout } from '../support/tools.ts';

/** What a server does with request number `n`, 0 first, of the connection number `connection`, 0 first. */
type Script = (exchange: { socket: Socket; request: string; n: number; connection: number }) => void;

/** A server that reads requests up to the end of their bodies and responds by `script`. */
async function serve(t: Test, script: Script): Promise<{ port: number; server: Server; sockets: Socket[] }> {
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    const connection = sockets.push(socket) - 1;
    let n = 0;
    let text = '';
    socket.on('error', () => undefined);
    socket.on('data', (bytes) => {
      text += bytes.toString('latin1');
      for (;;) {
        const end = text.indexOf('\r\n\r\n');
        if (end === -1) return;
        const length = Number(/content-length: (\d+)/.exec(text.slice(0, end))?.[1] ?? 0);
        if (text.length < end + 4 + length) return;
        const request = text.slice(0, end + 4 + length);
        text = text.slice(request.length);
        script({ socket, request, n: n++, connection });
      }
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, server, sockets };
}

function open(t: Test, port: number, options: HttpClientOptions = {}) {
  const client = new HttpClient(options);
  t.teardown(() => client.close());
  const url = { protocol: 'http:', hostname: '127.0.0.1', port: String(port), path: '/x' };
  return (request: Partial<HttpRequest> = {}) =>
    client.request({ method: 'GET', url, headers: {}, bytesMax: 1000, signal: undefined, ...request });
}

const OK = (body: string, headers = '') =>
  `HTTP/1.1 200 OK\r\n${headers}content-length: ${body.length}\r\n\r\n${body}`;

/** Resolves when the server's end of `socket` is closed. */
async function closed(socket: Socket | undefined): Promise<void> {
  if (socket && !socket.closed) await once(socket, 'close');
}

t.test('one connection serves requests one after the other', async (t) => {
  const { port, sockets } = await serve(t, ({ socket, n }) => socket.write(OK(`answer ${n}`)));
  const request = open(t, port);
  for (let n = 0; n < 5; n++) t.equal(String((await request()).body), `answer ${n}`);
  t.equal(sockets.length, 1);
});

t.test(
  'a response may arrive byte by byte, after 1xx responses, chunked, or until the connection ends',
  async (t) => {
    const answers = [
      `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n${OK('one')}`,
      'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\non\r\n1\r\ne\r\n0\r\nt: u\r\n\r\n',
      'HTTP/1.0 200 OK\r\n\r\none',
    ];
    const { port, sockets } = await serve(t, async ({ socket, n, connection }) => {
      socket.setNoDelay(true);
      for (const byte of answers[n + connection]!) {
        socket.write(byte);
        await new Promise((resolve) => setImmediate(resolve));
      }
      if (n === 2) socket.end();
    });
    const request = open(t, port);
    for (let n = 0; n < 3; n++) t.equal(String((await request()).body), 'one');
    t.equal(sockets.length, 1);
  },
);

t.test('a connection that the server closes after its response is not reused', async (t) => {
  const { port, sockets } = await serve(t, ({ socket, connection }) => {
    socket.end(OK(`answer ${connection}`, 'Connection: close\r\n'));
  });
  const request = open(t, port);
  for (let n = 0; n < 3; n++) t.equal(String((await request()).body), `answer ${n}`);
  t.equal(sockets.length, 3);
});

t.test('a connection is not reused after the keep-alive timeout of the server', async (t) => {
  const { port, sockets } = await serve(t, ({ socket, connection }) => {
    socket.write(OK(`answer ${connection}`, 'Keep-Alive: timeout=1, max=100\r\n'));
  });
  const request = open(t, port);
  for (let n = 0; n < 2; n++) t.equal(String((await request()).body), `answer ${n}`);
  t.equal(sockets.length, 2);
});

t.test('a connection that is closed as it is reused is replaced by a new one, once', async (t) => {
  const { port, sockets } = await serve(t, ({ socket, n, connection }) => {
    if (n === 0) socket.write(OK(`answer ${connection}`));
    else if (connection % 2) socket.end();
    else socket.resetAndDestroy();
  });
  const request = open(t, port);
  for (const method of ['GET', 'PUT', 'HEAD', 'DELETE'] as const) {
    const body = method === 'PUT' ? Buffer.alloc(100_000) : undefined;
    const before = sockets.length;
    t.equal((await request()).status, 200);
    await request({ method, body });
    t.ok(sockets.length <= before + 2, method);
    await closed(sockets.at(-2));
  }
  const { port: other } = await serve(t, ({ socket, n }) => {
    if (n === 0) socket.write(OK(''));
    else socket.resetAndDestroy();
  });
  const once_ = open(t, other);
  await once_();
  await t.rejects(once_({ method: 'PUT', body: Buffer.alloc(9), isOnce: true }), {
    code: 'UNAVAILABLE',
    message: /RESET|EPIPE|closed the connection/,
  });
});

t.test('when all idle connections are closed at once, each retry opens a new one', async (t) => {
  let isDying = false;
  const { port } = await serve(t, ({ socket, n }) => {
    if (isDying && n > 0) socket.resetAndDestroy();
    else setTimeout(() => socket.write(OK('fine')), 5);
  });
  const request = open(t, port);
  await Promise.all(Array.from({ length: 8 }, () => request()));
  isDying = true;
  for (const { body } of await Promise.all(Array.from({ length: 8 }, () => request())))
    t.equal(String(body), 'fine');
});

t.test('a request whose new connection breaks is not retried', async (t) => {
  const { port, sockets } = await serve(t, ({ socket }) => socket.resetAndDestroy());
  await t.rejects(open(t, port)(), { code: 'UNAVAILABLE', message: /^127\.0\.0\.1:\d+: .*RESET/ });
  t.equal(sockets.length, 1);
  const { port: other, sockets: others } = await serve(t, ({ socket }) => socket.end());
  await t.rejects(open(t, other)(), { code: 'UNAVAILABLE', message: /the server closed the connection/ });
  t.equal(others.length, 1);
});

t.test('the error for a host whose addresses all refuse says why', async (t) => {
  const client = new HttpClient({
    lookup: (_host, _options, callback) =>
      callback(null, [
        { address: '127.0.0.1', family: 4 },
        { address: '127.0.0.2', family: 4 },
      ]),
  });
  t.teardown(() => client.close());
  const url = { protocol: 'http:', hostname: 'two.test', port: '1', path: '/x' };
  await t.rejects(client.request({ method: 'GET', url, headers: {}, bytesMax: 1, signal: undefined }), {
    code: 'UNAVAILABLE',
    message: /^two\.test:1: .*REFUSED/,
  });
});

t.test('a truncated response is never taken for a complete one', async (t) => {
  const cut = [
    ['HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc', /truncated, 3 of 10 bytes/],
    [
      'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n',
      /truncated, 5 of an unknown number/,
    ],
    ['HTTP/1.1 200 OK\r\ncontent-le', /closed the connection/],
  ] as const;
  for (const [text, message] of cut) {
    const { port } = await serve(t, ({ socket }) => socket.end(text));
    await t.rejects(open(t, port)(), { code: 'UNAVAILABLE', message });
  }
});

t.test(
  'a response that is not HTTP fails with UNAVAILABLE, and the error shows nothing of the request',
  async (t) => {
    const { port } = await serve(t, ({ socket }) => socket.write('SSH-2.0-OpenSSH_9.2\r\n\r\n'));
    const error = await open(t, port)({ headers: { authorization: 'secret' } }).catch((error) => error);
    t.match(error, { code: 'UNAVAILABLE', message: /not valid HTTP/ });
    t.notMatch(error.message + error.stack, /secret|SSH/);
  },
);

t.test('bytes after a response, or without a request, are never taken for the next response', async (t) => {
  const { port, sockets } = await serve(t, ({ socket, connection }) => {
    if (connection === 0) socket.write(OK('first') + OK('smuggled'));
    else if (connection === 1) {
      socket.write(OK('second'));
      setTimeout(() => socket.write(OK('late')), 20);
    } else socket.write(OK('third'));
  });
  const request = open(t, port);
  t.equal(String((await request()).body), 'first');
  t.equal(String((await request()).body), 'second');
  await closed(sockets[1]);
  t.equal(String((await request()).body), 'third');
});

t.test('a request body is sent completely, and an early response is read', async (t) => {
  const body = Buffer.alloc(3_000_000, 'abc');
  const { port } = await serve(t, ({ socket, request }) => {
    socket.write(OK(String(request.endsWith(body.toString('latin1')))));
  });
  const put = open(t, port);
  t.equal(String((await put({ method: 'PUT', body })).body), 'true');
  t.equal(String((await put({ method: 'PUT', body: Buffer.alloc(0) })).body), 'false');

  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => undefined);
    socket.once('data', () => {
      socket.pause();
      socket.write('HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno');
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const early = open(t, (server.address() as AddressInfo).port);
  const big = Buffer.alloc(50_000_000);
  for (let n = 0; n < 2; n++) t.equal((await early({ method: 'PUT', body: big })).status, 403);
  t.equal(sockets.length, 2, 'its connection is not reused');
});

t.test('a server that neither reads nor sends fails the request with TIMEOUT', async (t) => {
  const server = createServer((socket) => socket.pause().on('error', () => undefined)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  const request = open(t, (server.address() as AddressInfo).port, { stallMs: 200 });
  await t.rejects(request({ method: 'PUT', body: Buffer.alloc(50_000_000) }), { code: 'TIMEOUT' });
  await t.rejects(request(), { code: 'TIMEOUT', message: /no more bytes, 0 received/ });
});

t.test('a slow response that makes progress does not time out', async (t) => {
  const piece = 'x'.repeat(20_000);
  const { port } = await serve(t, async ({ socket }) => {
    socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${25 * piece.length}\r\n\r\n`);
    for (let n = 0; n < 25; n++) {
      socket.write(piece);
      await new Promise((resolve) => setTimeout(resolve, 150));
    }
  });
  const { body } = await open(t, port, { stallMs: 2_500 })({ bytesMax: 1_000_000 });
  t.equal(body.length, 500_000);
});

t.test('a cancelled request fails at once, and its buffer is not touched any more', async (t) => {
  const { port, sockets } = await serve(t, ({ socket }) => {
    socket.write(`HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n${'a'.repeat(100)}`);
  });
  const request = open(t, port);
  await t.rejects(request({ signal: AbortSignal.abort() }), { code: 'ABORTED' });
  const controller = new AbortController();
  const into = Buffer.alloc(1000, '.');
  const reading = request({ signal: controller.signal, into });
  while (into[0] !== 0x61) await new Promise((resolve) => setTimeout(resolve, 1));
  controller.abort();
  await t.rejects(reading, { code: 'ABORTED' });
  into.fill('.');
  sockets[0]?.write('b'.repeat(800));
  await closed(sockets[0]);
  t.equal(into.toString(), '.'.repeat(1000));
});

t.test('a request that is cancelled before it gets its connection is not sent', async (t) => {
  const { port, sockets } = await serve(t, ({ socket }) => socket.write(OK('answer')));
  const request = open(t, port);
  for (const what of ['a new connection', 'a kept connection']) {
    const controller = new AbortController();
    const cancelled = request({ signal: controller.signal });
    controller.abort();
    await t.rejects(cancelled, { code: 'ABORTED' }, what);
    t.equal(String((await request()).body), 'answer');
  }
  t.equal(sockets.filter(({ bytesRead }) => bytesRead > 0).length, 2, 'only the others were sent');
});

t.test('at most 64 connections are open, and a request that waits for one can be cancelled', async (t) => {
  const held: Socket[] = [];
  const { port, sockets } = await serve(t, ({ socket }) => held.push(socket));
  const request = open(t, port);
  const answers = Array.from({ length: 70 }, () => request());
  const controller = new AbortController();
  const cancelled = request({ signal: controller.signal });
  while (held.length < 64) await new Promise((resolve) => setTimeout(resolve, 1));
  controller.abort();
  await t.rejects(cancelled, { code: 'ABORTED' });
  t.equal(sockets.length, 64);
  for (const socket of held.splice(0)) socket.write(OK('late'));
  while (held.length < 6) await new Promise((resolve) => setTimeout(resolve, 1));
  for (const socket of held) socket.write(OK('late'));
  for (const { body } of await Promise.all(answers)) t.equal(String(body), 'late');
  t.equal(sockets.length, 64);
});

t.test('requests that wait when the client is closed, or come later, fail with ABORTED', async (t) => {
  const { port } = await serve(t, () => undefined);
  const client = new HttpClient();
  const url = { protocol: 'http:', hostname: '127.0.0.1', port: String(port), path: '/x' };
  const request = () => client.request({ method: 'GET', url, headers: {}, bytesMax: 1, signal: undefined });
  const waiting = Array.from({ length: 65 }, () => request().catch((error) => error));
  await new Promise((resolve) => setTimeout(resolve, 20));
  client.close();
  client.close();
  for (const error of await Promise.all(waiting)) t.match(error, { code: 'ABORTED' });
  await t.rejects(request(), { code: 'ABORTED', message: /closed/ });
});

t.test('malformed headers and paths are never sent', async (t) => {
  const { port, sockets } = await serve(t, ({ socket }) => socket.write(OK('')));
  const request = open(t, port);
  await t.rejects(request({ headers: { 'x-a': 'b\r\nx-c: d' } }), { code: 'INTERNAL' });
  const url = { protocol: 'http:', hostname: '127.0.0.1', port: String(port), path: '/x HTTP/1.1\r\n' };
  await t.rejects(request({ url }), { code: 'INTERNAL' });
  t.equal(sockets.length, 0);
});

t.test('bodies are read in place over TLS too, and sent over it', async (t) => {
  if (skipWithout(t, 'openssl')) return;
  const body = Buffer.alloc(600_000, 'lazy');
  let connections = 0;
  const origin = await serveTls(t, async (request, response) => {
    if (request.socket !== (request.socket as { seen?: unknown }).seen) {
      (request.socket as { seen?: unknown }).seen = request.socket;
      connections++;
    }
    const sent = Buffer.concat((await Array.fromAsync(request)) as Buffer[]);
    response.end(request.method === 'PUT' ? String(sent.equals(body)) : body);
  });
  const client = new HttpClient();
  t.teardown(() => client.close());
  const { protocol, hostname, port } = new URL(origin);
  const url = { protocol, hostname, port, path: '/x' };
  const into = Buffer.alloc(body.length);
  for (let n = 0; n < 3; n++) {
    into.fill(0);
    const answer = await client.request({
      method: 'GET',
      url,
      headers: {},
      bytesMax: 1e6,
      into,
      signal: undefined,
    });
    t.ok(into.equals(body));
    t.equal(answer.body.buffer, into.buffer);
    const put = await client.request({
      method: 'PUT',
      url,
      headers: {},
      body,
      bytesMax: 10,
      signal: undefined,
    });
    t.equal(String(put.body), 'true');
  }
  t.equal(connections, 1);
  delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
  const strict = new HttpClient();
  t.teardown(() => strict.close());
  const refused = strict.request({ method: 'GET', url, headers: {}, bytesMax: 1, signal: undefined });
  await t.rejects(refused, { code: 'UNAVAILABLE', message: /self-signed certificate/ });
});
