/** The disk cache as a tier: a hung disk affects only its own reads, and is ejected until it is back. */
import { setImmediate as tick } from 'node:timers/promises';
import t from 'tap';
import { CACHE_READ_THREADS, DiskTier } from '../../../src/chunk/disk/disk-tier.ts';
import type { SealedLoan } from '../../../src/chunk/tier.ts';
import { LazydiskError } from '../../../src/errors.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import { demand, MapTier } from '../../support/tiers.ts';
import { tierSuite } from '../tier-suite.ts';

const idOf = (n: number) => n.toString(16).padStart(64, '0') as ChunkId;
const BYTES = Buffer.from('sealed');

/** A cache that holds every id below 1000, on a disk that works, hangs or fails. */
class FakeCache {
  disk: 'well' | 'hangs' | 'fails' = 'well';
  reads = 0;
  probes = 0;
  loans = 0;
  readonly #hung: (() => void)[] = [];

  holds(id: ChunkId): boolean {
    return Number.parseInt(id, 16) < 1000;
  }

  async get(): Promise<SealedLoan> {
    this.reads++;
    await this.#disk();
    this.loans++;
    return { bytes: BYTES, release: () => void this.loans-- };
  }

  async probe(): Promise<void> {
    this.probes++;
    await this.#disk();
  }

  async put(): Promise<boolean> {
    return true;
  }

  discard(): void {}
  async close(): Promise<void> {}

  /** The disk resumes and answers all that it was asked. */
  thaw(): void {
    this.disk = 'well';
    for (const answer of this.#hung.splice(0)) answer();
  }

  async #disk(): Promise<void> {
    if (this.disk === 'hangs') await new Promise<void>((resolve) => this.#hung.push(resolve));
    else if (this.disk === 'fails') throw new LazydiskError('UNAVAILABLE', 'disk cache: EIO');
  }
}

function setUp(timeoutMs = 20) {
  const cache = new FakeCache();
  const changes: [boolean, string][] = [];
  const tier = new DiskTier(cache, { timeoutMs, onChange: (up, cause) => changes.push([up, cause]) });
  const read = async (id: number, ctx = demand()) => {
    const loan = await tier.get(idOf(id), BYTES.length, ctx);
    loan?.release();
    return loan !== undefined;
  };
  return { cache, tier, changes, read };
}

t.test('it fulfils the contract of a tier', async (t) => {
  tierSuite(t, async () => {
    const map = new MapTier('disk');
    let stalled = false;
    const cache = {
      holds: (id: ChunkId) => map.chunks.has(id),
      get: (id: ChunkId, sealedBytes: number) =>
        stalled ? new Promise<never>(() => {}) : map.get(id, sealedBytes, demand()),
      probe: async () => {},
      put: (id: ChunkId, sealed: Uint8Array) => map.put(id, sealed),
      discard: (id: ChunkId) => map.discard(id),
      close: () => map.close(),
    };
    const stall = () => {
      stalled = true;
    };
    return { tier: new DiskTier(cache, { timeoutMs: 10_000 }), stall };
  });
});

t.test('a hung disk is ejected after a few reads, and misses never wait for it', async (t) => {
  const { cache, tier, changes, read } = setUp();
  cache.disk = 'hangs';
  for (let n = 0; n < 3; n++) await t.rejects(read(n), { code: 'TIMEOUT' });
  t.same(tier.stats(), { up: false, ejections: 1, reads: 3 });
  t.match(changes, [[false, /no answer/]]);
  await t.rejects(read(3), { code: 'UNAVAILABLE', message: /^disk cache: ejected \(disk cache: no answer/ });
  t.equal(cache.reads, 3, 'it was not asked');
  t.equal(await read(5000), false, 'an absent chunk is still a miss');
  cache.thaw();
  await tick();
  t.equal(cache.loans, 0, 'loans that arrive late are released');
  t.equal(tier.stats().reads, 0);
});

t.test('abandoned reads keep their threads, whose number is bounded', async (t) => {
  const { cache, tier, read } = setUp(60_000);
  cache.disk = 'hangs';
  const controller = new AbortController();
  const reads = Array.from({ length: 40 }, (_, n) =>
    read(n, { ...demand(20_000, controller.signal), drive: `drive ${n % 4}` }),
  );
  await tick();
  t.equal(cache.reads, CACHE_READ_THREADS);
  controller.abort();
  t.ok((await Promise.allSettled(reads)).every(({ status }) => status === 'rejected'));
  t.equal(tier.stats().reads, CACHE_READ_THREADS, 'no reader waits, and the threads still hang');
  await t.rejects(read(1, demand(15)), { code: 'TIMEOUT', message: /no place/ });
  t.equal(cache.reads, CACHE_READ_THREADS);
  t.equal(tier.stats().up, true, 'cancelled reads say nothing about the disk');
  cache.thaw();
  await tick();
  t.ok(await read(1));
  t.equal(tier.stats().reads, 0);
});

t.test('reads that wait for a thread fail at once when the disk is ejected', async (t) => {
  const { cache, read } = setUp();
  cache.disk = 'hangs';
  const reads = Array.from({ length: 40 }, (_, n) => read(n));
  const codes = (await Promise.allSettled(reads)).map(
    (result) => (result as PromiseRejectedResult).reason.code,
  );
  t.ok(codes.filter((code) => code === 'UNAVAILABLE').length >= 40 - CACHE_READ_THREADS);
  cache.thaw();
});

t.test('it is probed in the background, and is used again when a probe succeeds', async (t) => {
  const { cache, tier, changes, read } = setUp();
  cache.disk = 'fails';
  for (let n = 0; n < 3; n++) await t.rejects(read(n), { code: 'UNAVAILABLE', message: /EIO/ });
  const failing = () => read(1).catch((error) => t.match(error, { message: /ejected/ }));
  while (cache.probes === 0) {
    await failing();
    await tick();
  }
  t.equal(tier.stats().up, false, 'the probe failed');
  cache.disk = 'well';
  while (!tier.stats().up) {
    await failing();
    await tick();
  }
  t.ok(await read(1));
  t.equal(cache.reads, 4);
  t.match(changes, [
    [false, /EIO/],
    [true, /EIO/],
  ]);
});
