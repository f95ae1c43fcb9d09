/** Reads of data in memory are answered by a thread without JavaScript, correctly whatever happens to memory. */
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { ChunkMemory } from '../../../src/chunk/memory.ts';
import { ChunkReader } from '../../../src/chunk/reader.ts';
import { Drive } from '../../../src/drive/drive.ts';
import { CHUNK_TYPE, COMMAND, COMMAND_FLAG } from '../../../src/export/nbd/protocol.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { NbdClient, writeRequest } from '../../support/nbd-client.ts';
import { CountingObserver, MapTier, makeImage } from '../../support/tiers.ts';
import { serve, until } from './serving.ts';

const { read } = COMMAND;
/** Two chunks with the same content, and two that are zero. */
const image = await makeImage('abc.defga.hijklm');

async function open(t: Test, slots: number) {
  const memory = new ChunkMemory({ capacityBytes: slots * CHUNK_BYTES });
  const origin = new MapTier('origin', image.chunks);
  const fetched: string[] = [];
  const get = origin.get.bind(origin);
  origin.get = (id, ...rest) => {
    fetched.push(id);
    return get(id, ...rest);
  };
  const reader = new ChunkReader({ memory, tiers: [origin], observer: new CountingObserver() });
  const drive = new Drive({
    name: 'vm',
    image: { digest: 'sha256:test', manifest: image },
    reader,
    readTimeoutMs: 20_000,
  });
  const serving = await serve(t, [drive]);
  t.teardown(async () => {
    drive.close();
    await reader.close();
  });
  return { ...serving, drive, memory, reader, fetched };
}

interface Range {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** A client in a worker thread reads `count` times; `done` becomes `count`, or -1 if an answer is wrong. */
function clientThread(path: string, range: Range, count: number, done: Int32Array): Worker {
  const code = `
    const { workerData } = require('node:worker_threads');
    const net = require('node:net');
    const { path, head, request, reply, count, done } = workerData;
    const socket = net.connect(path);
    let got = Buffer.alloc(0), stage = 0, answers = 0;
    socket.on('data', (bytes) => {
      got = Buffer.concat([got, bytes]);
      if (stage === 0 && got.length >= 18) { stage = 1; got = got.subarray(18); socket.write(head); }
      if (stage === 1 && got.length >= 10) { stage = 2; got = got.subarray(10); socket.write(request); }
      while (stage === 2 && got.length >= reply.length) {
        const isRight = got.subarray(0, reply.length).equals(reply);
        got = got.subarray(reply.length);
        if (!isRight) Atomics.store(done, 0, -1); else if (Atomics.load(done, 0) >= 0) Atomics.store(done, 0, ++answers);
        Atomics.notify(done, 0);
        if (answers < count) socket.write(request); else socket.destroy();
      }
    });`;
  // Fixed newstyle without zeroes, and EXPORT_NAME of the empty name.
  const head = Buffer.from('00000003' + '49484156454f5054' + '00000001' + '00000000', 'hex');
  const { offset, lengthBytes } = range;
  const request = writeRequest({
    type: read,
    flags: 0,
    cookieHigh: 1,
    cookieLow: 2,
    offset,
    lengthBytes,
  });
  const reply = Buffer.concat([
    Buffer.from('67446698' + '00000000' + '00000001' + '00000002', 'hex'),
    image.disk.subarray(offset, offset + lengthBytes),
  ]);
  return new Worker(code, { eval: true, workerData: { path, head, request, reply, count, done } });
}

/** `count` pages of chunk `index` from page `from` on. Chunks 3 and 9 are zero. */
const pages = (index: number, from: number, count: number): Range => ({
  offset: index * CHUNK_BYTES + from * 4096,
  lengthBytes: count * 4096,
});
const inMemory = {
  data: pages(5, 1, 1),
  zeroes: pages(3, 1, 1),
  'data, then zeroes': pages(2, 127, 2),
  'zeroes, then data': pages(9, 120, 16),
};

for (const [what, range] of Object.entries(inMemory)) {
  t.test(`reads of data in memory are answered while the event loop is busy: ${what}`, async (t) => {
    const { where, server, drive, reader } = await open(t, 16);
    const done = new Int32Array(new SharedArrayBuffer(4));
    const worker = clientThread(where.path, range, 100, done);
    // The first read fetches the chunk, which needs the event loop.
    await until(() => done[0] !== 0);
    // From here on the event loop is blocked; only another thread can answer.
    for (let seen = done[0]!; seen >= 0 && seen < 100; seen = done[0]!) {
      if (Atomics.wait(done, 0, seen, 10_000) === 'timed-out') break;
    }
    t.equal(done[0], 100);
    await worker.terminate();
    await until(() => server.stats().connections === 0);
    t.ok(server.stats().ops.read >= 100, 'they are counted');
    t.equal(server.stats().readBytes, server.stats().ops.read * range.lengthBytes);
    const isZero = what === 'zeroes';
    t.equal(drive.hitMap().counts().reads, isZero ? 100 : 99, 'all but the first, which fetched a chunk');
    t.equal(reader.stats().memoryHits === 0, isZero, 'zeroes are not counted as hits of memory');
  });
}

t.test('a long read of zeroes is answered with a hole, and with data if DF is set', async (t) => {
  const { where, drive } = await open(t, 16);
  const client = await NbdClient.open(where, '', { structured: true });
  const typesOf = async (flags: number) => {
    const wanted = { type: read, flags, offset: 9 * CHUNK_BYTES, lengthBytes: 64 * 1024 };
    const { data, chunks } = await client.request(wanted);
    t.ok(data.equals(Buffer.alloc(64 * 1024)));
    return chunks.map(({ type }) => type);
  };
  t.same(await typesOf(0), [CHUNK_TYPE.offsetHole]);
  t.same(await typesOf(COMMAND_FLAG.df), [CHUNK_TYPE.offsetData]);
  t.equal(drive.hitMap().counts().reads, 2);
  client.close();
});

t.test('they count as reads of the drive and as hits of memory', async (t) => {
  const { where, drive, reader } = await open(t, 16);
  const client = await NbdClient.open(where);
  for (let n = 0; n < 50; n++) await client.request({ type: read, offset: n * 4096, lengthBytes: 4096 });
  const { reads, readBytes, tiers } = drive.stats();
  t.equal(reads, 50);
  t.equal(readBytes, 50 * 4096);
  t.equal(tiers.memory!.latency.count, 49);
  t.equal(reader.stats().memoryHits, 49);
  t.equal(reader.stats().memoryMisses, 1);
  client.close();
});

for (const structured of [false, true]) {
  t.test(
    `every answer is right while memory evicts under the readers: ${structured ? 'structured' : 'simple'}`,
    async (t) => {
      const { where, drive, memory } = await open(t, 4);
      const clients = await Promise.all([0, 1, 2].map(() => NbdClient.open(where, '', { structured })));
      const range = fc
        .tuple(fc.nat(image.disk.length - 1), fc.nat(2 * CHUNK_BYTES))
        .map(([offset, lengthBytes]) => ({
          offset,
          lengthBytes: Math.min(1 + (lengthBytes % 150_000), image.disk.length - offset),
        }));
      await fc.assert(
        fc.asyncProperty(fc.array(range, { minLength: 1, maxLength: 24 }), async (ranges) => {
          const asked = clients.map((client) => {
            const wanted = new Map<number, { offset: number; lengthBytes: number }>();
            for (const one of ranges) {
              const flags = structured && one.offset % 3 === 0 ? COMMAND_FLAG.df : 0;
              wanted.set(client.send({ type: read, flags, ...one }), one);
            }
            return { client, wanted };
          });
          for (const { client, wanted } of asked) {
            for (let left = wanted.size; left > 0; left--) {
              const { error, data, cookie } = await client.answer();
              const { offset, lengthBytes } = wanted.get(cookie)!;
              if (error !== 0 || !data.equals(image.disk.subarray(offset, offset + lengthBytes)))
                return false;
            }
          }
          return true;
        }),
        { numRuns: 100 },
      );
      t.ok(memory.stats().evictions > 100, 'memory was too small');
      t.ok(drive.hitMap().counts().reads > 100, 'and many were answered without the drive');
      for (const client of clients) client.close();
      await until(() => memory.stats().pinnedBytes === 0);
    },
  );
}

t.test('a chunk that only native threads read is not evicted first', async (t) => {
  const { where, fetched, memory } = await open(t, 4);
  const client = await NbdClient.open(where);
  const readChunk = (index: number) =>
    client.request({ type: read, offset: index * CHUNK_BYTES, lengthBytes: 512 });
  await readChunk(0);
  for (const other of [4, 1, 6, 2, 10, 7, 5, 12, 11]) {
    await readChunk(other);
    await readChunk(0);
  }
  t.ok(memory.stats().evictions > 0);
  t.equal(fetched.filter((id) => id === fetched[0]).length, 1);
  client.close();
});
