/**
 * Where a disk's stored chunks are, and how to walk them. Runs of data and of zeroes are found by binary search, so
 * that listing the holes of a sparse terabyte costs no more than those of a small disk.
 */
import { CHUNK_BYTES, type ChunkRef } from '../format/chunk-id.ts';
import type { BlockExtent } from './block-device.ts';

/** The part of a Manifest (src/format/manifest.ts) that a drive uses. Entries are in disk order. */
export interface ChunkMap {
  /** A multiple of CHUNK_BYTES. */
  readonly diskBytes: number;
  /** Entries: chunks that are not all zero. */
  readonly storedChunks: number;
  /** The entry of chunk `index` of the disk, or -1 if that chunk is all zero. */
  entryOf(index: number): number;
  /** The index on the disk of the chunk that `entry` holds. */
  indexOf(entry: number): number;
  /** Returns the same object at every call. */
  ref(entry: number): ChunkRef;
}

/**
 * The first number in [low, high) for which `test` holds, or `high`; it must also hold for all numbers after that one.
 */
function firstThat(low: number, high: number, test: (n: number) => boolean): number {
  let from = low;
  let to = high;
  while (from < to) {
    const middle = Math.floor((from + to) / 2);
    if (test(middle)) to = middle;
    else from = middle + 1;
  }
  return from;
}

/** The first entry whose chunk is `index` or a later one; `storedChunks` if there is none. */
export function entryFrom(map: ChunkMap, index: number): number {
  return firstThat(0, map.storedChunks, (entry) => map.indexOf(entry) >= index);
}

/** Runs covering [offset, offset + lengthBytes), merged, at most `extentsMax` of them. */
export function extentsOf(
  map: ChunkMap,
  offset: number,
  lengthBytes: number,
  extentsMax: number,
): BlockExtent[] {
  const extents: BlockExtent[] = [];
  const end = offset + lengthBytes;
  let entry = entryFrom(map, Math.floor(offset / CHUNK_BYTES));
  for (let at = offset; at < end && extents.length < extentsMax; ) {
    const index = Math.floor(at / CHUNK_BYTES);
    const next = entry < map.storedChunks ? map.indexOf(entry) : map.diskBytes / CHUNK_BYTES;
    const zero = next > index;
    let runEnd = next;
    if (!zero) {
      // Indices only grow, so a run lasts while they grow in step with the entries.
      const first = entry;
      entry = firstThat(first, map.storedChunks, (n) => map.indexOf(n) - index > n - first);
      runEnd = index + (entry - first);
    }
    const until = Math.min(end, runEnd * CHUNK_BYTES);
    extents.push({ lengthBytes: until - at, zero });
    at = until;
  }
  return extents;
}
