/**
 * Garbage collection and fsck on stores of a million and ten million chunks. The chunks exist only as a rule: objects
 * are generated when they are asked for, so that all measured memory is ours. Each row is a separate process. The store
 * answers at once, so the rates are the cost of our side; with a real store, its listings dominate.
 */
import { execFileSync } from 'node:child_process';
import { createHash, randomFillSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { CHUNK_BYTES, type ChunkId } from '../../src/format/chunk-id.ts';
import type { ImageDigest } from '../../src/format/image-digest.ts';
import { ClearManifest } from '../../src/format/manifest-clear.ts';
import {
  CLEAR,
  CLEAR_HEADER_BYTES,
  clearBytesOf,
  KEY_ENTRY_BYTES,
  MAGIC,
  SEAL,
  SEAL_HEADER_BYTES,
  SEAL_TAG_BYTES,
} from '../../src/format/manifest-layout.ts';
import { fsck } from '../../src/store/fsck/fsck.ts';
import { mark } from '../../src/store/gc/mark.ts';
import { sweep } from '../../src/store/gc/sweep.ts';
import type { ObjectInfo, ObjectStore } from '../../src/store/objects/object-store.ts';
import { chunkKey, manifestKey, referenceKey, SHARDS, stateKey } from '../../src/store/roots/layout.ts';
import { DEFAULT_POLICY } from '../../src/store/roots/policy.ts';
import { RootStore } from '../../src/store/roots/root-store.ts';
import { formatRows, type Row } from './row.ts';

const CHUNKS_AN_IMAGE = 20_000;
const PAGE = 1000;
const SEALED_BYTES = 180_000;
const KEY_ID = '0123456789abcdef';
const ROOT = 'roots/1';

/** The id of chunk `n`: its last byte gives the folder, and the rest is mixed, like a hash's. */
function writeId(into: Buffer, at: number, n: number): void {
  into[at] = n & 0xff;
  let state = Math.imul(n, 0x9e3779b1);
  for (let word = 0; word < 8; word++) {
    state = Math.imul(state ^ (state >>> 15), 0x85ebca6b) + 0x6d2b79f5;
    into.writeInt32LE(state ^ (state >>> 13), at + (word === 7 ? 28 : 1 + word * 4));
  }
}

function idOf(n: number, scratch: Buffer): ChunkId {
  writeId(scratch, 0, n);
  return scratch.toString('hex', 0, 32) as ChunkId;
}

/** A store of `chunks` chunks in images of CHUNKS_AN_IMAGE chunks each, each with a name. */
class RuleStore implements ObjectStore {
  readonly url = 'rule://store';
  readonly isWritable = true;
  readonly #chunks: number;
  /** Objects that are few: names, markers, and what is written. */
  readonly #small = new Map<string, Buffer>();
  readonly #images = new Map<ImageDigest, number>();

  constructor(chunks: number) {
    this.#chunks = chunks;
    for (let image = 0; image * CHUNKS_AN_IMAGE < chunks; image++) {
      const { digest } = new ClearManifest(this.#manifest(image));
      this.#images.set(digest, image);
      const [name, updated] = [`image-${image}:1`, '2026-01-01T00:00:00.000Z'];
      const text = JSON.stringify({ version: 1, name, digest, updated, begun: updated });
      this.#small.set(referenceKey(ROOT, 'references', name), Buffer.from(text));
    }
    this.#small.set(stateKey(ROOT, 'opened'), Buffer.alloc(0));
  }

  async get(key: string) {
    const bytes = key.includes('/manifests/') ? this.#manifest(this.#imageOf(key)) : this.#small.get(key);
    return bytes && { bytes, version: '' };
  }

  async head(key: string) {
    const bytes = this.#small.get(key);
    return bytes && { key, sizeBytes: bytes.length, modifiedMs: Date.now() };
  }

  async put(key: string, bytes: Uint8Array): Promise<void> {
    this.#small.set(key, Buffer.from(bytes));
  }

  async *list(prefix: string): AsyncIterable<readonly ObjectInfo[]> {
    if (prefix.startsWith(`${ROOT}/chunks/`)) yield* this.#listChunks(prefix);
    else if (prefix.startsWith(`${ROOT}/manifests/`)) {
      for (const digest of this.#images.keys()) {
        const key = manifestKey(ROOT, digest, KEY_ID);
        if (key.startsWith(prefix)) yield [{ key, sizeBytes: 1, modifiedMs: 0 }];
      }
    } else {
      const keys = [...this.#small.keys()].filter((key) => key.startsWith(prefix));
      yield keys.map((key) => ({ key, sizeBytes: 1, modifiedMs: 0 }));
    }
  }

  async copy(): Promise<boolean> {
    return false;
  }

  async delete(): Promise<void> {}

  async nowMs(): Promise<number> {
    return Date.now();
  }

  async canCompareAndSet(): Promise<boolean> {
    return false;
  }

  async close(): Promise<void> {}

  *#listChunks(prefix: string): Iterable<ObjectInfo[]> {
    const shard = SHARDS.indexOf(prefix.slice(-3, -1));
    if (shard === -1) return;
    const scratch = Buffer.alloc(33);
    let page: ObjectInfo[] = [];
    for (let n = shard; n < this.#chunks; n += 256) {
      const key = chunkKey(ROOT, idOf(n, scratch));
      if (page.push({ key, sizeBytes: SEALED_BYTES, modifiedMs: 0 }) < PAGE) continue;
      yield page;
      page = [];
    }
    yield page;
  }

  #imageOf(key: string): number {
    return this.#images.get(`sha256:${key.split('/').at(-2)}`)!;
  }

  #manifest(image: number): Buffer {
    const first = image * CHUNKS_AN_IMAGE;
    const count = Math.min(CHUNKS_AN_IMAGE, this.#chunks - first);
    const clear = clearBytesOf(count);
    const bodyBytes = count * KEY_ENTRY_BYTES + 2;
    const bytes = Buffer.alloc(clear + SEAL_HEADER_BYTES + bodyBytes + SEAL_TAG_BYTES);
    MAGIC.copy(bytes);
    bytes.writeUInt32LE(1, CLEAR.version);
    bytes.writeUInt32LE(CHUNK_BYTES, CLEAR.chunkBytes);
    bytes.writeBigUInt64LE(BigInt(CHUNKS_AN_IMAGE * CHUNK_BYTES), CLEAR.diskBytes);
    bytes.writeUInt32LE(count, CLEAR.storedChunks);
    for (const field of [CLEAR.writerVersion, CLEAR.encoderVersion, CLEAR.domain])
      bytes.write('bench', field);
    for (let entry = 0; entry < count; entry++) {
      bytes.writeUInt32LE(entry, CLEAR_HEADER_BYTES + 4 * entry);
      bytes.writeUInt32LE(SEALED_BYTES, CLEAR_HEADER_BYTES + 4 * (count + entry));
      writeId(bytes, CLEAR_HEADER_BYTES + 8 * count + 32 * entry, first + entry);
    }
    bytes.write(KEY_ID, clear + SEAL.keyId);
    bytes.writeUInt32LE(bodyBytes, clear + SEAL.bodyBytes);
    return bytes;
  }
}

type Work = 'nothing' | 'mark' | 'sweep' | 'fsck' | 'content';

interface Measured {
  readonly seconds: number;
  readonly peakMib: number;
}

/** Runs in a separate process. */
async function measure(work: Work, chunks: number): Promise<Measured> {
  const objects = new RuleStore(chunks);
  await objects.put('lazydisk-store.json', storeMarker());
  const { parts } = await RootStore.open(objects);
  const started = performance.now();
  if (work === 'mark') {
    const { chunks: live } = await mark(parts, await parts.views.newerThan(0), {
      nowMs: Date.now(),
      unnamedSinceMs: Date.now(),
    });
    if (live.size !== chunks) throw new Error(`${live.size} of ${chunks} chunks are alive`);
  } else if (work === 'sweep') {
    const { keptChunks } = await sweep(parts, { dryRun: true });
    if (keptChunks !== chunks) throw new Error(`${keptChunks} of ${chunks} chunks are kept`);
  } else if (work === 'fsck') {
    const { liveChunks, remaining } = await fsck(parts, { sample: 0 });
    if (liveChunks !== chunks || remaining > 0) throw new Error(`${liveChunks} chunks, ${remaining} damaged`);
  } else if (work === 'content') proveContent(chunks);
  return { seconds: (performance.now() - started) / 1000, peakMib: peakMib() };
}

/** The rate of verifying chunks that are already in memory. */
function proveContent(chunks: number): void {
  const bytes = randomFillSync(Buffer.alloc(SEALED_BYTES));
  for (let n = 0; n < chunks; n++) createHash('sha256').update(bytes).digest('hex');
}

function storeMarker(): Buffer {
  return Buffer.from(JSON.stringify({ kind: 'lazydisk store', version: 4, policy: DEFAULT_POLICY }));
}

function peakMib(): number {
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'latin1'))![1]) / 1024;
}

function inChild(work: Work, chunks: number): Measured {
  const words = [fileURLToPath(import.meta.url), '--measure', work, String(chunks)];
  return JSON.parse(execFileSync(process.execPath, words, { encoding: 'utf8' })) as Measured;
}

/** Rates and peak memory of marking, of a sweep that finds nothing, and of a check. */
export async function benchFsckGc(sizes: readonly number[] = [1e6, 1e7]): Promise<Row[]> {
  const rows: Row[] = [];
  for (const chunks of sizes) {
    const size = `${chunks / 1e6} M chunks`;
    const idle = inChild('nothing', chunks).peakMib;
    for (const work of ['mark', 'sweep', 'fsck'] as const) {
      const { seconds, peakMib: peak } = inChild(work, chunks);
      rows.push({ name: `${work}, ${size}`, ours: chunks / seconds, unit: 'chunks/s' });
      rows.push({
        name: `${work}, ${size}, peak memory (${Math.round(idle)} idle)`,
        ours: peak,
        unit: 'MiB',
      });
    }
  }
  const { seconds } = inChild('content', 5_000);
  rows.push({
    name: 'verifying chunks in memory',
    ours: (5_000 * SEALED_BYTES) / seconds / 1e9,
    unit: 'GB/s',
  });
  return rows;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [, , flag, work, chunks] = process.argv;
  if (flag === '--measure') process.stdout.write(JSON.stringify(await measure(work as Work, Number(chunks))));
  else process.stdout.write(formatRows(await benchFsckGc()));
}
