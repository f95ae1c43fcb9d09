/** A drive over the real disk cache and a real store, whose files are damaged while they are in use. */
import { createHash } from 'node:crypto';
import { copyFileSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as tick } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { DiskCache } from '../../src/chunk/disk/disk-cache.ts';
import { ChunkMemory } from '../../src/chunk/memory.ts';
import { OriginTier } from '../../src/chunk/origin.ts';
import { ChunkReader } from '../../src/chunk/reader.ts';
import { LimitTier } from '../../src/chunk/wrappers/limit.ts';
import { RetryTier } from '../../src/chunk/wrappers/retry.ts';
import { Drive } from '../../src/drive/drive.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { loadKeyFile, newKeyFile } from '../../src/keys/key-file.ts';
import { chunkFileIn, openDirStore } from '../support/dir-store.ts';
import { putDisk } from '../support/stored-disk.ts';
import { CountingObserver, demand } from '../support/tiers.ts';

const CHUNKS = 8;
const ZERO_CHUNK = 3;
const STORED = CHUNKS - 1;

/** Hardly compressible, so that records fill the cache's file, and the same on every run. */
function diskBytes(): Buffer {
  const disk = Buffer.alloc(CHUNKS * CHUNK_BYTES);
  for (let at = 0; at < disk.length; at += 32) createHash('sha256').update(`${at}`).digest().copy(disk, at);
  return disk.fill(0, ZERO_CHUNK * CHUNK_BYTES, (ZERO_CHUNK + 1) * CHUNK_BYTES);
}

async function setUp(t: Test) {
  const dir = t.testdir({ store: {}, cache: {} });
  const disk = diskBytes();
  await newKeyFile(join(dir, 'key'));
  const store = await openDirStore(join(dir, 'store'));
  const image = await putDisk(store, await loadKeyFile(join(dir, 'key')), 'test', disk);
  const cache = await DiskCache.open({ dir: join(dir, 'cache'), capBytes: 16 * 2 ** 20 });
  await cache.recovered();
  const memory = new ChunkMemory({ capacityBytes: 16 * CHUNK_BYTES });
  const observer = new CountingObserver();
  const origin = new RetryTier(new OriginTier(store), {
    tries: 2,
    tryTimeoutMs: 10_000,
    pauses: { firstMs: 1, longestMs: 1 },
  });
  const tiers = [new LimitTier(cache, { concurrency: 8 }), new LimitTier(origin, { concurrency: 8 })];
  const reader = new ChunkReader({ memory, tiers, observer });
  const drive = new Drive({ name: 'vm-1', image, reader, readTimeoutMs: 25_000 });
  t.teardown(async () => {
    drive.close();
    await reader.close();
    await store.close();
  });
  const readAll = async () => {
    const bytes = await drive.read(0, disk.length);
    const right = Buffer.concat(bytes.parts).equals(disk);
    bytes.release();
    return right;
  };
  const forget = async () => {
    const slots = await Promise.all(Array.from({ length: memory.slots }, () => memory.reserve(demand())));
    for (const slot of slots) memory.cancel(slot);
  };
  const cached = async (entries: number) => {
    while (cache.stats().entries !== entries || reader.stats().flights > 0) await tick();
  };
  const chunkFile = (entry: number) => chunkFileIn(join(dir, 'store'), image.manifest.ref(entry).id);
  return { dir, cache, drive, image, observer, readAll, forget, cached, chunkFile };
}

t.test('corrupt records of the disk cache are read from the origin, and healed', async (t) => {
  const { dir, cache, observer, readAll, forget, cached } = await setUp(t);
  t.ok(await readAll());
  await cached(STORED);
  const file = await open(join(dir, 'cache', 'chunks'), 'r+');
  // One byte every 100 KiB, so that each record, which is over 500 KiB, is damaged.
  const { size } = await file.stat();
  for (let at = 60_000; at < size; at += 100 * 1024) {
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, at);
    await file.write(Buffer.of(byte[0]! ^ 0x10), 0, 1, at);
  }
  await file.close();
  await forget();
  t.ok(await readAll(), 'the right bytes nevertheless');
  t.equal(observer.verifyFailures.length, STORED);
  t.equal(cache.stats().quarantined, STORED);
  await cached(STORED);
  t.equal(observer.heals.length, STORED, 'as many heals as failures');
  await forget();
  t.ok(await readAll());
  t.equal(observer.reads['origin hit'], 2 * STORED, 'the healed records are used again');
  t.equal(observer.verifyFailures.length, STORED);
});

t.test(
  'a bad object at the origin is an error that names it, and is good again once it is repaired',
  async (t) => {
    const { dir, cache, drive, image, readAll, chunkFile } = await setUp(t);
    const path = chunkFile(0);
    copyFileSync(path, join(dir, 'good'));
    const damages: [string, () => void, string, RegExp][] = [
      [
        'flipped',
        () => {
          const bytes = readFileSync(path);
          bytes[1000]! ^= 1;
          writeFileSync(path, bytes);
        },
        'CORRUPT',
        /origin: bad copy \(its SHA-256 is not its id\)$/,
      ],
      [
        'truncated',
        () => truncateSync(path, 1000),
        'CORRUPT',
        /origin: bad copy \(its SHA-256 is not its id, 1000 bytes instead of \d+\)$/,
      ],
      ['swapped', () => copyFileSync(chunkFile(1), path), 'CORRUPT', /origin: bad copy \(.*\)$/],
      ['missing', () => rmSync(path), 'NOT_FOUND', /origin: not there$/],
    ];
    const { id } = image.manifest.ref(0);
    for (const [name, damage, code, cause] of damages) {
      damage();
      const error = await drive.read(100, 4096).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      t.match(error, { code, message: cause }, name);
      t.match(error, { message: `drive vm-1, chunk index 0: chunk ${id}: disk: not there; ` });
      t.equal(cache.stats().entries, 0, 'no copy was kept');
      copyFileSync(join(dir, 'good'), path);
    }
    t.ok(await readAll(), 'without a restart');
    t.equal(drive.stats().errors, damages.length);
  },
);
