import { setImmediate as tick } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { ChunkMemory } from '../../src/chunk/memory.ts';
import { ChunkReader, type ChunkReaderOptions } from '../../src/chunk/reader.ts';
import type { ChunkTier } from '../../src/chunk/tier.ts';
import { LimitTier } from '../../src/chunk/wrappers/limit.ts';
import { LazydiskError } from '../../src/errors.ts';
import { CHUNK_BYTES, type ChunkRef } from '../../src/format/chunk-id.ts';
import {
  CountingObserver,
  contextOf,
  demand,
  type Fault,
  FaultTier,
  MapTier,
  makeImage,
  type TestImage,
} from '../support/tiers.ts';

type Setup = Partial<Omit<ChunkReaderOptions, 'memory' | 'observer'>> & { slots?: number };

/** An empty disk tier over an origin that has the image; both can be made to return wrong data. */
function setUp(t: Test, image: TestImage, { slots = 32, ...options }: Setup = {}) {
  const diskMap = new MapTier('disk');
  const originMap = new MapTier('origin', image.chunks);
  const disk = new FaultTier(diskMap);
  const origin = new FaultTier(originMap);
  const observer = new CountingObserver();
  const memory = new ChunkMemory({ capacityBytes: slots * CHUNK_BYTES });
  const reader = new ChunkReader({ memory, tiers: [disk, origin], observer, ...options });
  t.teardown(() => reader.close());
  return { diskMap, originMap, disk, origin, observer, memory, reader };
}

/** Reads a chunk, checks it against the disk's true bytes, and releases it. */
async function readRight(reader: ChunkReader, image: TestImage, entry: number, ctx = demand()) {
  const read = await reader.get(image.ref(entry), ctx);
  const at = image.indexOf(entry) * CHUNK_BYTES;
  const right = image.disk.compare(read.chunk.bytes, 0, CHUNK_BYTES, at, at + CHUNK_BYTES) === 0;
  read.chunk.release();
  if (!right) throw new Error(`wrong bytes for entry ${entry}`);
  return read;
}

async function failureOf(promise: Promise<unknown>): Promise<LazydiskError> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof LazydiskError)) throw new Error(`not a LazydiskError: ${error}`);
  return error;
}

/** Evicts everything from memory. */
async function forget(memory: ChunkMemory): Promise<void> {
  const slots = await Promise.all(Array.from({ length: memory.slots }, () => memory.reserve(demand())));
  for (const slot of slots) memory.cancel(slot);
}

t.test('a chunk comes from the origin, then from memory, then from the disk tier', async (t) => {
  const image = await makeImage('ab');
  const { reader, memory, observer, diskMap, originMap } = setUp(t, image);
  t.equal(reader.tryGet(image.ref(0)), undefined);
  t.match(await readRight(reader, image, 0), {
    tier: 'origin',
    fetchedBytes: image.refs[0]?.sealedBytes as number,
  });
  t.match(await readRight(reader, image, 0), { tier: 'memory', fetchedBytes: 0 });
  const chunk = reader.tryGet(image.ref(0));
  t.ok(chunk?.bytes.equals(image.disk.subarray(0, CHUNK_BYTES)));
  chunk?.release();
  await tick();
  await forget(memory);
  t.match(await readRight(reader, image, 0), { tier: 'disk' });
  t.same(originMap.asked.length, 1);
  t.same(diskMap.chunks.size, 1);
  t.same(observer.reads, { 'disk miss': 1, 'origin hit': 1, 'disk hit': 1 });
  t.same([observer.verifyFailures, observer.heals], [[], []]);
  t.match(reader.stats(), { memoryHits: 2, memoryMisses: 2, flights: 0 });
});

const lies: Record<string, (image: TestImage) => Fault> = {
  'a flipped bit': () => ({ kind: 'flip' }),
  'a truncated copy': () => ({ kind: 'truncate' }),
  "another chunk's bytes": (image) => ({ kind: 'swap', sealed: image.chunks[1]?.sealed as Buffer }),
};

for (const [name, faultFor] of Object.entries(lies)) {
  t.test(`${name} in the disk tier is discarded, read from the origin, and healed`, async (t) => {
    const image = await makeImage('ab');
    const { reader, memory, observer, disk, diskMap } = setUp(t, image);
    for (const { id, sealed } of image.chunks) diskMap.chunks.set(id, sealed);
    disk.fault = faultFor(image);
    t.match(await readRight(reader, image, 0), { tier: 'origin' });
    t.same(diskMap.discarded, [image.refs[0]?.id]);
    await tick();
    t.same([observer.verifyFailures, observer.heals], [['disk'], ['disk']]);
    t.equal(diskMap.loans, 0);
    disk.fault = undefined;
    await forget(memory);
    t.match(await readRight(reader, image, 0), { tier: 'disk' }, 'the disk tier has the good copy now');
  });

  t.test(`${name} at the origin, with no other copy, is reported as CORRUPT and kept nowhere`, async (t) => {
    const image = await makeImage('ab');
    const { reader, origin, diskMap, originMap, memory } = setUp(t, image);
    origin.fault = faultFor(image);
    const error = await failureOf(reader.get(image.ref(0), demand()));
    t.equal(error.code, 'CORRUPT');
    t.match(error.message, /chunk [0-9a-f]{64}: disk: not there; origin: bad copy \(.+\)$/);
    t.equal(diskMap.chunks.size, 0);
    t.equal(reader.tryGet(image.ref(0)), undefined);
    t.match(memory.stats(), { filling: 0, cachedBytes: 0 });
    t.equal(originMap.loans, 0);
    origin.fault = undefined;
    originMap.chunks.set(image.refs[0]!.id, image.chunks[0]!.sealed);
    await readRight(reader, image, 0);
  });
}

t.test('a chunk that no tier can return is an error with the code of its cause', async (t) => {
  const image = await makeImage('ab');
  const cases: [Fault | undefined, Fault, string, RegExp][] = [
    [undefined, { kind: 'missing' }, 'NOT_FOUND', /disk: not there; origin: not there$/],
    [undefined, { kind: 'error' }, 'UNAVAILABLE', /disk: not there; origin: .*made to fail$/],
    [{ kind: 'error' }, { kind: 'missing' }, 'NOT_FOUND', /disk: .*made to fail; origin: not there$/],
    [{ kind: 'flip' }, { kind: 'missing' }, 'CORRUPT', /disk: bad copy \(.*\); origin: not there$/],
    [{ kind: 'flip' }, { kind: 'error' }, 'UNAVAILABLE', /disk: bad copy .*; origin: .*made to fail$/],
    [undefined, { kind: 'error', error: new TypeError('odd') }, 'UNAVAILABLE', /origin: odd$/],
    [undefined, { kind: 'slow', delayMs: 60_000 }, 'TIMEOUT', /disk: not there; origin: /],
    [undefined, { kind: 'black hole' }, 'TIMEOUT', /disk: not there; origin: /],
  ];
  for (const [diskFault, originFault, code, text] of cases) {
    const { reader, disk, diskMap, origin } = setUp(t, image);
    if (diskFault) diskMap.chunks.set(image.refs[0]!.id, image.chunks[0]!.sealed);
    disk.fault = diskFault;
    origin.fault = originFault;
    const error = await failureOf(reader.get(image.ref(0), demand(code === 'TIMEOUT' ? 40 : 20_000)));
    t.equal(error.code, code, `${diskFault?.kind} at the disk, ${originFault.kind} at the origin`);
    t.match(error.message, text);
    t.match(error.message, image.refs[0]?.id);
    t.notMatch(error.message, Buffer.from(image.refs[0]!.key).toString('hex'));
  }
});

t.test('a broken or hung cache makes a read slower, but does not fail it', async (t) => {
  const image = await makeImage('a');
  for (const fault of [
    { kind: 'error' },
    { kind: 'black hole' },
    { kind: 'slow', delayMs: 60_000 },
  ] as const) {
    const { reader, disk, observer } = setUp(t, image, { cacheTimeoutMs: 20 });
    disk.fault = fault;
    t.match(await readRight(reader, image, 0), { tier: 'origin' }, fault.kind);
    t.equal(observer.reads['disk error'], 1);
  }
});

t.test('a loan that a hung cache returns late is released', async (t) => {
  const image = await makeImage('a');
  const { reader, disk, diskMap } = setUp(t, image, { cacheTimeoutMs: 10 });
  const get = diskMap.get.bind(diskMap);
  let answer = () => {};
  diskMap.chunks.set(image.refs[0]!.id, image.chunks[0]!.sealed);
  disk.get = async (id, sealedBytes) => {
    await new Promise<void>((resolve) => {
      answer = resolve;
    });
    return get(id, sealedBytes, demand());
  };
  t.match(await readRight(reader, image, 0), { tier: 'origin' });
  answer();
  await tick();
  t.same([diskMap.asked.length, diskMap.loans], [1, 0]);
});

t.test('a cache whose writes fail costs only hits', async (t) => {
  const image = await makeImage('a');
  const { reader, diskMap, observer } = setUp(t, image);
  diskMap.put = () => Promise.reject(new Error('disk full'));
  await readRight(reader, image, 0);
  await tick();
  t.same(observer.heals, []);
});

t.test('a wrong key gets nothing from memory or any tier, and harms no good copy', async (t) => {
  const image = await makeImage('a');
  const { reader, diskMap, observer } = setUp(t, image);
  await readRight(reader, image, 0);
  await tick();
  const thief: ChunkRef = { ...image.ref(0), key: Buffer.alloc(32, 1) };
  t.equal(reader.tryGet(thief), undefined, 'the id alone gets nothing from memory');
  const error = await failureOf(reader.get(thief, demand()));
  t.equal(error.code, 'CORRUPT');
  t.match(error.message, /do not open with the manifest's key/);
  t.same([diskMap.discarded, observer.verifyFailures], [[], []]);
  t.match(await readRight(reader, image, 0), { tier: 'memory' });
});

t.test('a wrong length is an error of the manifest: no tier is blamed and no copy discarded', async (t) => {
  const image = await makeImage('a');
  const { reader, diskMap, observer } = setUp(t, image);
  const ref = image.ref(0);
  for (const sealedBytes of [ref.sealedBytes - 1, ref.sealedBytes + 1, 1]) {
    const error = await failureOf(reader.get({ ...ref, sealedBytes }, demand()));
    t.equal(error.code, 'CORRUPT');
    t.match(error.message, /origin has \d+ bytes that match its id, but the manifest says \d+$/);
  }
  t.same([diskMap.discarded, observer.verifyFailures], [[], []]);
  await readRight(reader, image, 0);
});

t.test('200 cold readers of one chunk cause one origin read', async (t) => {
  const image = await makeImage('a');
  const { reader, originMap, observer, memory } = setUp(t, image);
  const reads = await Promise.all(Array.from({ length: 200 }, () => readRight(reader, image, 0)));
  t.equal(originMap.asked.length, 1);
  t.equal(observer.singleFlightWaits, 199);
  const fetchedBytes = reads.reduce((sum, read) => sum + read.fetchedBytes, 0);
  t.equal(fetchedBytes, image.refs[0]?.sealedBytes, 'its bytes are counted once');
  t.equal(memory.stats().pinnedBytes, 0);
});

t.test('all readers of a chunk that fails get the error, and the next read asks again', async (t) => {
  const image = await makeImage('a');
  const { reader, origin, originMap } = setUp(t, image);
  origin.fault = { kind: 'missing' };
  const failures = await Promise.all(
    Array.from({ length: 50 }, () => failureOf(reader.get(image.ref(0), demand()))),
  );
  t.ok(failures.every((failure) => failure.code === 'NOT_FOUND'));
  origin.fault = undefined;
  await readRight(reader, image, 0);
  t.equal(originMap.asked.length, 1);
});

t.test('a caller that leaves disturbs no other; when all have left, the read is cancelled', async (t) => {
  const image = await makeImage('a');
  const { reader, origin } = setUp(t, image);
  let release = () => {};
  const signals: AbortSignal[] = [];
  const get = origin.inner.get.bind(origin.inner);
  origin.inner.get = async (id, sealedBytes, ctx) => {
    if (ctx.signal) signals.push(ctx.signal);
    await new Promise<void>((resolve) => {
      release = resolve;
    });
    return get(id, sealedBytes, ctx);
  };
  const first = new AbortController();
  const leaving = reader.get(image.ref(0), demand(20_000, first.signal));
  const impatient = reader.get(image.ref(0), demand(15));
  const staying = readRight(reader, image, 0);
  await tick();
  first.abort();
  await t.rejects(leaving, { code: 'ABORTED' });
  await t.rejects(impatient, { code: 'TIMEOUT', message: /disk: not there; origin: asked/ });
  t.equal(signals[0]?.aborted, false);
  release();
  await staying;

  await forget(reader.memory);
  const image2 = await makeImage('b');
  for (const { id, sealed } of image2.chunks) (origin.inner as MapTier).chunks.set(id, sealed);
  const second = new AbortController();
  const alone = reader.get(image2.ref(0), demand(20_000, second.signal));
  await tick();
  second.abort();
  await t.rejects(alone, { code: 'ABORTED' });
  t.equal(signals[1]?.aborted, true, 'no caller waits, so the flight is cancelled');
  t.equal(reader.stats().flights, 0);
  const again = readRight(reader, image2, 0);
  await tick();
  release();
  await again;
});

t.test('a caller with a later deadline than the first one gets its full time', async (t) => {
  const image = await makeImage('a');
  const { reader, origin } = setUp(t, image);
  origin.fault = { kind: 'slow', delayMs: 150 };
  const short = reader.get(image.ref(0), demand(30));
  const long = readRight(reader, image, 0, demand(20_000));
  await t.rejects(short, { code: 'TIMEOUT' });
  await long;
});

t.test('demand that joins a queued readahead promotes it past the limit', async (t) => {
  const image = await makeImage('abcdef');
  const origin = new FaultTier(new MapTier('origin', image.chunks), { kind: 'black hole' });
  const limited = new LimitTier(origin, { concurrency: 2, backgroundMax: 1 });
  const { reader, observer } = setUp(t, image, { tiers: [limited] });
  const controller = new AbortController();
  const background = (entry: number) =>
    reader.get(image.ref(entry), contextOf('readahead', 20_000, controller.signal));
  const stuck = background(0);
  const queued = background(1);
  await tick();
  t.same(limited.stats(), { active: 1, queued: 1 });
  origin.fault = undefined;
  await readRight(reader, image, 1);
  (await queued).chunk.release();
  t.equal(observer.singleFlightWaits, 1);
  t.equal(reader.stats().backgroundFlights, 1);
  controller.abort();
  await t.rejects(stuck, { code: 'ABORTED' });
});

t.test('readahead and prefetch are bounded, but demand is not', async (t) => {
  const image = await makeImage('abcdefgh');
  const { reader, origin } = setUp(t, image, { backgroundFlightsMax: 4 });
  origin.fault = { kind: 'slow', delayMs: 30 };
  const all = [
    reader.get(image.ref(0), contextOf('prefetch')),
    reader.get(image.ref(1), contextOf('prefetch')),
    reader.get(image.ref(2), contextOf('prefetch')),
    reader.get(image.ref(3), contextOf('readahead')),
    reader.get(image.ref(4), contextOf('readahead')),
    reader.get(image.ref(5), contextOf('readahead')),
    reader.get(image.ref(6), demand()),
  ];
  const results = await Promise.allSettled(all);
  const codes = results.map((result) => {
    if (result.status === 'rejected') return (result.reason as LazydiskError).code;
    result.value.chunk.release();
    return 'ok';
  });
  t.same(codes, ['ok', 'ok', 'OVERLOAD', 'ok', 'ok', 'OVERLOAD', 'ok']);
});

t.test('a chunk beyond the limit of flights waits; if it waits too long, it is OVERLOAD', async (t) => {
  const image = await makeImage('abcd');
  const { reader, origin, originMap, diskMap } = setUp(t, image, { flightsMax: 2 });
  origin.fault = { kind: 'slow', delayMs: 30 };
  await Promise.all([0, 1, 2].map((entry) => readRight(reader, image, entry)));
  await tick();
  diskMap.chunks.clear();
  await forget(reader.memory);
  const asked = originMap.asked.length;
  origin.fault = { kind: 'black hole' };
  const stuck = new AbortController();
  const stay = () => demand(20_000, stuck.signal);
  const held = [0, 1].map((entry) => failureOf(reader.get(image.ref(entry), stay())));
  const late = await failureOf(reader.get(image.ref(2), demand(20)));
  t.equal(late.code, 'OVERLOAD');
  t.match(late.message, /^chunk [0-9a-f]{64} \(waiting for its turn\): not read before the deadline$/);
  t.equal(originMap.asked.length, asked, 'no tier was asked');
  const cancelled = new AbortController();
  const leaving = reader.get(image.ref(2), demand(20_000, cancelled.signal));
  cancelled.abort();
  await t.rejects(leaving, { code: 'ABORTED' });
  t.match(reader.stats(), { flights: 2, waiting: 0 });
  stuck.abort();
  await Promise.all(held);
  t.match(reader.stats(), { flights: 0, waiting: 0 });
  origin.fault = undefined;
  await readRight(reader, image, 2);
});

t.test('a drive that reads everything delays no other drive', async (t) => {
  const letters = Array.from({ length: 40 }, (_, n) => String.fromCharCode(0x100 + n)).join('');
  const image = await makeImage(letters);
  const { reader, origin } = setUp(t, image, { flightsMax: 8, slots: 64 });
  origin.fault = (id) => (id === image.ref(39).id ? undefined : { kind: 'black hole' });
  const stuck = new AbortController();
  const greedy = Array.from({ length: 39 }, (_, entry) =>
    failureOf(reader.get(image.ref(entry), { ...demand(20_000, stuck.signal), drive: 'greedy' })),
  );
  t.match(reader.stats(), { flights: 6, waiting: 33 });
  await readRight(reader, image, 39, { ...demand(), drive: 'modest' });
  stuck.abort();
  t.ok((await Promise.all(greedy)).every(({ code }) => code === 'ABORTED'));
});

t.test('a chunk that two drives wait for is read in the first turn of either', async (t) => {
  const image = await makeImage('abcdefghijklmnop');
  const { reader, origin, originMap } = setUp(t, image, { flightsMax: 4, slots: 64 });
  origin.fault = { kind: 'black hole' };
  const stuck = new AbortController();
  const wait = (entry: number, drive: string, ctx = demand(20_000, stuck.signal)) =>
    reader.get(image.ref(entry), { ...ctx, drive });
  const greedy = Array.from({ length: 16 }, (_, entry) => wait(entry, 'greedy'));
  await tick();
  t.match(reader.stats(), { flights: 3, waiting: 13 });
  origin.fault = undefined;
  // The last in the greedy drive's queue; the other drive has a place.
  await readRight(reader, image, 15, { ...demand(), drive: 'modest' });
  t.same(originMap.asked, [image.ref(15).id]);
  (await greedy[15]!).chunk.release();
  stuck.abort();
  await Promise.all(greedy.slice(0, 15).map(failureOf));
});

t.test('when too many reads wait, the newest of the drive with the most is refused', async (t) => {
  const image = await makeImage('abcdefgh');
  const { reader, origin } = setUp(t, image, { flightsMax: 1, waitingMax: 3 });
  origin.fault = { kind: 'black hole' };
  const stuck = new AbortController();
  const wait = (entry: number, drive: string) =>
    failureOf(reader.get(image.ref(entry), { ...demand(20_000, stuck.signal), drive }));
  const greedy = [0, 1, 2, 3].map((entry) => wait(entry, 'greedy'));
  const modest = wait(4, 'modest');
  t.match(await greedy[3], { code: 'OVERLOAD', message: /3 reads wait for a place already/ });
  stuck.abort();
  t.match(await modest, { code: 'ABORTED' });
  await Promise.all(greedy);
});

t.test('memory never holds more than its slots, however many read at once', async (t) => {
  const image = await makeImage('abcdefghijklmnopqrstuvwxyz');
  const { reader, memory, diskMap, originMap } = setUp(t, image, { slots: 3 });
  let peak = 0;
  const hold = async (entry: number) => {
    const { chunk } = await reader.get(image.ref(entry), demand());
    peak = Math.max(peak, memory.stats().pinnedBytes / CHUNK_BYTES);
    await tick();
    const at = image.indexOf(entry) * CHUNK_BYTES;
    if (image.disk.compare(chunk.bytes, 0, CHUNK_BYTES, at, at + CHUNK_BYTES) !== 0)
      throw new Error(`entry ${entry} changed while it was pinned`);
    chunk.release();
  };
  const entries = Array.from({ length: 130 }, (_, n) => (n * 7) % image.storedChunks);
  await Promise.all(entries.map(hold));
  t.ok(peak <= 3, `${peak} of 3 slots`);
  t.match(memory.stats(), { pinnedBytes: 0, filling: 0, waiting: 0 });
  await tick();
  t.same([diskMap.loans, originMap.loans], [0, 0], 'every loan was returned');
});

t.test('write-back is bounded: a slow cache delays no read and holds little memory', async (t) => {
  const image = await makeImage('abcdefgh');
  // A loan holds its whole buffer.
  const sizeBytes = Math.max(...image.chunks.map(({ sealed }) => sealed.buffer.byteLength));
  const { reader, diskMap, originMap } = setUp(t, image, { writeBackBytesMax: 2 * sizeBytes });
  const puts: (() => void)[] = [];
  diskMap.put = () => new Promise((resolve) => puts.push(() => resolve(true)));
  for (let entry = 0; entry < 8; entry++) await readRight(reader, image, entry);
  t.equal(puts.length, 2);
  t.equal(originMap.loans, 2, 'only writes in progress keep their bytes');
  t.equal(reader.stats().droppedWriteBacks, 6);
  for (const put of puts) put();
  await tick();
  t.equal(originMap.loans, 0);
});

t.test('close cancels waiting reads and closes the tiers', async (t) => {
  const image = await makeImage('ab');
  const { reader, origin, originMap, diskMap } = setUp(t, image);
  origin.fault = { kind: 'black hole' };
  const waiting = failureOf(reader.get(image.ref(0), demand()));
  await tick();
  await reader.close();
  t.equal((await waiting).code, 'ABORTED');
  t.ok(originMap.closed && diskMap.closed);
  await t.rejects(reader.get(image.ref(1), demand()), { code: 'ABORTED' });
});

t.test('a tier that throws synchronously counts as failed', async (t) => {
  const image = await makeImage('a');
  const { originMap, observer } = setUp(t, image);
  const broken = {
    name: 'disk',
    get() {
      throw new Error('not even a promise');
    },
    put: async () => false,
    discard() {},
    close: async () => {},
  } as unknown as ChunkTier;
  const memory = new ChunkMemory({ capacityBytes: 4 * CHUNK_BYTES });
  const reader = new ChunkReader({ memory, tiers: [broken, originMap], observer });
  t.teardown(() => reader.close());
  t.match(await readRight(reader, image, 0), { tier: 'origin' });
});
