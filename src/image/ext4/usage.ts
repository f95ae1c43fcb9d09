/** Which blocks are used: ranges while the disk is laid out, one group's bitmap when it is written. */
import { BLOCK_BYTES, BLOCKS_PER_GROUP, blocksInGroup, type Geometry } from './geometry.ts';

/** Used ranges [start, end) of blocks, sorted and apart from each other. */
export class BlockUsage {
  readonly #geometry: Geometry;
  readonly #starts: Float64Array;
  readonly #ends: Float64Array;

  /** `ranges` in any order; they may touch, and must not overlap. */
  constructor(geometry: Geometry, ranges: { start: number; end: number }[]) {
    this.#geometry = geometry;
    const joined: { start: number; end: number }[] = [];
    for (const range of ranges.sort((a, b) => a.start - b.start)) {
      const last = joined.at(-1);
      if (last && last.end >= range.start) last.end = Math.max(last.end, range.end);
      else joined.push({ ...range });
    }
    this.#starts = Float64Array.from(joined, ({ start }) => start);
    this.#ends = Float64Array.from(joined, ({ end }) => end);
  }

  /** How many blocks of `group` are used. */
  usedIn(group: number): number {
    let used = 0;
    this.#eachIn(group, (from, to) => {
      used += to - from;
    });
    return used;
  }

  /** One block: a set bit for each used block, and for what lies behind the end of a short last group. */
  bitmap(group: number): Buffer {
    const bitmap = Buffer.alloc(BLOCK_BYTES);
    this.#eachIn(group, (from, to) => setBits(bitmap, from, to));
    setBits(bitmap, blocksInGroup(this.#geometry, group), BLOCKS_PER_GROUP);
    return bitmap;
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
