/**
 * The read path below the exports: how many reads per second a drive answers from memory, and how close reading a whole
 * drive sequentially from the disk cache comes to only decoding its chunks. The content is this machine's own programs
 * and libraries.
 */
import { execFileSync } from 'node:child_process';
import { closeSync, lstatSync, mkdtempSync, openSync, readdirSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { OPEN_OK, openChunk } from '../../native/index.ts';
import { DiskCache } from '../../src/chunk/disk/disk-cache.ts';
import { DiskTier } from '../../src/chunk/disk/disk-tier.ts';
import { ChunkMemory } from '../../src/chunk/memory.ts';
import { ChunkReader } from '../../src/chunk/reader.ts';
import { LimitTier } from '../../src/chunk/wrappers/limit.ts';
import type { ChunkMap } from '../../src/drive/chunk-map.ts';
import { Drive } from '../../src/drive/drive.ts';
import { type EncodedChunk, encodeChunk } from '../../src/format/chunk-codec.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { silentObserver } from '../support/tiers.ts';
import { formatRows, type Row } from './row.ts';

const DISK_BYTES = 512 * 2 ** 20;
const MEMORY_BYTES = 128 * 2 ** 20;
const REQUEST_BYTES = 256 * 1024;
const RUNS = 5;
/** Chunks that are decoded at once when only decoding; more than the pool has threads, so that none is idle. */
const DECODES = 8;

interface World {
  readonly dir: string;
  readonly chunks: readonly EncodedChunk[];
  readonly map: ChunkMap;
  readonly cache: DiskCache;
}

/** Rows: 4 KiB reads from memory; a whole drive from the disk cache, with its file in the page cache and not. */
export async function benchReadPath(): Promise<Row[]> {
  const world = await makeWorld();
  try {
    const memory = await fourKibFromMemory(world);
    // They alternate, because the speed of the machine varies.
    const decodes: number[] = [];
    const warm: number[] = [];
    const cold: number[] = [];
    for (let run = 0; run < RUNS; run++) {
      decodes.push(await decodeAlone(world));
      warm.push(await readInSequence(world));
      execFileSync('dd', [`if=${join(world.dir, 'chunks')}`, 'iflag=nocache', 'count=0'], {
        stdio: 'ignore',
      });
      cold.push(await readInSequence(world));
    }
    const decode = Math.max(...decodes);
    const row = (name: string, values: number[], goal?: number): Row => {
      const ours = Math.max(...values);
      const peer = { peer: 'decoding alone', peerValue: decode, ratio: ours / decode };
      return { name, ours, unit: 'GB/s', ...peer, ...(goal !== undefined && { goal }) };
    };
    return [
      { name: 'drive, 4 KiB random from memory', ours: memory, unit: 'reads/s' },
      row('drive, sequential from disk cache', warm, 0.8),
      row('drive, sequential from disk cache, its file cold', cold),
    ];
  } finally {
    await world.cache.close();
    rmSync(world.dir, { recursive: true, force: true });
  }
}

async function makeWorld(): Promise<World> {
  const dir = mkdtempSync(join(tmpdir(), 'lazydisk-bench-read-'));
  const cache = await DiskCache.open({ dir, capBytes: DISK_BYTES });
  await cache.recovered();
  const chunks: EncodedChunk[] = [];
  const salt = Buffer.from('bench');
  const plains = machineChunks(DISK_BYTES / CHUNK_BYTES);
  const worker = async () => {
    for (const plain of plains) {
      const chunk = encodeChunk(plain, salt);
      await cache.put(chunk.id, chunk.sealed);
      chunks.push(chunk);
    }
  };
  await Promise.all([worker(), worker(), worker(), worker()]);
  const refs = chunks.map(({ id, key, sealed }) => ({ id, key, sealedBytes: sealed.length }));
  const map: ChunkMap = {
    diskBytes: chunks.length * CHUNK_BYTES,
    storedChunks: chunks.length,
    entryOf: (index) => index,
    indexOf: (entry) => entry,
    ref: (entry) => refs[entry]!,
  };
  return { dir, chunks, map, cache };
}

/** Up to `count` whole chunks from the larger files of this machine's programs and libraries, no file twice. */
function* machineChunks(count: number): Generator<Buffer> {
  const seen = new Set<number>();
  let left = count;
  for (const path of filesBelow('/usr/bin', '/usr/lib')) {
    const { size, ino } = lstatSync(path);
    if (size < CHUNK_BYTES || seen.has(ino)) continue;
    seen.add(ino);
    const fd = openSync(path, 'r');
    try {
      for (let at = 0; at + CHUNK_BYTES <= size; at += CHUNK_BYTES) {
        const plain = Buffer.alloc(CHUNK_BYTES);
        readSync(fd, plain, 0, CHUNK_BYTES, at);
        yield plain;
        if (--left === 0) return;
      }
    } finally {
      closeSync(fd);
    }
  }
}

/** Lazily, because a full listing would take longer than the benchmark. */
function* filesBelow(...dirs: string[]): Generator<string> {
  for (const dir of dirs) {
    for (const entry of readdirSync(dir, { withFileTypes: true })) {
      const path = join(dir, entry.name);
      if (entry.isDirectory()) yield* filesBelow(path);
      else if (entry.isFile()) yield path;
    }
  }
}

/** A drive as the daemon makes it, with empty memory. Its `close` leaves the cache open. */
async function openDrive({ map, cache }: World) {
  const memory = new ChunkMemory({ capacityBytes: MEMORY_BYTES });
  // A daemon touches its memory only once, so that is not measured.
  const slots = await Promise.all(
    Array.from({ length: memory.slots }, () => memory.reserve({ class: 'demand', deadline: Infinity })),
  );
  for (const slot of slots) {
    slot.bytes.fill(1);
    memory.cancel(slot);
  }
  const lent = new LimitTier(new DiskTier(cache, { timeoutMs: 1_000 }), { concurrency: 32 });
  lent.close = async () => {};
  const reader = new ChunkReader({ memory, tiers: [lent], observer: silentObserver });
  const image = { digest: 'sha256:bench', manifest: map };
  const drive = new Drive({ name: 'bench', image, reader, readTimeoutMs: 25_000 });
  const close = async () => {
    drive.close();
    await reader.close();
  };
  return { drive, close };
}

async function fourKibFromMemory(world: World): Promise<number> {
  const { drive, close } = await openDrive(world);
  const hotBytes = MEMORY_BYTES / 2;
  for (let at = 0; at < hotBytes; at += CHUNK_BYTES) (await drive.read(at, CHUNK_BYTES)).release();
  const OPERATIONS = 1_000_000;
  let best = 0;
  for (let run = 0; run < RUNS; run++) {
    const startedAt = performance.now();
    let seed = 1;
    for (let n = 0; n < OPERATIONS; n++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      const bytes = drive.tryRead(Math.floor((seed / 2 ** 32) * (hotBytes / 4096)) * 4096, 4096);
      if (!bytes) throw new Error('not in memory');
      bytes.release();
    }
    best = Math.max(best, (OPERATIONS / (performance.now() - startedAt)) * 1000);
  }
  await close();
  return best;
}

/** GB/s of decoded bytes, into as much memory as a drive has: a few targets would stay in the processor's cache. */
async function decodeAlone({ chunks }: World): Promise<number> {
  const memory = Buffer.alloc(MEMORY_BYTES, 1);
  let next = 0;
  const startedAt = performance.now();
  const worker = async () => {
    for (let chunk = chunks[next++]; chunk; chunk = chunks[next++]) {
      const { id, key, sealed } = chunk;
      const at = (next * CHUNK_BYTES) % MEMORY_BYTES;
      const target = memory.subarray(at, at + CHUNK_BYTES);
      const status = await new Promise<number>((resolve) =>
        openChunk(sealed, Buffer.from(id, 'hex'), key, target, resolve),
      );
      if (status !== OPEN_OK) throw new Error(`status ${status}`);
    }
  };
  await Promise.all(Array.from({ length: DECODES }, worker));
  return (chunks.length * CHUNK_BYTES) / (performance.now() - startedAt) / 1e6;
}

/** GB/s of one reader with one request at a time: all parallelism comes from readahead. */
async function readInSequence(world: World): Promise<number> {
  const { drive, close } = await openDrive(world);
  const startedAt = performance.now();
  for (let at = 0; at < drive.sizeBytes; at += REQUEST_BYTES) {
    const bytes = drive.tryRead(at, REQUEST_BYTES) ?? (await drive.read(at, REQUEST_BYTES));
    bytes.release();
  }
  const seconds = (performance.now() - startedAt) / 1000;
  await close();
  return drive.sizeBytes / seconds / 1e9;
}

if (import.meta.main) process.stdout.write(formatRows(await benchReadPath()));
