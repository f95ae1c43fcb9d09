/** Layers are read ahead: every byte in order, and never more in memory than allowed. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import fc from 'fast-check';
import t from 'tap';
import { LazydiskError } from '../../../../src/errors.ts';
import { ReadAhead, type ReadAheadLayer } from '../../../../src/image/source/registry/read-ahead.ts';

interface World {
  readonly layers: ReadAheadLayer[];
  readonly contents: Buffer[];
  /** Parts being downloaded, and all buffers so far. */
  inFlight: number;
  mostInFlight: number;
  readonly buffers: Set<ArrayBufferLike>;
  aborted: number;
}

function makeWorld(sizes: readonly number[], turns: () => number = () => 1): World {
  const contents = sizes.map((size, at) =>
    createHash('shake256', { outputLength: Math.max(size, 1) })
      .update(`${at}`)
      .digest()
      .subarray(0, size),
  );
  const world: World = { layers: [], contents, inFlight: 0, mostInFlight: 0, buffers: new Set(), aborted: 0 };
  world.layers.push(
    ...contents.map((content) => ({
      sizeBytes: content.length,
      download: (signal: AbortSignal) => {
        signal.addEventListener('abort', () => world.aborted++);
        return {
          async fill(part: Buffer, offset: number) {
            world.mostInFlight = Math.max(world.mostInFlight, ++world.inFlight);
            world.buffers.add(part.buffer);
            for (let turn = turns(); turn > 0; turn--) await new Promise(setImmediate);
            world.inFlight--;
            signal.throwIfAborted();
            content.copy(part, 0, offset, offset + part.length);
          },
        };
      },
    })),
  );
  return world;
}

async function read(readAhead: ReadAhead, layer: number, signal?: AbortSignal): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of readAhead.read(layer, signal)) parts.push(Buffer.from(part));
  return Buffer.concat(parts);
}

t.test(
  'property: layers of any size are read completely, with no more parts in memory than allowed',
  async (t) => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 0, max: 300 }), { maxLength: 8 }),
        fc.integer({ min: 1, max: 64 }),
        fc.integer({ min: 1, max: 6 }),
        fc.infiniteStream(fc.nat(4)),
        async (sizes, partBytes, parts, turns) => {
          const world = makeWorld(sizes, () => turns.next().value);
          const readAhead = new ReadAhead(world.layers, { partBytes, parts });
          for (const [at, content] of world.contents.entries()) {
            assert.deepEqual(await read(readAhead, at), content);
          }
          assert(world.mostInFlight <= parts);
          assert.equal(world.inFlight, 0);
        },
      ),
      { numRuns: 200 },
    );
    t.pass();
  },
);

t.test('a slow reader pauses the download, and buffers are reused', async (t) => {
  const world = makeWorld([1000]);
  const readAhead = new ReadAhead(world.layers, { partBytes: 10, parts: 4 });
  let begun = 0;
  for await (const part of readAhead.read(0)) {
    t.equal(part.length, 10);
    if (begun++ > 5) break;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  t.equal(world.buffers.size, 4);
});

t.test('the next layer is downloaded before this one has been read', async (t) => {
  const world = makeWorld([10, 10, 10]);
  const readAhead = new ReadAhead(world.layers, { partBytes: 100, parts: 2 });
  const reader = readAhead.read(0);
  await reader.next();
  t.equal(world.mostInFlight, 2);
  await reader.return(undefined);
  t.same(await read(readAhead, 1), world.contents[1]);
  t.equal(world.aborted, 0, 'the download is used');
});

t.test('layers can be read in any order, repeatedly, and after one was abandoned', async (t) => {
  const world = makeWorld([50, 60, 70]);
  const readAhead = new ReadAhead(world.layers, { partBytes: 10, parts: 3 });
  for (const layer of [2, 0, 0, 1, 2, 1]) t.same(await read(readAhead, layer), world.contents[layer]);
  for await (const _ of readAhead.read(0)) break;
  t.same(await read(readAhead, 0), world.contents[0]);
  const first = readAhead.read(0);
  await first.next();
  const second = readAhead.read(1);
  await second.next();
  await t.rejects(first.next(), { code: 'INTERNAL' });
});

t.test('an abort ends the downloads, without unhandled rejections', async (t) => {
  const world = makeWorld([100, 100], () => 5);
  const readAhead = new ReadAhead(world.layers, { partBytes: 10, parts: 3 });
  const stop = new AbortController();
  const reason = new LazydiskError('ABORTED', 'stopped');
  const reading = read(readAhead, 0, stop.signal);
  await new Promise(setImmediate);
  stop.abort(reason);
  await t.rejects(reading, reason);
  t.same(await read(readAhead, 1), world.contents[1], 'the next reader starts again');
  const closed = read(readAhead, 0);
  readAhead.close();
  await t.rejects(closed, { code: 'ABORTED' });
});
