import { once } from 'node:events';
import net, { type AddressInfo } from 'node:net';
import { setImmediate as tick } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { Connection } from '../../../src/chunk/fleet/connection.ts';
import { type MetaReply, metaGet, ReplyParser } from '../../../src/chunk/fleet/meta-protocol.ts';
import { LazydiskError } from '../../../src/errors.ts';

function collect(sinkBytes = 1 << 20) {
  const replies: (MetaReply & { value?: Buffer })[] = [];
  const refusals: string[] = [];
  let sink = { head: Buffer.alloc(8), body: Buffer.alloc(sinkBytes) };
  const parser = new ReplyParser({
    sink: (valueBytes) => {
      if (valueBytes > sinkBytes + 8) return undefined;
      sink = { head: Buffer.alloc(8), body: Buffer.alloc(sinkBytes) };
      return sink;
    },
    reply: (reply) => {
      const value = Buffer.concat([sink.head, sink.body]).subarray(0, reply.valueBytes);
      replies.push(reply.code === 'VA' ? { ...reply, value } : reply);
    },
    refused: (text) => refusals.push(text),
  });
  return { parser, replies, refusals };
}

t.test('property: replies are the same however the bytes are split', async (t) => {
  const reply = fc.oneof(
    fc.uint8Array({ maxLength: 300 }).map((value) => Buffer.from(value)),
    fc.constantFrom('HD', 'EN W', 'NS', 'NF', 'MN', 'HD c12 t30'),
  );
  fc.assert(
    fc.property(
      fc.array(reply, { maxLength: 12 }),
      fc.array(fc.integer({ min: 1, max: 50 })),
      (list, cuts) => {
        const bytes = Buffer.concat(
          list.flatMap((one) =>
            typeof one === 'string'
              ? [Buffer.from(`${one}\r\n`)]
              : [Buffer.from(`VA ${one.length} Z\r\n`), one, Buffer.from('\r\n')],
          ),
        );
        const { parser, replies } = collect();
        for (let at = 0, n = 0; at < bytes.length; n++) {
          const step = cuts.length === 0 ? bytes.length : cuts[n % cuts.length]!;
          parser.feed(bytes.subarray(at, at + step));
          at += step;
        }
        if (replies.length !== list.length) return false;
        return list.every((one, n) =>
          typeof one === 'string' ? replies[n]!.code === one.slice(0, 2) : one.equals(replies[n]!.value!),
        );
      },
    ),
  );
  t.pass();
});

t.test('property: garbage fails with CORRUPT and no other error', async (t) => {
  const garbage = fc.oneof(
    fc.uint8Array({ maxLength: 4000 }).map((bytes) => Buffer.from(bytes)),
    fc.string({ maxLength: 60 }).map((text) => Buffer.from(`VA ${text}\r\n${text}\r\nHD\r\n`)),
    fc
      .constantFrom(
        'VA 99999999999 \r\n',
        'VA -1\r\n',
        'VA 5\r\nabcdefgh\r\n',
        'HD\n',
        `${'x'.repeat(5000)}\r\n`,
      )
      .map((text) => Buffer.from(text)),
  );
  fc.assert(
    fc.property(garbage, (bytes) => {
      try {
        collect(1000).parser.feed(bytes);
      } catch (error) {
        return error instanceof LazydiskError && error.code === 'CORRUPT';
      }
      return true;
    }),
    { numRuns: 500 },
  );
  t.pass();
});

async function badServer(
  t: Test,
  answer: (socket: net.Socket) => void,
  inflightMax = 4,
): Promise<Connection> {
  const server = net.createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => answer(socket));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const connection = await Connection.open({
    host: '127.0.0.1',
    port,
    connectTimeoutMs: 2000,
    inflightMax,
    queuedBytesMax: 1 << 20,
  });
  t.teardown(() => {
    connection.destroy(new LazydiskError('UNAVAILABLE', 'test over'));
    server.close();
  });
  return connection;
}

const ask = (connection: Connection, milliseconds = 5000, body = Buffer.alloc(100)) =>
  connection.request([metaGet('key', ['v'])], performance.now() + milliseconds, {
    head: Buffer.alloc(8),
    body,
  });

t.test('a server that sends wrong lengths, too much, or an unknown reply loses its connection', async (t) => {
  for (const text of ['garbage\r\n', 'VA 600000\r\n', 'VA 4\r\nabcdefgh', 'HD\r\nHD\r\nHD\r\n', 'VA x\r\n']) {
    const connection = await badServer(t, (socket) => socket.write(text));
    const outcome = await ask(connection).then(
      (reply) => reply.code,
      (error) => error.code,
    );
    t.ok(outcome === 'CORRUPT' || outcome === 'HD', `${JSON.stringify(text)}: ${outcome}`);
    await connection.closed;
    t.notOk(connection.usable);
    await t.rejects(ask(connection), { code: 'CORRUPT' });
  }
});

t.test(
  'half a reply fails with TIMEOUT at the deadline, and its sink is not touched afterwards',
  async (t) => {
    let rest: (() => void) | undefined;
    const connection = await badServer(t, (socket) => {
      socket.write('VA 20\r\n0123456789');
      rest = () => socket.write('ABCDEFGHIJ\r\nHD\r\n');
    });
    const body = Buffer.alloc(100);
    await t.rejects(ask(connection, 30, body), { code: 'TIMEOUT' });
    const before = Buffer.from(body);
    const next = ask(connection, 2000);
    rest?.();
    t.equal((await next).code, 'HD', 'the connection is still in step');
    t.same(body, before, 'the late value went nowhere');
  },
);

t.test('when the server closes the connection, waiting requests fail at once', async (t) => {
  const connection = await badServer(t, (socket) => socket.resetAndDestroy());
  await t.rejects(ask(connection), { code: 'UNAVAILABLE' });
});

t.test('requests beyond the limit in flight are refused, not queued', async (t) => {
  const connection = await badServer(t, () => {});
  const waiting = [1, 2, 3, 4].map(() => ask(connection, 100).catch((error) => error.code));
  await t.rejects(ask(connection), { code: 'OVERLOAD' });
  t.same(await Promise.all(waiting), ['TIMEOUT', 'TIMEOUT', 'TIMEOUT', 'TIMEOUT']);
});

t.test('a value that does not fit is discarded and reported, and the connection stays usable', async (t) => {
  const connection = await badServer(t, (socket) => socket.write(`VA 200\r\n${'x'.repeat(200)}\r\nHD\r\n`));
  const body = Buffer.alloc(100);
  const [long, next] = await Promise.all([ask(connection, 5000, body), ask(connection)]);
  t.match(long, { code: 'VA', valueBytes: 200 });
  t.same(body, Buffer.alloc(100));
  t.equal(next.code, 'HD');
});

t.test('a request late behind our other requests is OVERLOAD; one late by itself is TIMEOUT', async (t) => {
  const server = Promise.withResolvers<net.Socket>();
  const connection = await badServer(t, server.resolve, 16);
  const ahead = Array.from({ length: 6 }, () => ask(connection, 60_000));
  const queued = ask(connection, 500);
  const socket = await server.promise;
  socket.write('HD\r\nHD\r\n');
  await t.rejects(queued, { code: 'OVERLOAD', message: /6 of our requests were ahead of it/ });
  socket.write('HD\r\n'.repeat(5));
  await Promise.all(ahead);
  await t.rejects(ask(connection, 50), { code: 'TIMEOUT' });
});

t.test('an abandoned request holds no buffer while its node hangs', async (t) => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const connection = await badServer(t, () => {});
  const control = new AbortController();
  const held = new WeakRef(new ArrayBuffer(1 << 20));
  const request = connection.request(
    [metaGet('key', ['v'])],
    performance.now() + 60_000,
    { head: Buffer.alloc(8), body: Buffer.from(held.deref()!) },
    control.signal,
  );
  control.abort();
  await t.rejects(request, { code: 'ABORTED' });
  // A weak reference that was read keeps its target until the turn ends.
  for (let n = 0; n < 50 && held.deref(); n++) {
    await tick();
    collect();
  }
  t.equal(held.deref(), undefined);
  t.equal(connection.inflight, 1, 'its reply is still expected');
});

t.test('the sink of an abandoned request is not touched', async (t) => {
  const connection = await badServer(t, (socket) =>
    setTimeout(() => socket.write('VA 20\r\n01234567890123456789\r\n'), 30),
  );
  const body = Buffer.alloc(100);
  const control = new AbortController();
  const request = connection.request(
    [metaGet('key', ['v'])],
    performance.now() + 2000,
    { head: Buffer.alloc(8), body },
    control.signal,
  );
  control.abort();
  await t.rejects(request, { code: 'ABORTED' });
  await new Promise((resolve) => setTimeout(resolve, 80));
  t.same(body, Buffer.alloc(100));
  t.ok(connection.usable);
});
