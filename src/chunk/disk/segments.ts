/**
 * The bookkeeping of the disk cache: which record is in which segment, and which segment is being written, free or next
 * to evict. No I/O. One segment is always free or being freed, so a writer never waits for an eviction. A segment is
 * free only once its last user has left, so no reader sees it overwritten.
 */
import type { ChunkId } from '../../format/chunk-id.ts';

/** One readable record. The object's identity says whether an id still means this copy. */
export interface Entry {
  readonly id: ChunkId;
  readonly segment: number;
  /** Offset of the record header in its segment. */
  readonly offset: number;
  readonly sealedBytes: number;
  /** Reads since it was appended, saturating at HITS_MAX. */
  hits: number;
}

/** A record with this many reads before its segment is evicted is kept (as in LRU-2; a scan reads a record once). */
const HITS_TO_KEEP = 2;
const HITS_MAX = 0xffff;

export interface Segment {
  readonly number: number;
  /** 0: never used. Higher is younger. */
  sequence: number;
  usedBytes: number;
  /** Reads and writes in flight; it is not reused until they finish. */
  users: number;
  state: 'free' | 'active' | 'full' | 'evicting';
  /** Ids appended to it, some of which may be in other segments by now. */
  ids: ChunkId[];
}

export class Segments {
  readonly list: Segment[];
  readonly #index = new Map<ChunkId, Entry>();
  readonly #segmentBytes: number;
  readonly #drained = new Map<Segment, () => void>();
  #active: Segment | undefined;
  #sequence = 0;

  constructor(count: number, segmentBytes: number) {
    this.#segmentBytes = segmentBytes;
    this.list = Array.from({ length: count }, (_, number) => ({
      number,
      sequence: 0,
      usedBytes: 0,
      users: 0,
      state: 'free' as const,
      ids: [],
    }));
  }

  get entries(): number {
    return this.#index.size;
  }

  /** Every entry, for saving. */
  all(): IterableIterator<Entry> {
    return this.#index.values();
  }

  get(id: ChunkId): Entry | undefined {
    return this.#index.get(id);
  }

  /** Counts a read of `entry` and keeps its segment from being reused until `unpin`. */
  hold(entry: Entry): Segment {
    if (entry.hits < HITS_MAX) entry.hits++;
    const segment = this.list[entry.segment]!;
    segment.users++;
    return segment;
  }

  /** A read or write of this segment has finished. */
  unpin(segment: Segment): void {
    segment.users--;
    if (segment.users === 0) this.#drained.get(segment)?.();
  }

  /**
   * Adds a record to the index; a younger copy of the same id replaces an older one. False if its segment is about to
   * be reused: an entry for such a late write would point at whatever is written there next.
   */
  add(entry: Entry): boolean {
    const segment = this.list[entry.segment]!;
    if (segment.state === 'evicting') return false;
    const known = this.#index.get(entry.id);
    if (known && this.list[known.segment]!.sequence > segment.sequence) return true;
    this.#index.set(entry.id, entry);
    segment.ids.push(entry.id);
    return true;
  }

  /** Forgets this copy, but no other copy of the same id. */
  remove(entry: Entry): boolean {
    if (this.#index.get(entry.id) !== entry) return false;
    return this.#index.delete(entry.id);
  }

  /** After a load or a scan: segments with records are full, and numbering continues after the youngest. */
  adopt(): void {
    for (const segment of this.list) {
      if (segment.sequence > this.#sequence) this.#sequence = segment.sequence;
      if (segment.usedBytes > 0) segment.state = 'full';
    }
  }

  /**
   * Room for a record of `bytes` in the segment being written, moving on to a free one when it is full; the segment is
   * pinned for the write. Undefined while none is free: the caller then drops the record.
   */
  reserve(bytes: number): { segment: Segment; offset: number } | undefined {
    if (!this.#active || this.#active.usedBytes + bytes > this.#segmentBytes) {
      const next = this.list.find((segment) => segment.state === 'free');
      if (!next) return undefined;
      if (this.#active) this.#active.state = 'full';
      next.state = 'active';
      next.sequence = ++this.#sequence;
      next.usedBytes = 0;
      next.ids = [];
      this.#active = next;
    }
    const offset = this.#active.usedBytes;
    this.#active.usedBytes += bytes;
    this.#active.users++;
    return { segment: this.#active, offset };
  }

  /** Marks the oldest full segment as evicting and returns it, if none is free or being freed; otherwise undefined. */
  beginEviction(): Segment | undefined {
    let oldest: Segment | undefined;
    for (const segment of this.list) {
      if (segment.state === 'free' || segment.state === 'evicting') return undefined;
      if (segment.state === 'full' && (!oldest || segment.sequence < oldest.sequence)) oldest = segment;
    }
    if (oldest) oldest.state = 'evicting';
    return oldest;
  }

  /**
   * Splits the live records of a segment being evicted. Those read at least HITS_TO_KEEP times, most read first, up to
   * `keepBytesMax`, are returned and stay readable; the rest are forgotten and counted.
   */
  condemn(segment: Segment, keepBytesMax: number): { keep: Entry[]; evicted: number } {
    const live: Entry[] = [];
    for (const id of segment.ids) {
      const entry = this.#index.get(id);
      if (entry && entry.segment === segment.number) live.push(entry);
    }
    live.sort((a, b) => b.hits - a.hits);
    const keep: Entry[] = [];
    let keptBytes = 0;
    for (const entry of live) {
      keptBytes += entry.sealedBytes;
      if (entry.hits >= HITS_TO_KEEP && keptBytes <= keepBytesMax) keep.push(entry);
      else this.#index.delete(entry.id);
    }
    return { keep, evicted: live.length - keep.length };
  }

  /** Forgets the segment's remaining records, waits for its last user, and frees it. */
  async finishEviction(segment: Segment): Promise<void> {
    for (const id of segment.ids) {
      if (this.#index.get(id)?.segment === segment.number) this.#index.delete(id);
    }
    segment.ids = [];
    if (segment.users > 0) await new Promise<void>((resolve) => this.#drained.set(segment, resolve));
    this.#drained.delete(segment);
    segment.usedBytes = 0;
    segment.state = 'free';
  }
}
