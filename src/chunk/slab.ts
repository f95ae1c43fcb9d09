/**
 * The memory that decoded chunks live in: one big buffer, cut into slots of one chunk each. Nothing of a chunk's size
 * is allocated after start, because touching a fresh 512 KiB costs as much as decoding it: the views are made once, the
 * pages are touched once, and only slots change hands.
 */
import { LazydiskError } from '../errors.ts';
import { CHUNK_BYTES } from '../format/chunk-id.ts';
import { type HitMap, SlabResidency } from './hit-map.ts';

/** A decoded chunk in place. Its bytes do not change until `release()`, which must be called once for each pin. */
export interface PinnedChunk {
  /** CHUNK_BYTES long; the holder must not write to it. */
  readonly bytes: Buffer;
  /** The slot to publish in a hit map; undefined if the chunk is not kept after its release. */
  readonly residentSlot: number | undefined;
  release(): void;
}

/** One slot. It is its own pin, so a read allocates no object: `release` counts down what `pin` counted up. */
export class Slot implements PinnedChunk {
  readonly bytes: Buffer;
  /** The key that it is cached under; undefined while it is free, being filled, or held without being cached. */
  key: string | undefined;
  /** The name of the drive that it was cached for. */
  owner = '';
  #pins = 0;
  readonly #slab: Slab;
  readonly #index: number;

  constructor(slab: Slab, index: number, bytes: Buffer) {
    this.#slab = slab;
    this.#index = index;
    this.bytes = bytes;
  }

  get residentSlot(): number | undefined {
    return this.key === undefined ? undefined : this.#index;
  }

  /** Whether a native thread has read from it since the last call. */
  takeUsed(): boolean {
    return this.#slab.residency?.takeUsed(this.#index) ?? false;
  }

  /** Takes it back from native threads before it is overwritten. False: one is reading from it. */
  claim(): boolean {
    return this.#slab.residency?.claim(this.#index) ?? true;
  }

  get pinned(): boolean {
    return this.#pins > 0;
  }

  pin(): this {
    if (this.#pins++ === 0) this.#slab.pinnedSlots++;
    return this;
  }

  release(): void {
    if (this.#pins === 0) throw new LazydiskError('INTERNAL', 'a chunk was released more often than pinned');
    if (--this.#pins > 0) return;
    this.#slab.pinnedSlots--;
    this.#slab.onIdle(this);
  }
}

export class Slab {
  readonly slots: readonly Slot[];
  /** Slots with at least one pin. */
  pinnedSlots = 0;
  /** Called when the last pin of a slot is released. */
  onIdle: (slot: Slot) => void = () => {};
  /** Set once a drive has a hit map. */
  residency: SlabResidency | undefined;
  readonly #memory: Buffer;
  readonly #free: Slot[];

  /** Rounds `capacityBytes` down to whole slots. Throws USAGE if that leaves none, UNAVAILABLE without the memory. */
  constructor(capacityBytes: number) {
    const count = Math.floor(capacityBytes / CHUNK_BYTES);
    if (!(count >= 1))
      throw new LazydiskError('USAGE', `memory of ${capacityBytes} bytes: too small for one chunk`);
    let memory: Buffer;
    try {
      // Not zeroed: the kernel provides its pages when they are first written.
      memory = Buffer.allocUnsafeSlow(count * CHUNK_BYTES);
    } catch (cause) {
      throw new LazydiskError('UNAVAILABLE', `cannot allocate ${capacityBytes} bytes of memory`, { cause });
    }
    this.#memory = memory;
    this.slots = Array.from(
      { length: count },
      (_, n) => new Slot(this, n, memory.subarray(n * CHUNK_BYTES, (n + 1) * CHUNK_BYTES)),
    );
    this.#free = [...this.slots].reverse();
  }

  get freeSlots(): number {
    return this.#free.length;
  }

  /** For a drive of `chunks` chunks, all zero except at the indices `stored`: lets native threads read the slots. */
  hitMap(chunks: number, stored: Iterable<number>): HitMap {
    this.residency ??= new SlabResidency(this.#memory, CHUNK_BYTES);
    return this.residency.hitMap(chunks, stored);
  }

  /** A free slot, or undefined. */
  take(): Slot | undefined {
    return this.#free.pop();
  }

  /** Returns a slot to the free ones; it must not be pinned. */
  give(slot: Slot): void {
    if (slot.pinned) throw new LazydiskError('INTERNAL', 'a pinned slot cannot be free');
    this.#free.push(slot);
  }
}
