/** Which blocks are used: kept as ranges, and turned into a bitmap when a group is written. */
import { BLOCK_BYTES, BLOCKS_PER_GROUP, blocksInGroup, type Geometry } from './geometry.ts';

/** A range as one number, start × LENGTHS + blocks, so that millions sort fast; the largest disk has 2^28 blocks. */
const LENGTHS = 2 ** 24;

export interface UsedRange {
  readonly physical: number;
  /** Fewer than LENGTHS. */
  readonly blocks: number;
}

/** Used ranges [start, end) of blocks, sorted and disjoint. */
export class BlockUsage {
  readonly #geometry: Geometry;
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  /** `ranges` in any order; they may be adjacent but must not overlap. */
  constructor(geometry: Geometry, ranges: Iterable<UsedRange>) {
    this.#geometry = geometry;
    const packed: number[] = [];
    for (const { physical, blocks } of ranges) packed.push(physical * LENGTHS + blocks);
    for (const range of Float64Array.from(packed).sort()) {
      const start = Math.floor(range / LENGTHS);
      const end = start + (range % LENGTHS);
      if (this.#ends.at(-1) === start) this.#ends[this.#ends.length - 1] = end;
      else {
        this.#starts.push(start);
        this.#ends.push(end);
      }
    }
  }

  /** The number of used blocks in `group`. */
  usedIn(group: number): number {
    let used = 0;
    this.#eachIn(group, (from, to) => {
      used += to - from;
    });
    return used;
  }

  /** Fills a block of zeroes: a set bit for each used block, and for each one past the end of a short last group. */
  writeBitmap(bitmap: Buffer, group: number): void {
    this.#eachIn(group, (from, to) => setBits(bitmap, from, to));
    setBits(bitmap, blocksInGroup(this.#geometry, group), BLOCK_BYTES * 8);
  }

  #eachIn(group: number, visit: (from: number, to: number) => void): void {
    const first = group * BLOCKS_PER_GROUP;
    const end = first + blocksInGroup(this.#geometry, group);
    for (let n = this.#firstEndingAfter(first); n < this.#starts.length && this.#starts[n]! < end; n++) {
      visit(Math.max(first, this.#starts[n]!) - first, Math.min(end, this.#ends[n]!) - first);
    }
  }

  #firstEndingAfter(block: number): number {
    let low = 0;
    let high = this.#ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#ends[middle]! > block) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** Sets bits [from, to), lowest bit of each byte first. */
export function setBits(bitmap: Buffer, from: number, to: number): void {
  let at = from;
  for (; at < to && at & 7; at++) bitmap[at >> 3]! |= 1 << (at & 7);
  if (at + 8 <= to) {
    bitmap.fill(0xff, at >> 3, to >> 3);
    at = to & ~7;
  }
  for (; at < to; at++) bitmap[at >> 3]! |= 1 << (at & 7);
}
