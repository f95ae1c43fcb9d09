import { setImmediate as tick } from 'node:timers/promises';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { ChunkMemory } from '../../src/chunk/memory.ts';
import { ChunkReader } from '../../src/chunk/reader.ts';
import { RetryTier } from '../../src/chunk/wrappers/retry.ts';
import type { PinnedBytes } from '../../src/drive/block-device.ts';
import type { ChunkMap } from '../../src/drive/chunk-map.ts';
import { Drive } from '../../src/drive/drive.ts';
import { LazydiskError } from '../../src/errors.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import type { Manifest } from '../../src/format/manifest.ts';
import {
  CountingObserver,
  type Fault,
  FaultTier,
  MapTier,
  makeImage,
  type TestImage,
} from '../support/tiers.ts';

interface Setup {
  slots?: number;
  readTimeoutMs?: number;
}

function setUp(
  t: Pick<Test, 'teardown'>,
  image: TestImage,
  { slots = 64, readTimeoutMs = 20_000 }: Setup = {},
) {
  const disk = new FaultTier(new MapTier('disk'));
  const originMap = new MapTier('origin', image.chunks);
  // Like a real origin, it forgets nothing.
  originMap.discard = () => {};
  const origin = new FaultTier(originMap);
  const observer = new CountingObserver();
  const memory = new ChunkMemory({ capacityBytes: slots * CHUNK_BYTES });
  const retry = new RetryTier(origin, {
    tries: 2,
    tryTimeoutMs: 10_000,
    pauses: { firstMs: 1, longestMs: 1 },
  });
  const reader = new ChunkReader({ memory, tiers: [disk, retry], observer, cacheTimeoutMs: 20 });
  const drive = new Drive({
    name: 'vm-1',
    image: { digest: 'sha256:test', manifest: image },
    reader,
    readTimeoutMs,
  });
  t.teardown(async () => {
    drive.close();
    await reader.close();
  });
  return { disk, origin, originMap, observer, memory, reader, drive };
}

/** A copy of the bytes, whose pins are released. */
function take(bytes: PinnedBytes): Buffer {
  const copy = Buffer.concat(bytes.parts);
  bytes.release();
  return copy;
}

/** Checks a range against the image's true bytes. */
async function readRight(drive: Drive, image: TestImage, offset: number, lengthBytes: number): Promise<void> {
  const now = drive.tryRead(offset, lengthBytes);
  const bytes = take(now ?? (await drive.read(offset, lengthBytes)));
  const right = image.disk.subarray(offset, offset + lengthBytes);
  if (!bytes.equals(right)) throw new Error(`wrong bytes: ${lengthBytes} at ${offset}`);
}

async function failureOf(promise: Promise<unknown>): Promise<LazydiskError> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof LazydiskError)) throw new Error(`not a LazydiskError: ${error}`);
  return error;
}

/** Waits until nothing is in flight: readahead, prefetch or demand. */
async function quiet(reader: ChunkReader): Promise<void> {
  do await tick();
  while (reader.stats().flights > 0);
}

t.test('a Manifest is a ChunkMap', async (t) => {
  const fits = (manifest: Manifest): ChunkMap => manifest;
  t.type(fits, 'function');
});

t.test('ranges are read correctly, cold and warm, across chunks and zeroes', async (t) => {
  const image = await makeImage('ab..c.a');
  const { drive, memory } = setUp(t, image);
  t.match(drive, { name: 'vm-1', sizeBytes: 7 * CHUNK_BYTES, readOnly: true, imageDigest: 'sha256:test' });
  const ranges: [number, number][] = [
    [0, 4096],
    [CHUNK_BYTES - 512, 1024],
    [CHUNK_BYTES + 1, CHUNK_BYTES - 1],
    [2 * CHUNK_BYTES, 4096],
    [2 * CHUNK_BYTES, 2 * CHUNK_BYTES],
    [CHUNK_BYTES, 5 * CHUNK_BYTES],
    [0, 7 * CHUNK_BYTES],
    [7 * CHUNK_BYTES - 1, 1],
    [7 * CHUNK_BYTES, 0],
    [12345, 0],
  ];
  for (const [offset, lengthBytes] of ranges) {
    const right = image.disk.subarray(offset, offset + lengthBytes);
    t.ok(take(await drive.read(offset, lengthBytes)).equals(right), `${lengthBytes} at ${offset}`);
    const warm = drive.tryRead(offset, lengthBytes);
    t.ok(warm && take(warm).equals(right), 'and at once the second time');
  }
  t.equal(memory.stats().pinnedBytes, 0);
});

t.test('tryRead returns only what is in memory; zeroes always are, and need no read of a tier', async (t) => {
  const image = await makeImage('a.');
  const { drive, disk, originMap } = setUp(t, image);
  t.equal(drive.tryRead(0, 4096), undefined);
  t.equal(drive.tryRead(CHUNK_BYTES - 1, 2), undefined);
  const zero = drive.tryRead(CHUNK_BYTES, CHUNK_BYTES);
  t.ok(zero && take(zero).equals(Buffer.alloc(CHUNK_BYTES)));
  t.same([(disk.inner as MapTier).asked.length, originMap.asked.length], [0, 0]);
});

t.test('a range outside the drive is an error of the caller', async (t) => {
  const { drive } = setUp(t, await makeImage('a'));
  for (const [offset, lengthBytes] of [
    [-1, 1],
    [0, CHUNK_BYTES + 1],
    [CHUNK_BYTES, 1],
    [0, -1],
    [Number.NaN, 1],
  ] as const) {
    t.throws(() => drive.tryRead(offset, lengthBytes), { code: 'INTERNAL' });
    await t.rejects(drive.read(offset, lengthBytes), { code: 'INTERNAL' });
  }
});

t.test('bytes stay in place while they are held, and can be released only once', async (t) => {
  const image = await makeImage('abcdefgh');
  const { drive } = setUp(t, image, { slots: 4 });
  const held = await drive.read(0, 4096);
  for (let n = 1; n < 8; n++) await readRight(drive, image, n * CHUNK_BYTES, CHUNK_BYTES);
  t.ok(Buffer.concat(held.parts).equals(image.disk.subarray(0, 4096)));
  held.release();
  t.throws(() => held.release(), { code: 'INTERNAL' });
});

t.test('an error names drive, chunk, tier and cause, and is counted', async (t) => {
  const image = await makeImage('.ab');
  const { drive, origin } = setUp(t, image);
  const cases: [Fault, string, RegExp][] = [
    [{ kind: 'flip' }, 'CORRUPT', /origin: bad copy/],
    [{ kind: 'truncate' }, 'CORRUPT', /origin: bad copy/],
    [{ kind: 'swap', sealed: image.chunks[1]!.sealed }, 'CORRUPT', /origin: bad copy/],
    [{ kind: 'missing' }, 'NOT_FOUND', /origin: not there/],
    [{ kind: 'error' }, 'UNAVAILABLE', /origin: .*made to fail \(tried 2 times\)/],
  ];
  let errors = 0;
  for (const [fault, code, cause] of cases) {
    origin.fault = fault;
    const error = await failureOf(drive.read(CHUNK_BYTES, 4096));
    t.equal(error.code, code, fault.kind);
    t.match(error.message, /^drive vm-1, chunk index 1: chunk [0-9a-f]{64}: disk: not there; origin: /);
    t.match(error.message, cause);
    await failureOf(drive.read(0, 3 * CHUNK_BYTES));
    errors += 2;
  }
  t.match(drive.stats(), { errors, lastError: { code: 'UNAVAILABLE', text: /drive vm-1/ }, inFlight: 0 });
  origin.fault = undefined;
  await readRight(drive, image, 0, 3 * CHUNK_BYTES);
});

t.test('a read ends at its deadline, when cancelled, and when the drive closes', async (t) => {
  const image = await makeImage('ab');
  const { drive, origin } = setUp(t, image, { readTimeoutMs: 60 });
  origin.fault = { kind: 'black hole' };
  t.match(await failureOf(drive.read(0, 10)), {
    code: 'TIMEOUT',
    message: /drive vm-1, chunk index 0: .*origin/,
  });
  const longer = performance.now() + 200;
  t.equal((await failureOf(drive.read(0, 10, undefined, longer))).code, 'TIMEOUT');
  t.ok(performance.now() >= longer, 'a deadline that is passed overrides the default');
  const controller = new AbortController();
  const cancelled = failureOf(drive.read(0, 2 * CHUNK_BYTES, controller.signal));
  const closed = failureOf(drive.read(0, 10));
  const { inFlight, oldestInFlightMs } = drive.stats();
  t.equal(inFlight, 2);
  t.ok(oldestInFlightMs >= 0);
  controller.abort();
  t.equal((await cancelled).code, 'ABORTED');
  drive.close();
  t.equal((await closed).code, 'ABORTED');
  t.equal((await failureOf(drive.read(0, 10))).code, 'ABORTED');
  t.equal((await failureOf(drive.read(0, 10, AbortSignal.abort()))).code, 'ABORTED');
  t.equal(drive.tryRead(0, 10), undefined);
  t.match(drive.stats(), { inFlight: 0, errors: 2 }, 'a cancelled read is no failure');
});

t.test('reads of many chunks in little memory do not deadlock', async (t) => {
  const image = await makeImage('abcdefghijklmnopqrstuvwxyz');
  const { drive, memory } = setUp(t, image, { slots: 4 });
  const reads = Array.from({ length: 40 }, (_, n) =>
    readRight(drive, image, ((n * 5) % 22) * CHUNK_BYTES + 1000, 3 * CHUNK_BYTES),
  );
  // Larger than all of memory.
  reads.push(readRight(drive, image, 0, image.diskBytes), readRight(drive, image, 0, image.diskBytes));
  await Promise.all(reads);
  t.match(memory.stats(), { pinnedBytes: 0, filling: 0, waiting: 0 });
});

t.test('slow holders of bytes starve nobody: once half of memory is pinned, bytes are copied', async (t) => {
  const image = await makeImage('abcdefghijkl');
  const { drive, memory } = setUp(t, image, { slots: 4 });
  const held: PinnedBytes[] = [];
  for (let n = 0; n < 12; n++) held.push(await drive.read(n * CHUNK_BYTES + 7, 5000));
  t.ok(memory.stats().pinnedBytes <= 3 * CHUNK_BYTES);
  for (const [n, bytes] of held.entries()) {
    const at = n * CHUNK_BYTES + 7;
    t.ok(take(bytes).equals(image.disk.subarray(at, at + 5000)));
  }
  t.equal(memory.stats().pinnedBytes, 0);
});

t.test('a drive that is read sequentially fetches each chunk once, before it is asked for', async (t) => {
  const image = await makeImage('abcdefghijklm..nopqrstuvwxyz....ABCDEFGH');
  const { drive, reader, originMap } = setUp(t, image, { slots: 128 });
  const waited: number[] = [];
  const STEP = 128 * 1024;
  for (let offset = 0; offset < image.diskBytes; offset += STEP) {
    const now = drive.tryRead(offset, STEP);
    if (!now) waited.push(Math.floor(offset / CHUNK_BYTES));
    const bytes = take(now ?? (await drive.read(offset, STEP)));
    if (!bytes.equals(image.disk.subarray(offset, offset + STEP))) throw new Error('wrong bytes');
    await quiet(reader);
  }
  t.same(waited, [0, 1], 'only the first reads had to wait');
  t.equal(originMap.asked.length, image.storedChunks);
  const stats = drive.stats();
  t.match(stats, { touchedChunks: 34, touchedShare: 1, readahead: { chunks: 32, unusedBytes: 0 } });
  t.equal(stats.tiers.origin?.chunks, 34);
});

t.test('each of several simultaneous sequences is read ahead', async (t) => {
  const image = await makeImage('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN');
  const { drive, reader } = setUp(t, image);
  let waited = 0;
  for (let n = 0; n < 10; n++) {
    for (const start of [0, 10, 20, 30]) {
      const offset = (start + n) * CHUNK_BYTES;
      if (!drive.tryRead(offset, 4096)?.release) waited++;
      await readRight(drive, image, offset, 4096);
      await quiet(reader);
    }
  }
  t.ok(waited <= 10, `${waited} of 40 first touches waited`);
});

t.test('a drive that is read at random fetches only what is asked for', async (t) => {
  const image = await makeImage('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789');
  const { drive, reader, originMap } = setUp(t, image, { slots: 128 });
  // Far enough apart that no two chunks are neighbours.
  const order = Array.from({ length: 31 }, (_, n) => (n * 26) % 62);
  for (const index of order) {
    await readRight(drive, image, index * CHUNK_BYTES, 4096);
    await quiet(reader);
  }
  t.equal(originMap.asked.length, new Set(order).size);
});

t.test('prefetch fetches a range, a few chunks at a time, and near chunks cost nothing', async (t) => {
  const image = await makeImage('ab..cdefghijk');
  const { drive, reader, originMap } = setUp(t, image);
  await readRight(drive, image, 0, 10);
  drive.prefetch(0, 6 * CHUNK_BYTES);
  t.ok(reader.stats().backgroundFlights <= 4);
  drive.prefetch(-5, 100);
  drive.prefetch(image.diskBytes, 100);
  do await quiet(reader);
  while (originMap.asked.length < 4);
  t.same(
    originMap.asked,
    image.refs.slice(0, 4).map((ref) => ref.id),
  );
  t.match(drive.stats(), { touchedChunks: 1, prefetch: { chunks: 3 } });
  t.ok(drive.tryRead(0, 6 * CHUNK_BYTES), 'all of it is in memory');
});

t.test(
  'a prefetch of everything is bounded, continues after the reader was busy, and ends with the drive',
  async (t) => {
    const image = await makeImage('abcdefghijklmnopqrstuvwxyz');
    const { drive, reader, origin, originMap } = setUp(t, image, { slots: 8 });
    let peak = 0;
    origin.fault = () => {
      peak = Math.max(peak, reader.stats().backgroundFlights);
      return undefined;
    };
    drive.prefetch(0, image.diskBytes);
    while (new Set(originMap.asked).size < 26) await quiet(reader);
    t.ok(peak <= 2, `${peak} at once, with a background of 2`);
    const { drive: other, originMap: otherOrigin, reader: otherReader } = setUp(t, image);
    other.prefetch(0, image.diskBytes);
    other.close();
    await quiet(otherReader);
    t.ok(otherOrigin.asked.length <= 4);
  },
);

t.test('statistics count what was read, and from which tier', async (t) => {
  const image = await makeImage('abcd....');
  const { drive, reader, memory } = setUp(t, image);
  await readRight(drive, image, 0, 4096);
  await readRight(drive, image, 4096, 4096);
  await readRight(drive, image, 5 * CHUNK_BYTES, 1000);
  await quiet(reader);
  const size = image.refs[0]!.sealedBytes;
  t.match(drive.stats(), {
    reads: 3,
    readBytes: 9192,
    storedChunks: 4,
    touchedChunks: 1,
    touchedShare: 0.25,
    tiers: {
      memory: { chunks: 0, latency: { count: 2 } },
      origin: { chunks: 1, bytes: size, latency: { count: 1 } },
    },
    errors: 0,
    lastError: undefined,
    inFlight: 0,
    oldestInFlightMs: 0,
  });
  const slots = await Promise.all(
    Array.from({ length: memory.slots }, () => memory.reserve({ class: 'demand', deadline: Infinity })),
  );
  for (const slot of slots) memory.cancel(slot);
  await readRight(drive, image, 0, 4096);
  t.match(drive.stats().tiers.disk, { chunks: 1, bytes: size });
});

t.test('property: whatever fails or corrupts, a read returns the right bytes or an error', async (t) => {
  const image = await makeImage('abc.defa.ghi..bjk.');
  const other = await makeImage('z');
  const fault = fc.oneof(
    { weight: 4, arbitrary: fc.constant(undefined) },
    {
      weight: 5,
      arbitrary: fc.constantFrom<Fault>(
        { kind: 'flip' },
        { kind: 'truncate' },
        { kind: 'swap', sealed: other.chunks[0]!.sealed },
        { kind: 'missing' },
        { kind: 'error' },
        { kind: 'slow', delayMs: 3 },
      ),
    },
  );
  const step = fc.record({
    disk: fault,
    origin: fault,
    reads: fc.array(fc.tuple(fc.nat(image.diskBytes - 1), fc.nat(3 * CHUNK_BYTES)), {
      minLength: 1,
      maxLength: 6,
    }),
  });
  let right = 0;
  let failed = 0;
  const property = fc.asyncProperty(
    fc.array(step, { maxLength: 12 }),
    fc.integer({ min: 2, max: 20 }),
    async (steps, slots) => {
      const cleanups: (() => unknown)[] = [];
      const teardown = (cleanup: () => unknown) => void cleanups.push(cleanup);
      const { drive, reader, disk, origin, originMap, memory } = setUp(
        { teardown } as Pick<Test, 'teardown'>,
        image,
        { slots },
      );
      for (const { disk: diskFault, origin: originFault, reads } of steps) {
        disk.fault = diskFault;
        origin.fault = originFault;
        const results = await Promise.allSettled(
          reads.map(([offset, lengthBytes]) =>
            readRight(drive, image, offset, Math.min(lengthBytes, image.diskBytes - offset)),
          ),
        );
        for (const result of results) {
          if (result.status === 'fulfilled') right++;
          else if (result.reason instanceof LazydiskError && result.reason.code !== 'INTERNAL') failed++;
          else throw result.reason;
        }
      }
      disk.fault = undefined;
      origin.fault = undefined;
      // A chunk read ahead under a fault may fail for a read that joins it.
      await quiet(reader);
      await readRight(drive, image, 0, image.diskBytes);
      for (const cleanup of cleanups) await cleanup();
      const { pinnedBytes, filling, waiting } = memory.stats();
      if (pinnedBytes + filling + waiting > 0) throw new Error('something is still held');
      if ((disk.inner as MapTier).loans + originMap.loans > 0) throw new Error('a loan was not returned');
    },
  );
  await fc.assert(property, { numRuns: 40 });
  t.ok(right > 0 && failed > 0, `${right} reads were right, ${failed} failed`);
});
