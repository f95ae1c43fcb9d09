/** What one client can cost (time, memory, places), and how the server gets rid of clients. */
import { readFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import t from 'tap';
import { ByteBudget } from '../../../src/export/byte-budget.ts';
import { DEFAULT_LIMITS } from '../../../src/export/nbd/limits.ts';
import type { ListenerStats } from '../../../src/export/nbd/ops.ts';
import { COMMAND, OPTION, REQUEST_BYTES } from '../../../src/export/nbd/protocol.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { BufferDevice } from '../../support/buffer-device.ts';
import { NbdClient, optionBytes } from '../../support/nbd-client.ts';
import { content, serve, until } from './serving.ts';

const bytes = content(16);
const { read } = COMMAND;

t.test('a client that does not negotiate is disconnected', async (t) => {
  const { where, server } = await serve(t, [new BufferDevice(bytes)], { handshakeTimeoutMs: 50 });
  const silent = await NbdClient.raw(where);
  t.equal((await silent.rest()).length, 18);
  const busy = await NbdClient.connect(where);
  const timer = setInterval(() => busy.option(99), 5);
  await busy.rest();
  clearInterval(timer);
  await until(() => server.stats().connections === 0);
  t.pass('both are gone, although one of them kept sending');
});

t.test('a client that has chosen an export may be silent for longer', async (t) => {
  const { where } = await serve(t, [new BufferDevice(bytes)], { handshakeTimeoutMs: 2000 });
  const client = await NbdClient.open(where);
  await new Promise((resolve) => setTimeout(resolve, 2500));
  t.equal((await client.request({ type: read, lengthBytes: 1 })).error, 0);
  client.close();
});

t.test('a client beyond the limit is closed, and may connect once another has left', async (t) => {
  const { where, server } = await serve(t, [new BufferDevice(bytes)], { connectionsMax: 2 });
  const first = await NbdClient.open(where);
  const second = await NbdClient.open(where);
  const third = await NbdClient.raw(where);
  t.equal((await third.rest()).length, 0);
  first.close();
  await until(() => server.stats().connections === 1);
  const fourth = await NbdClient.open(where);
  for (const client of [second, fourth])
    t.equal((await client.request({ type: read, lengthBytes: 1 })).error, 0);
  second.close();
  fourth.close();
});

t.test('clients that fill one listener do not affect the other, and that is reported', async (t) => {
  const told: ListenerStats[] = [];
  const { where, server } = await serve(
    t,
    [new BufferDevice(bytes)],
    { connectionsMax: 3 },
    undefined,
    (listener) => told.push(listener),
  );
  await server.listen({ host: '127.0.0.1', port: 0 });
  const { port } = server.addresses.at(-1) as AddressInfo;
  const tcp = { host: '127.0.0.1', port };
  const held = await Promise.all(Array.from({ length: 3 }, () => NbdClient.open(tcp)));
  for (let n = 0; n < 5; n++) t.equal((await (await NbdClient.raw(tcp)).rest()).length, 0);
  const guests = await Promise.all(Array.from({ length: 3 }, () => NbdClient.open(where)));
  for (const guest of guests) t.equal((await guest.request({ type: read, lengthBytes: 1 })).error, 0);
  t.match(server.stats(), {
    connections: 6,
    listeners: [
      { kind: 'unix', connections: 3, connectionsMax: 3, refused: 0 },
      { kind: 'tcp', connections: 3, connectionsMax: 3, refused: 5 },
    ],
  });
  t.match(told, [{ kind: 'tcp', refused: 1 }], 'once, and not for each client');
  for (const client of [...held, ...guests]) client.close();
  await until(() => server.stats().listeners.every(({ connections }) => connections === 0));
});

t.test('at a full listener, the oldest client that has not chosen an export makes room', async (t) => {
  const { where } = await serve(t, [new BufferDevice(bytes)], { connectionsMax: 3 });
  const guest = await NbdClient.open(where);
  const idle = [await NbdClient.connect(where), await NbdClient.connect(where)];
  const next = await NbdClient.open(where);
  t.equal((await next.request({ type: read, lengthBytes: 1 })).error, 0);
  t.equal((await idle[0]!.rest()).length, 0, 'the first idle client is gone');
  t.equal((await guest.request({ type: read, lengthBytes: 1 })).error, 0, 'and no guest');
  for (const client of [guest, next, idle[1]!]) client.close();
});

t.test('a TCP client whose machine is gone is noticed by keep-alive', async (t) => {
  const { server } = await serve(t, [new BufferDevice(bytes)]);
  await server.listen({ host: '127.0.0.1', port: 0 });
  const { port } = server.addresses.at(-1) as AddressInfo;
  const client = await NbdClient.open({ host: '127.0.0.1', port });
  // proc(5): local address, remote address, state 01 (established), queues, and the timer: 02 is keep-alive.
  const local = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  const timer = () =>
    readFileSync('/proc/net/tcp', 'latin1')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .find((fields) => fields[1] === local && fields[3] === '01')?.[5];
  await until(() => timer()?.startsWith('02:') === true);
  t.pass('its connection has a keep-alive timer');
  client.close();
});

t.test('reads are counted when answered, and other requests never count as failed reads', async (t) => {
  let fails = false;
  const device = new BufferDevice(bytes, {
    cold: true,
    beforeRead: () => {
      if (fails) throw new Error('no bytes');
    },
  });
  const { where, server } = await serve(t, [device]);
  const client = await NbdClient.open(where);
  for (let n = 0; n < 5; n++) await client.request({ type: read, lengthBytes: 512 });
  for (let n = 0; n < 7; n++) await client.request({ type: COMMAND.trim, lengthBytes: 512 });
  t.match(server.stats(), { readsOk: 5, readErrors: 0 });
  fails = true;
  await client.request({ type: read, offset: 4 * CHUNK_BYTES, lengthBytes: 512 });
  t.match(server.stats(), { readsOk: 5, readErrors: 1 });
  client.close();
});

for (const lengthBytes of [4096, 64 * 1024, 4 * CHUNK_BYTES]) {
  for (const cold of [false, true]) {
    t.test(
      `a client that takes no ${cold ? 'fetched ' : ''}answers of ${lengthBytes} bytes is not served further`,
      async (t) => {
        const device = new BufferDevice(bytes, { cold, hits: !cold });
        const unsentBytesMax = 1024 * 1024;
        const { where, server } = await serve(t, [device], { unsentBytesMax, requestsMax: 8 });
        const client = await NbdClient.open(where);
        const count = Math.ceil((64 * 1024 * 1024) / lengthBytes);
        for (let n = 0; n < count; n++) client.send({ type: read, lengthBytes });
        let before = -1;
        while (before <= 0 || before !== server.stats().readBytes) {
          before = server.stats().readBytes;
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
        // What the kernel's buffers hold, the bound, and one answer (or one for each waiting read) above it.
        const servedMax = unsentBytesMax + 9 * Math.min(lengthBytes, 2 * 1024 * 1024) + 1024 * 1024;
        t.ok(before > 0 && before <= servedMax, `${before} bytes were served`);
        const other = await NbdClient.open(where);
        t.equal((await other.request({ type: read, lengthBytes: 1 })).error, 0, 'other clients are served');
        other.close();
        for (let n = 0; n < count; n++) {
          const { data } = await client.answer();
          if (!data.equals(bytes.subarray(0, lengthBytes))) t.fail(`answer ${n} is wrong`);
        }
        await until(() => device.pinned === 0);
        client.close();
      },
    );
  }
}

t.test('no more requests of a client wait for the drive than allowed', async (t) => {
  let running = 0;
  let most = 0;
  const device = new BufferDevice(bytes, {
    cold: true,
    beforeRead: async () => {
      most = Math.max(most, ++running);
      await new Promise((resolve) => setTimeout(resolve, 2));
      running--;
    },
  });
  const { where } = await serve(t, [device], { requestsMax: 3 });
  const client = await NbdClient.open(where);
  // Each reads a different chunk, or the first would warm all others.
  for (let n = 0; n < 16; n++) client.send({ type: read, offset: n * CHUNK_BYTES, lengthBytes: 512 });
  for (let n = 0; n < 16; n++) t.equal((await client.answer()).error, 0);
  t.equal(most, 3);
  client.close();
});

t.test('a client that leaves while its reads wait leaves nothing pinned or counted', async (t) => {
  const gate = Promise.withResolvers<void>();
  const device = new BufferDevice(bytes, { cold: true, beforeRead: () => gate.promise });
  const { where, server } = await serve(t, [device]);
  const client = await NbdClient.open(where);
  for (let n = 0; n < 10; n++) client.send({ type: read, offset: n * CHUNK_BYTES, lengthBytes: 4096 });
  await until(() => server.stats().inflight === 10);
  client.close();
  gate.resolve();
  await until(() => server.stats().connections === 0);
  t.equal(server.stats().inflight, 0);
  await until(() => device.pinned === 0);
});

t.test('a client that leaves without taking its answers leaves nothing pinned', async (t) => {
  const device = new BufferDevice(bytes);
  const { where, server } = await serve(t, [device]);
  const client = await NbdClient.open(where);
  for (let n = 0; n < 100; n++) client.send({ type: read, lengthBytes: 4 * CHUNK_BYTES });
  await until(() => device.pinned > 0);
  client.close();
  await until(() => server.stats().connections === 0);
  await until(() => device.pinned === 0);
  t.pass('everything was released');
});

for (const lengthBytes of [4096, 64 * 1024, 2 * CHUNK_BYTES]) {
  t.test(`waiting requests of ${lengthBytes} bytes are not served once their client has left`, async (t) => {
    const device = new BufferDevice(bytes);
    const { where, server } = await serve(t, [device]);
    const client = await NbdClient.open(where);
    // The most that one read of the server takes: all of them are in its queue when the client leaves.
    const count = Math.floor(65536 / REQUEST_BYTES);
    for (let n = 0; n < count; n++) client.send({ type: read, lengthBytes });
    await until(() => server.stats().ops.read > 0);
    client.socket.destroy();
    await until(() => server.stats().connections === 0);
    const servedMax = Math.ceil((DEFAULT_LIMITS.unsentBytesMax + 1024 * 1024) / lengthBytes);
    const served = server.stats().ops.read;
    t.ok(served <= servedMax + 1, `${served} of ${count} were served`);
    await until(() => device.pinned === 0);
  });
}

/** The budget, and the most that it ever held. */
function watched(capacityBytes: number): { budget: ByteBudget; most: () => number } {
  const budget = new ByteBudget(capacityBytes);
  let most = 0;
  const [tryTake, take] = [budget.tryTake.bind(budget), budget.take.bind(budget)];
  const look = <R>(result: R): R => {
    most = Math.max(most, budget.heldBytes);
    return result;
  };
  budget.tryTake = (owner, bytes) => look(tryTake(owner, bytes));
  budget.take = async (owner, bytes, until) => look(await take(owner, bytes, until));
  return { budget, most: () => most };
}

for (const structured of [false, true]) {
  const kind = structured ? 'structured' : 'simple';
  t.test(
    `clients that take no long answers hold no more memory than the budget: ${kind} replies`,
    async (t) => {
      const lengthBytes = bytes.length;
      const { budget, most } = watched(2 * lengthBytes);
      const drives = ['bad', 'worse', 'good'].map((name) => new BufferDevice(bytes, { name }));
      const limits = { lingerTimeoutMs: 500 };
      const { where, server } = await serve(t, drives, limits, budget);
      const clients: NbdClient[] = [];
      for (let n = 0; n < 12; n++) {
        const client = await NbdClient.open(where, n % 2 ? 'bad' : 'worse', {
          structured,
          allocation: false,
        });
        for (let asked = 0; asked < 4; asked++) client.send({ type: read, lengthBytes });
        clients.push(client);
      }
      await until(() => budget.waiters > 0);
      const good = await NbdClient.open(where, 'good', { structured, allocation: false });
      const { error, data } = await good.request({ type: read, lengthBytes });
      t.equal(error, 0, 'a client that takes its answer gets it, once those that take none are disconnected');
      t.ok(data.equals(bytes));
      good.close();
      t.ok(most() > 0 && most() <= 2 * lengthBytes, `${most()} bytes at most`);
      for (const client of clients) client.close();
      await until(() => server.stats().connections === 0);
      await until(() => budget.heldBytes === 0);
      t.equal(budget.waiters, 0);
      for (const { pinned } of drives) t.equal(pinned, 0);
    },
  );
}

t.test('a slow client is not disconnected while no other needs the memory that it holds', async (t) => {
  const { where } = await serve(t, [new BufferDevice(bytes)], { lingerTimeoutMs: 20 });
  const client = await NbdClient.open(where, '', { structured: false, allocation: false });
  client.send({ type: read, lengthBytes: bytes.length });
  await new Promise((resolve) => setTimeout(resolve, 300));
  t.ok((await client.answer()).data.equals(bytes));
  client.close();
});

for (const structured of [false, true]) {
  const kind = structured ? 'structured' : 'simple';
  t.test(`all pieces of a long read share one deadline: ${kind} replies`, async (t) => {
    const device = new BufferDevice(bytes, { cold: true, readTimeoutMs: 12_345 });
    const deadlines: (number | undefined)[] = [];
    const readPiece = device.read.bind(device);
    device.read = async (offset: number, lengthBytes: number, _?: AbortSignal, deadline?: number) => {
      deadlines.push(deadline);
      await new Promise((resolve) => setTimeout(resolve, 5));
      return readPiece(offset, lengthBytes);
    };
    const { where } = await serve(t, [device]);
    const client = await NbdClient.open(where, '', { structured, allocation: false });
    const startedAt = performance.now();
    t.ok((await client.request({ type: read, lengthBytes: bytes.length })).data.equals(bytes));
    const endedAt = performance.now();
    t.ok(deadlines.length >= 4, `${deadlines.length} pieces`);
    for (const deadline of deadlines) {
      // Only the time in which the client makes room may be added.
      t.ok(deadline! >= startedAt + 12_345 && deadline! - deadlines[0]! < endedAt - startedAt - 5);
    }
    if (!structured) t.equal(new Set(deadlines).size, 1);
    client.close();
  });
}

t.test('the bytes served in one turn of the event loop are bounded, however many clients ask', async (t) => {
  let turnBytes = 0;
  let most = 0;
  const device = new BufferDevice(bytes);
  const tryRead = device.tryRead.bind(device);
  device.tryRead = (offset: number, lengthBytes: number) => {
    if (turnBytes === 0)
      setImmediate(() => {
        turnBytes = 0;
      });
    turnBytes += lengthBytes;
    most = Math.max(most, turnBytes);
    return tryRead(offset, lengthBytes);
  };
  const { where } = await serve(t, [device]);
  const clients: NbdClient[] = [];
  for (let n = 0; n < 20; n++) clients.push(await NbdClient.open(where));
  const lengthBytes = 32 * 1024;
  await Promise.all(
    clients.map(async (client) => {
      for (let n = 0; n < 200; n++) client.send({ type: read, offset: n * lengthBytes, lengthBytes });
      for (let n = 0; n < 200; n++) {
        const { data } = await client.answer();
        if (!data.equals(bytes.subarray(n * lengthBytes, (n + 1) * lengthBytes)))
          t.fail(`answer ${n} is wrong`);
      }
      client.close();
    }),
  );
  // The half of a turn for waiting reads may coincide with the whole of the next turn.
  t.ok(most > 0 && most < 5 * 1024 * 1024, `${most} bytes`);
});

t.test('a removed drive ends its connections once they have their answers, and no others', async (t) => {
  const gate = Promise.withResolvers<void>();
  const slow = new BufferDevice(bytes, { name: 'slow', cold: true, beforeRead: () => gate.promise });
  const { where, server, registry } = await serve(t, [slow, new BufferDevice(bytes, { name: 'other' })]);
  const idle = await NbdClient.open(where, 'slow');
  const waiting = await NbdClient.open(where, 'slow');
  const other = await NbdClient.open(where, 'other');
  waiting.send({ type: read, lengthBytes: 4096 });
  await until(() => server.stats().inflight === 1);
  registry.remove('slow');
  t.equal((await idle.rest()).length, 0);
  gate.resolve();
  t.ok((await waiting.answer()).data.equals(bytes.subarray(0, 4096)));
  t.equal((await waiting.rest()).length, 0);
  t.equal((await other.request({ type: read, lengthBytes: 1 })).error, 0);
  other.close();
});

t.test('a removed drive disconnects a client that takes no answers', async (t) => {
  const device = new BufferDevice(bytes, { name: 'gone' });
  const { where, server, registry } = await serve(t, [device], { lingerTimeoutMs: 50 });
  const client = await NbdClient.open(where, 'gone');
  for (let n = 0; n < 5000; n++) client.send({ type: read, lengthBytes: 64 * 1024 });
  await until(() => device.pinned > 0);
  registry.remove('gone');
  await until(() => server.stats().connections === 0);
  await until(() => device.pinned === 0);
  t.pass('it is gone');
  client.close();
});

t.test('close answers the requests in flight, and accepts no new clients', async (t) => {
  const gate = Promise.withResolvers<void>();
  const device = new BufferDevice(bytes, { cold: true, beforeRead: () => gate.promise });
  const { where, server } = await serve(t, [device]);
  const client = await NbdClient.open(where);
  client.send({ type: read, lengthBytes: 4096 });
  await until(() => server.stats().inflight === 1);
  const closed = server.close({ drainMs: 20_000 });
  await t.rejects(NbdClient.raw(where));
  gate.resolve();
  t.ok((await client.answer()).data.equals(bytes.subarray(0, 4096)));
  t.equal((await client.rest()).length, 0);
  await closed;
  t.equal(server.stats().connections, 0);
});

t.test('close ends requests that do not finish in time', async (t) => {
  const device = new BufferDevice(bytes, { cold: true, beforeRead: () => new Promise(() => {}) });
  const { where, server } = await serve(t, [device]);
  const client = await NbdClient.open(where);
  client.send({ type: read, lengthBytes: 4096 });
  await until(() => server.stats().inflight === 1);
  await server.close({ drainMs: 50 });
  t.equal((await client.rest()).length, 0);
});

t.test('a negotiation that arrives byte by byte is understood', async (t) => {
  const { where } = await serve(t, [new BufferDevice(bytes)]);
  const client = await NbdClient.connect(where);
  client.socket.setNoDelay(true);
  for (const byte of optionBytes(OPTION.list)) {
    client.socket.write(Buffer.from([byte]));
    await new Promise((resolve) => setImmediate(resolve));
  }
  await client.optionReply();
  t.equal((await client.optionReply()).type, 1);
  client.close();
});
