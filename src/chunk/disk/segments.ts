/**
 * The books of the disk cache: which record lies in which segment, which segment is written, free or next to
 * go. No I/O. The trick is the spare: one segment is always free or on its way to be, so that a writer never
 * waits for an eviction, and a reader is never overwritten, because a segment is free only when its last user
 * has left.
 */
import type { ChunkId } from '../../format/chunk-id.ts';

/** One record that can be read. The object's identity says whether an id still means this very copy. */
export interface Entry {
  readonly id: ChunkId;
  readonly segment: number;
  /** Offset of the record header in its segment. */
  readonly offset: number;
  readonly sealedBytes: number;
  /** Reads since it was appended, saturating at HITS_MAX. */
  hits: number;
}

/** A record read this often before its segment is evicted is worth keeping (as in LRU-2, a scan reads it once). */
const HITS_TO_KEEP = 2;
const HITS_MAX = 0xffff;

export interface Segment {
  readonly number: number;
  /** 0: never used. Higher is younger. */
  sequence: number;
  usedBytes: number;
  /** Reads and writes in flight; it is not reused before they end. */
  users: number;
  state: 'free' | 'active' | 'full' | 'evicting';
  /** Ids appended to it, some of which may live elsewhere by now. */
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

  /** A read or a write of this segment has ended. */
  unpin(segment: Segment): void {
    segment.users--;
    if (segment.users === 0) this.#drained.get(segment)?.();
  }

  /**
   * Takes a record into the index; a younger copy of one id replaces an older one. False if its segment is about to be
   * reused: a write that ends so late would leave an entry behind that means whatever is written there next.
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

  /** Forgets this copy (and no other copy of the same id). */
  remove(entry: Entry): boolean {
    if (this.#index.get(entry.id) !== entry) return false;
    return this.#index.delete(entry.id);
  }

  /** After a load or a scan: what has records is full, and numbering goes on behind the youngest. */
  adopt(): void {
    for (const segment of this.list) {
      if (segment.sequence > this.#sequence) this.#sequence = segment.sequence;
      if (segment.usedBytes > 0) segment.state = 'full';
    }
  }

  /**
   * Room for a record of `bytes` in the segment being written, moving on to a free one when it is full; the
   * segment is pinned for the write. Undefined while none is free: the caller drops what it wanted to write.
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

  /** The oldest full segment, now evicting, if none is free and none is on its way; else undefined. */
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
   * Splits what lives in a segment that is evicted: what was read HITS_TO_KEEP times, most read first, up to
   * `keepBytesMax`, is returned and stays readable; the rest is forgotten and counted.
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

  /** Forgets what is left of it, waits for its last user, and makes it free. */
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
