/**
 * A set of ten million chunk ids in little memory: an open-addressed table of 64-bit fingerprints, the first eight
 * bytes of each id, with a small number for each, often used as flags. Ids are SHA-256, so they need no further
 * hashing. Two ids with the same fingerprint count as one: among ten million ids, that is one pair in 400,000 such
 * stores. Garbage collection then keeps a chunk too long, but never loses one.
 */
import { LazydiskError } from '../errors.ts';
import type { ChunkId } from '../format/chunk-id.ts';

const SLOTS_MIN = 1 << 12;
/** Over a gigabyte of ids. */
const SLOTS_MAX = 2 ** 30;

export class IdTable {
  #high: Uint32Array;
  #low: Uint32Array;
  #flags: Uint8Array | Uint32Array;
  #mask: number;
  #size = 0;

  /** A slot takes 8 bytes plus the flags; with 32 `flagBits`, `flag` must not use the topmost. */
  constructor(flagBits: 8 | 32 = 8) {
    this.#high = new Uint32Array(SLOTS_MIN);
    this.#low = new Uint32Array(SLOTS_MIN);
    this.#flags = flagBits === 8 ? new Uint8Array(SLOTS_MIN) : new Uint32Array(SLOTS_MIN);
    this.#mask = SLOTS_MIN - 1;
  }

  /** Number of ids. */
  get size(): number {
    return this.#size;
  }

  /**
   * Adds the id at `offset` of `ids`, binary, with `flags`. False if it was there; then its flags stay as they were.
   */
  add(ids: Buffer, offset: number, flags = 0): boolean {
    const high = ids.readUInt32LE(offset);
    const low = used(ids.readUInt32LE(offset + 4));
    const slot = this.#slotOf(high, low);
    if (this.#low[slot] !== 0) return false;
    this.#high[slot] = high;
    this.#low[slot] = low;
    this.#flags[slot] = flags;
    this.#size++;
    // When over two thirds full, runs of used slots get long.
    if (this.#size * 3 > this.#low.length * 2) this.#grow();
    return true;
  }

  has(id: ChunkId): boolean {
    return this.#low[this.#find(id)] !== 0;
  }

  /** The flags of `id`, or undefined if it is not there. */
  flags(id: ChunkId): number | undefined {
    const slot = this.#find(id);
    return this.#low[slot] === 0 ? undefined : this.#flags[slot];
  }

  /** Sets bits of the flags of `id`, which must be there. */
  flag(id: ChunkId, bits: number): void {
    const slot = this.#find(id);
    if (this.#low[slot] === 0) throw new LazydiskError('INTERNAL', `flags of an id that is not there: ${id}`);
    this.#flags[slot]! |= bits;
  }

  /** As `flags`, for the id at `offset` of `ids`, binary. */
  flagsAt(ids: Buffer, offset: number): number | undefined {
    const slot = this.#slotAt(ids, offset);
    return this.#low[slot] === 0 ? undefined : this.#flags[slot];
  }

  flagAt(ids: Buffer, offset: number, bits: number): void {
    const slot = this.#slotAt(ids, offset);
    if (this.#low[slot] === 0) throw new LazydiskError('INTERNAL', 'flags of an id that is not there');
    this.#flags[slot]! |= bits;
  }

  /** Sets all of the flags of the id at `offset` of `ids`, which must be there. */
  setAt(ids: Buffer, offset: number, flags: number): void {
    const slot = this.#slotAt(ids, offset);
    if (this.#low[slot] === 0) throw new LazydiskError('INTERNAL', 'flags of an id that is not there');
    this.#flags[slot] = flags;
  }

  #find(id: ChunkId): number {
    const high = wordOf(id, 0);
    return this.#slotOf(high, used(wordOf(id, 8)));
  }

  #slotAt(ids: Buffer, offset: number): number {
    return this.#slotOf(ids.readUInt32LE(offset), used(ids.readUInt32LE(offset + 4)));
  }

  /** The slot of the fingerprint, or the free slot where it belongs. */
  #slotOf(high: number, low: number): number {
    let slot = (high ^ low) & this.#mask;
    while (this.#low[slot] !== 0 && (this.#low[slot] !== low || this.#high[slot] !== high))
      slot = (slot + 1) & this.#mask;
    return slot;
  }

  #grow(): void {
    const [high, low, flags] = [this.#high, this.#low, this.#flags];
    const slots = low.length * 2;
    if (slots > SLOTS_MAX) throw new LazydiskError('NO_SPACE', `over ${this.#size} chunk ids in one table`);
    this.#high = new Uint32Array(slots);
    this.#low = new Uint32Array(slots);
    this.#flags = flags instanceof Uint8Array ? new Uint8Array(slots) : new Uint32Array(slots);
    this.#mask = slots - 1;
    for (let old = 0; old < low.length; old++) {
      if (low[old] === 0) continue;
      const slot = this.#slotOf(high[old]!, low[old]!);
      this.#high[slot] = high[old]!;
      this.#low[slot] = low[old]!;
      this.#flags[slot] = flags[old]!;
    }
  }
}

/** The eight hex digits of `id` at `at`, as the little-endian number that their four bytes represent. */
function wordOf(id: ChunkId, at: number): number {
  const big = Number.parseInt(id.slice(at, at + 8), 16);
  return ((big << 24) | ((big & 0xff00) << 8) | ((big >>> 8) & 0xff00) | (big >>> 24)) >>> 0;
}

/** 0 marks a free slot. */
function used(low: number): number {
  return low === 0 ? 1 : low;
}
