/**
 * The second part of fsck: lists every chunk folder in every area, which tells what exists and how long it is without
 * reading it; and reads and verifies a sample. A sample is a range of ids, because ids are spread evenly. It begins
 * where the sample of the previous seed ends, so that a hundred runs of 1 % have read everything.
 */
import { pooled } from '../../async/pooled.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import type { ObjectInfo } from '../objects/object-store.ts';
import { type AreaPath, chunkKey, chunksPrefix, meaningOf, SHARDS } from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { Area, View } from '../roots/view.ts';
import {
  isNeeded,
  LATE,
  LEASED,
  type LiveChunks,
  lengthOf,
  NEEDED,
  NEEDED_DRAINING,
  SEEN,
  SUSPECT,
  TRASHED,
} from './live-chunks.ts';
import { EXAMPLES_MAX } from './report.ts';
import { isChunk, readObject } from './source.ts';
import { type ShardResult, type StateFile, SUSPECTS_MAX } from './state.ts';

/** Folders scanned at once, and reads in each. */
const SHARDS_MAX = 8;
const READS_MAX = 2;

export interface ScanOptions {
  readonly nowMs: number;
  onProgress?(done: number, total: number): void;
  readonly signal: AbortSignal | undefined;
}

/**
 * What an area is to the chunks in it: where readers look, trash that a sweep restores from, or only due for a purge.
 */
type Role = 'active' | 'draining' | 'trash' | 'other';

export class ChunkScan {
  readonly #parts: StoreParts;
  readonly #view: View;
  readonly #live: LiveChunks;
  readonly #file: StateFile;
  readonly #options: ScanOptions;
  /** Folders that were skipped, because an earlier run has seen all of these chunks there. */
  readonly skipped = new Uint8Array(SHARDS.length);
  /** Results of folders with more findings than a state holds. */
  readonly #overfull: ShardResult[] = [];
  #done = 0;

  constructor(parts: StoreParts, view: View, live: LiveChunks, file: StateFile, options: ScanOptions) {
    this.#parts = parts;
    this.#view = view;
    this.#live = live;
    this.#file = file;
    this.#options = options;
  }

  /** Puts results into the state, and suspect and absent chunks into the live chunks. Throws UNAVAILABLE, ABORTED. */
  async run(): Promise<void> {
    await pooled(SHARDS_MAX, SHARDS.entries(), async ([at, shard]) => {
      const { shards } = this.#file.state;
      const before = shards[shard];
      for (const id of before?.suspects ?? [])
        if (isNeeded(this.#live.flags(id as ChunkId))) this.#live.suspect(id as ChunkId);
      if (before && before.absent === 0 && before.mix === this.#live.mix(at)) {
        this.skipped[at] = 1;
        this.#progress(this.#live.needed(at));
        return;
      }
      const result = await this.#scan(at, shard, before);
      if (result.suspects.length > SUSPECTS_MAX) this.#overfull.push(result);
      else shards[shard] = result;
      await this.#file.save();
    });
  }

  /** The findings in all folders. */
  results(): ShardResult[] {
    const { shards } = this.#file.state;
    return [...SHARDS.flatMap((shard) => shards[shard] ?? []), ...this.#overfull];
  }

  #progress(chunks: number): void {
    this.#done += chunks;
    this.#options.onProgress?.(this.#done, this.#live.needed());
  }

  /** What an earlier run read is only listed again, because chunks were absent then, or names have changed since. */
  async #scan(at: number, shard: string, before: ShardResult | undefined): Promise<ShardResult> {
    const result: ShardResult = {
      mix: this.#live.mix(at),
      absent: 0,
      found: 0,
      suspects: [...(before?.suspects ?? [])],
      readChunks: before?.readChunks ?? 0,
      readBytes: before?.readBytes ?? 0,
      inTrash: 0,
      leased: { chunks: 0, bytes: 0 },
      young: { chunks: 0, bytes: 0 },
      garbage: { chunks: 0, bytes: 0 },
      foreign: { objects: 0, bytes: 0, examples: [] },
    };
    // In lookup order: a chunk seen in an earlier area is not needed in a later one.
    for (const area of this.#view.areas) {
      const role = this.#roleOf(area);
      for await (const page of this.#parts.objects.list(chunksPrefix(area.path, shard))) {
        this.#options.signal?.throwIfAborted();
        await this.#scanPage(page, area.path, role, result, before === undefined);
      }
    }
    result.absent = this.#live.absent(at);
    this.#progress(result.absent);
    return result;
  }

  #roleOf(area: Area): Role {
    if (area === this.#view.active) return 'active';
    if (area === this.#view.draining) return 'draining';
    const isTrash = area.path.startsWith('trash/');
    const roots = [this.#view.active.root, this.#view.draining?.root];
    return isTrash && roots.includes(area.root) ? 'trash' : 'other';
  }

  async #scanPage(
    page: readonly ObjectInfo[],
    area: AreaPath,
    role: Role,
    result: ShardResult,
    withContent: boolean,
  ): Promise<void> {
    const toRead: ChunkId[] = [];
    let found = 0;
    for (const info of page) {
      const meaning = meaningOf(info.key);
      if (meaning?.kind !== 'chunk') countForeign(result, info);
      else if (this.#isFound(meaning.id, info, role, result)) {
        found++;
        const isWell = !(this.#live.flags(meaning.id) & SUSPECT);
        if (withContent && isWell && this.#isSampled(meaning.id)) toRead.push(meaning.id);
      }
    }
    result.found += found;
    await pooled(READS_MAX, toRead, (id) => this.#prove(area, id, result));
    this.#progress(found);
  }

  /** Records a chunk. True if it is the one that readers of its image would get. */
  #isFound(id: ChunkId, info: ObjectInfo, role: Role, result: ShardResult): boolean {
    const flags = this.#live.flags(id);
    if (!isNeeded(flags)) {
      if (role !== 'active') return false;
      const isYoung = flags & LATE || info.modifiedMs >= this.#options.nowMs - this.#parts.policy.graceMs;
      const counted = flags & LEASED ? result.leased : isYoung ? result.young : result.garbage;
      counted.chunks++;
      counted.bytes += info.sizeBytes;
      return false;
    }
    const isHere = role === 'active' || (role === 'draining' && flags & NEEDED_DRAINING && !(flags & NEEDED));
    if (flags & (SEEN | TRASHED) || !(isHere || role === 'trash')) return false;
    if (info.sizeBytes !== lengthOf(flags)) this.#suspect(id, result);
    this.#live.note(id, isHere ? SEEN : TRASHED);
    if (!isHere) result.inTrash++;
    return true;
  }

  #isSampled(id: ChunkId): boolean {
    const { sample, seed } = this.#file.state;
    // Not the digits that name folders, so that a sample is spread over all folders.
    const word = Number.parseInt(id.slice(8, 16), 16);
    const [from, to] = [sampleStart(sample, seed), sampleStart(sample, seed + 1)];
    const isInside = from <= to ? word >= from && word < to : word >= from || word < to;
    return sample >= 1 || isInside;
  }

  async #prove(area: AreaPath, id: ChunkId, result: ShardResult): Promise<void> {
    this.#options.signal?.throwIfAborted();
    const bytes = await readObject(this.#parts.objects, chunkKey(area, id), SEALED_BYTES_MAX);
    result.readChunks++;
    if (typeof bytes !== 'string') result.readBytes += bytes.length;
    if (typeof bytes === 'string' || !isChunk(bytes, id)) this.#suspect(id, result);
  }

  #suspect(id: ChunkId, result: ShardResult): void {
    if (this.#live.flags(id) & SUSPECT) return;
    this.#live.suspect(id);
    if (result.suspects.length <= SUSPECTS_MAX) result.suspects.push(id);
  }
}

/** Where the sample of `seed` begins among 32-bit numbers; it ends where the next begins. */
function sampleStart(sample: number, seed: number): number {
  return Math.round(((seed * sample) % 1) * 2 ** 32) % 2 ** 32;
}

export function countForeign(
  { foreign }: Pick<ShardResult, 'foreign'>,
  { key, sizeBytes }: ObjectInfo,
): void {
  foreign.objects++;
  foreign.bytes += sizeBytes;
  if (foreign.examples.length < EXAMPLES_MAX) foreign.examples.push(key);
}
