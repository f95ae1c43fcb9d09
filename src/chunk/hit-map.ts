/**
 * What a thread without JavaScript must know to read decoded chunks in place: which of them are in which slot of the
 * slab, and which slots are being read. The event loop publishes slots, and claims a slot before it is overwritten.
 */
import {
  type HitMapHandle,
  hitMapCounts,
  hitMapOpen,
  hitMapPublish,
  type Residency,
  residencyClaim,
  residencyOpen,
  residencyReads,
  residencyTakeUsed,
} from '../../native/index.ts';

/** The slots of one slab, which must stay in place and alive as long as any hit map of it is used. */
export class SlabResidency {
  readonly #residency: Residency;

  constructor(slab: Buffer, slotBytes: number) {
    this.#residency = residencyOpen(slab, slotBytes);
  }

  /** For a drive of `chunks` chunks, each of a slot's size; those at the indices `stored` are not all zero. */
  hitMap(chunks: number, stored: Iterable<number>): HitMap {
    const bits = new Uint8Array(Math.ceil(chunks / 8));
    for (const index of stored) bits[index >> 3]! |= 1 << (index & 7);
    return new HitMap(hitMapOpen(this.#residency, chunks, bits));
  }

  /** Takes back what was published for `slot`. False: a thread is reading it, and it must not be overwritten. */
  claim(slot: number): boolean {
    return residencyClaim(this.#residency, slot);
  }

  /** Chunks that were read through all its hit maps. */
  get reads(): number {
    return residencyReads(this.#residency);
  }

  /** Whether `slot` was read through a hit map since the last call. */
  takeUsed(slot: number): boolean {
    return residencyTakeUsed(this.#residency, slot);
  }
}

/** The chunks of one drive. Those that are all zero need not be published. */
export class HitMap {
  /** For the native threads. */
  readonly handle: HitMapHandle;

  constructor(handle: HitMapHandle) {
    this.handle = handle;
  }

  /** `slot` holds chunk `index` of the drive, until it is claimed. */
  publish(index: number, slot: number): void {
    hitMapPublish(this.handle, index, slot);
  }

  /** Reads that were answered through it, and their bytes. */
  counts(): { readonly reads: number; readonly readBytes: number } {
    const [reads, readBytes] = hitMapCounts(this.handle);
    return { reads, readBytes };
  }
}
