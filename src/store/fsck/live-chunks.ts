/**
 * The chunks of named images, ten million of them in 12 bytes a slot: a fingerprint, and one word with the length
 * according to the manifests and what is known of the chunk so far. A counter for each of the 256 folders tells whether
 * any of its chunks is missing, so the missing ones are searched for only if there are any.
 */
import { SEALED_BYTES_MIN } from '../../format/chunk-codec.ts';
import { type ChunkId, ID_BYTES } from '../../format/chunk-id.ts';
import type { ClearManifest } from '../../format/manifest-clear.ts';
import { IdTable } from '../id-table.ts';
import { SHARDS } from '../roots/layout.ts';

/** Needed by an image in the active root; by one that still has to move there. */
export const NEEDED = 1;
export const NEEDED_DRAINING = 2;
/** Its image had a name until recently. */
export const LATE = 4;
/** Found where its readers look first, with the right length; found in trash. */
export const SEEN = 8;
export const TRASHED = 16;
/** Must be checked: a different length, different bytes, or manifests that disagree. */
export const SUSPECT = 32;
/** Was checked; is damaged, or was before its repair. */
export const HANDLED = 64;
export const DAMAGED = 128;
/** A host has one of its images attached that has no name. */
export const LEASED = 256;

const ANY_NEED = NEEDED | NEEDED_DRAINING;
/** Lengths are 18 to 524305: 19 bits above the flags. */
const LENGTH_SHIFT = 12;

export class LiveChunks {
  readonly #table = new IdTable(32);
  readonly #needed = new Uint32Array(SHARDS.length);
  readonly #found = new Uint32Array(SHARDS.length);
  /** A checksum of the needed ids, which tells whether they have changed since another run. */
  readonly #mix = new Uint32Array(SHARDS.length);
  #suspects = 0;

  /** Adds an image's chunks; `need` is NEEDED, NEEDED_DRAINING, LATE or LEASED. */
  add(clear: ClearManifest, need: number): void {
    const { ids } = clear;
    for (let entry = 0; entry < clear.storedChunks; entry++) {
      const at = entry * ID_BYTES;
      const length = (clear.sealedBytesOf(entry) - SEALED_BYTES_MIN) << LENGTH_SHIFT;
      const isNew = this.#table.add(ids, at, length | need);
      const flags = isNew ? 0 : this.#table.flagsAt(ids, at)!;
      if (!isNew) {
        this.#table.flagAt(ids, at, need);
        if (flags >>> LENGTH_SHIFT !== length >>> LENGTH_SHIFT) this.#suspect(flags, ids, at);
      }
      if (isNeeded(need) && !isNeeded(flags)) {
        this.#needed[ids[at]!]!++;
        this.#mix[ids[at]!]! ^= ids.readUInt32LE(at + 8);
      }
    }
  }

  /** The flags of `id`; 0 if no live image has it. */
  flags(id: ChunkId): number {
    return this.#table.flags(id) ?? 0;
  }

  flagsAt(ids: Buffer, offset: number): number {
    return this.#table.flagsAt(ids, offset) ?? 0;
  }

  /** Sets SEEN, TRASHED, HANDLED or DAMAGED. */
  note(id: ChunkId, bits: number): void {
    const flags = this.flags(id);
    if (bits & (SEEN | TRASHED) && !(flags & (SEEN | TRASHED)))
      this.#found[Number.parseInt(id.slice(0, 2), 16)]!++;
    this.#table.flag(id, bits);
  }

  suspect(id: ChunkId): void {
    if (!(this.flags(id) & SUSPECT)) this.#suspects++;
    this.#table.flag(id, SUSPECT);
  }

  /** Number of chunks that named images need, in `shard` or in all. */
  needed(shard?: number): number {
    return shard === undefined ? this.#needed.reduce((sum, count) => sum + count, 0) : this.#needed[shard]!;
  }

  /** How many of them have not been found so far. */
  absent(shard: number): number {
    return this.#needed[shard]! - this.#found[shard]!;
  }

  mix(shard: number): number {
    return this.#mix[shard]!;
  }

  get suspects(): number {
    return this.#suspects;
  }

  #suspect(flags: number, ids: Buffer, at: number): void {
    if (!(flags & SUSPECT)) this.#suspects++;
    this.#table.flagAt(ids, at, SUSPECT);
  }
}

export function isNeeded(flags: number): boolean {
  return (flags & ANY_NEED) !== 0;
}

/** The sealed length that the manifests give a chunk with these flags. */
export function lengthOf(flags: number): number {
  return (flags >>> LENGTH_SHIFT) + SEALED_BYTES_MIN;
}
