/**
 * Decoded chunks in memory: an LRU over the slab's slots. A slot is free, being filled, or cached; a pinned slot is
 * never reused, so a reply can be written straight from it. Chunks are known by id and key together. An id is public
 * (it is visible at the origin and in the clear part of every manifest), so an id alone must not get a tenant the
 * plaintext that another tenant's read left here.
 *
 * The memory is shared fairly between drives: a drive with more than an equal share gives up its own chunks for those that
 * it fetches, provided they are near the end of the LRU. So a guest that reads all over a large disk evicts little of what
 * the others use.
 */
import { hash } from 'node:crypto';
import { LRUCache } from 'lru-cache';
import { deadlineError } from '../async/deadline.ts';
import type { ReadContext } from '../async/read-context.ts';
import { ownersOf, UrgencyQueue } from '../async/urgency-queue.ts';
import { CHUNK_BYTES, type ChunkRef } from '../format/chunk-id.ts';
import type { HitMap } from './hit-map.ts';
import { Slab, type Slot } from './slab.ts';

/** How many of the least recently used chunks are searched for one of the drive's own. */
const OWN_FIRST_MAX = 256;

/**
 * How soon a slot that a native thread held is tried again. Such a thread holds a slot only while it sends from it,
 * without waiting.
 */
const CLAIM_RETRY_MS = 1;

const memoryKeys = new WeakMap<ChunkRef, string>();

/** The key of a chunk in memory: a digest of id and chunk key, computed once for each ref object. */
export function memoryKey(ref: ChunkRef): string {
  let key = memoryKeys.get(ref);
  if (key === undefined) {
    key = hash('sha256', Buffer.concat([Buffer.from(ref.id, 'hex'), ref.key]), 'base64');
    memoryKeys.set(ref, key);
  }
  return key;
}

export interface ChunkMemoryOptions {
  /** The most that decoded chunks take up, rounded down to whole chunks. */
  readonly capacityBytes: number;
}

export interface ChunkMemoryStats {
  readonly capacityBytes: number;
  readonly cachedBytes: number;
  readonly pinnedBytes: number;
  /** Slots that are being filled. */
  readonly filling: number;
  /** Fills waiting for a slot. */
  readonly waiting: number;
  readonly evictions: number;
}

export class ChunkMemory {
  readonly #slab: Slab;
  readonly #cached: LRUCache<string, Slot>;
  /** At most as long as there are fills, whose number the reader bounds. */
  readonly #queue = new UrgencyQueue<Slot>(() => {});
  /** The number of cached chunks, by the drive that they were cached for. */
  readonly #held = new Map<string, number>();
  readonly #crowdedSlots: number;
  readonly #prefetchFreeSlots: number;
  #filling = 0;
  #evictions = 0;
  #isRetryPlanned = false;

  /** Throws USAGE for a capacity under one chunk, UNAVAILABLE if the memory cannot be allocated. */
  constructor(options: ChunkMemoryOptions) {
    this.#slab = new Slab(options.capacityBytes);
    this.#slab.onIdle = (slot) => this.#idle(slot);
    this.#crowdedSlots = this.slots / 2;
    this.#prefetchFreeSlots = this.slots / 8;
    // Never evicts by itself: it has as many entries as slots, and a slot is taken before an entry is made.
    this.#cached = new LRUCache({ max: this.slots });
  }

  /** How many chunks fit. */
  get slots(): number {
    return this.#slab.slots.length;
  }

  get freeSlots(): number {
    return this.#slab.freeSlots;
  }

  /**
   * True while over half of the slots are pinned. Code that would hold bytes for long (a reply to a slow client) must
   * then copy them out, so that slow holders never starve the fills of slots.
   */
  get crowded(): boolean {
    return this.#slab.pinnedSlots > this.#crowdedSlots;
  }

  /** Chunks that native threads read from here. */
  get hitMapReads(): number {
    return this.#slab.residency?.reads ?? 0;
  }

  /**
   * For a drive of `chunks` chunks, all zero except at the indices `stored`. The drive publishes there the slots of
   * chunks that it got from here.
   */
  hitMap(chunks: number, stored: Iterable<number>): HitMap {
    return this.#slab.hitMap(chunks, stored);
  }

  /** The chunk, pinned once for the caller and now most recently used; undefined if it is not here. */
  get(key: string): Slot | undefined {
    return this.#cached.get(key)?.pin();
  }

  /** Whether the chunk is here; changes nothing. */
  has(key: string): boolean {
    return this.#cached.has(key);
  }

  /**
   * A slot to fill: a free one, or that of the least recently used chunk. While all are pinned or being filled, waits
   * in a fair queue. The slot must then go to `commit` or `cancel`. Rejects with TIMEOUT, ABORTED.
   */
  reserve(ctx: ReadContext): Promise<Slot> {
    const slot = this.#slab.take() ?? this.#evict(ownersOf(ctx)[0]);
    if (slot) {
      this.#filling++;
      return Promise.resolve(slot);
    }
    return this.#queue.wait(ctx, (why) => deadlineError(why, 'memory: no slot became free'));
  }

  /**
   * The slot is filled: from now on it is found by `key`. Returns the slot that holds the chunk, pinned once for the
   * caller; it is another slot when another fill was quicker. When memory is nearly full, a prefetched chunk is not
   * kept once its pins are gone, so that prefetching never pushes out what guests have read.
   */
  commit(key: string, slot: Slot, ctx: Pick<ReadContext, 'class' | 'drive' | 'drives'>): Slot {
    const known = this.get(key);
    if (known) {
      this.cancel(slot);
      return known;
    }
    this.#filling--;
    slot.pin();
    if (ctx.class === 'prefetch' && this.#slab.freeSlots < this.#prefetchFreeSlots) return slot;
    slot.key = key;
    slot.owner = ownersOf(ctx)[0] ?? '';
    this.#held.set(slot.owner, (this.#held.get(slot.owner) ?? 0) + 1);
    this.#cached.set(key, slot);
    return slot;
  }

  /** The slot was not filled, or its content must not be kept. */
  cancel(slot: Slot): void {
    this.#filling--;
    this.#handOn(slot);
  }

  stats(): ChunkMemoryStats {
    return {
      capacityBytes: this.slots * CHUNK_BYTES,
      cachedBytes: this.#cached.size * CHUNK_BYTES,
      pinnedBytes: this.#slab.pinnedSlots * CHUNK_BYTES,
      filling: this.#filling,
      waiting: this.#queue.size,
      evictions: this.#evictions,
    };
  }

  /**
   * Removes the least recently used slot without a holder from the cache and returns it; one of `owner` first, if that
   * drive has more than its share and has one near enough to the end of the LRU.
   */
  #evict(owner = ''): Slot | undefined {
    const isOver = (this.#held.get(owner) ?? 0) * this.#held.size > this.slots;
    let { victim } = isOver ? this.#claimOldest(OWN_FIRST_MAX, owner) : {};
    if (!victim) {
      const { victim: unused, used, isHeld } = this.#claimOldest(this.slots);
      victim = unused ?? used.find((slot) => slot.claim());
      if (!victim && (isHeld || used.length > 0)) this.#retryLater();
    }
    if (victim) this.#forget(victim);
    return victim;
  }

  /**
   * Claims the least recently used slot without a holder among the last `looksMax` of the LRU; only one of `owner`, if
   * given. The LRU does not see reads by native threads, so slots that they used get a second chance: they become the
   * most recently used.
   */
  #claimOldest(looksMax: number, owner?: string): { victim?: Slot; used: Slot[]; isHeld: boolean } {
    const used: Slot[] = [];
    let victim: Slot | undefined;
    let isHeld = false;
    let looks = 0;
    for (const slot of this.#cached.rvalues()) {
      if (++looks > looksMax) break;
      if (!slot || slot.pinned || (owner !== undefined && slot.owner !== owner)) continue;
      if (slot.takeUsed()) used.push(slot);
      else if (slot.claim()) victim = slot;
      else isHeld = true;
      if (victim) break;
    }
    for (const slot of used) this.#cached.get(slot.key!);
    return { ...(victim && { victim }), used, isHeld };
  }

  /** A native thread held a slot that was wanted, and does not notify us when it lets go. */
  #retryLater(): void {
    if (this.#isRetryPlanned) return;
    this.#isRetryPlanned = true;
    setTimeout(() => {
      this.#isRetryPlanned = false;
      if (this.#queue.size === 0) return;
      const slot = this.#evict();
      if (slot) this.#handOn(slot);
    }, CLAIM_RETRY_MS);
  }

  #forget(slot: Slot): void {
    this.#cached.delete(slot.key!);
    slot.key = undefined;
    const held = this.#held.get(slot.owner)! - 1;
    if (held > 0) this.#held.set(slot.owner, held);
    else this.#held.delete(slot.owner);
    this.#evictions++;
  }

  #idle(slot: Slot): void {
    if (slot.key !== undefined) {
      if (this.#queue.size === 0) return;
      if (!slot.claim()) {
        this.#retryLater();
        return;
      }
      this.#forget(slot);
    }
    this.#handOn(slot);
  }

  #handOn(slot: Slot): void {
    const next = this.#queue.next();
    if (!next) {
      this.#slab.give(slot);
      return;
    }
    this.#filling++;
    next.give(slot);
  }
}
