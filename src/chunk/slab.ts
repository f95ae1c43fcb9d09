/**
 * The memory that decoded chunks live in: one big buffer, cut into slots of a chunk each. The trick is that
 * nothing of a chunk's size is ever allocated after start: touching a fresh 512 KiB costs as much as decoding
 * it, so the views are made once, the pages are touched once, and what moves are slots.
 */
import { LazydiskError } from '../errors.ts';
import { CHUNK_BYTES } from '../format/chunk-id.ts';

/** A decoded chunk in place. Its bytes stay what they are until `release()`, called once for each time it was got. */
export interface PinnedChunk {
  /** CHUNK_BYTES long; never written to by the holder. */
  readonly bytes: Buffer;
  release(): void;
}

/** One slot. It is its own pin: there is no object per read, so `release` counts down what `pin` counted up. */
export class Slot implements PinnedChunk {
  readonly bytes: Buffer;
  /** Under which key it is cached; undefined while it is free, being filled, or held without being cached. */
  key: string | undefined;
  #pins = 0;
  readonly #slab: Slab;

  constructor(slab: Slab, bytes: Buffer) {
    this.#slab = slab;
    this.bytes = bytes;
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
  /** Called when the last pin of a slot goes. */
  onIdle: (slot: Slot) => void = () => {};
  readonly #free: Slot[];

  /** Rounds `capacityBytes` down to whole slots. Throws USAGE when that is none, UNAVAILABLE without the memory. */
  constructor(capacityBytes: number) {
    const count = Math.floor(capacityBytes / CHUNK_BYTES);
    if (!(count >= 1))
      throw new LazydiskError('USAGE', `memory of ${capacityBytes} bytes: not even one chunk`);
    let memory: Buffer;
    try {
      // Not zeroed: the kernel gives its pages when they are first written.
      memory = Buffer.allocUnsafeSlow(count * CHUNK_BYTES);
    } catch (cause) {
      throw new LazydiskError('UNAVAILABLE', `memory of ${capacityBytes} bytes cannot be had`, { cause });
    }
    this.slots = Array.from(
      { length: count },
      (_, n) => new Slot(this, memory.subarray(n * CHUNK_BYTES, (n + 1) * CHUNK_BYTES)),
    );
    this.#free = [...this.slots].reverse();
  }

  get freeSlots(): number {
    return this.#free.length;
  }

  /** A slot that nobody uses, or undefined. */
  take(): Slot | undefined {
    return this.#free.pop();
  }

  /** Back to the free ones; it must not be pinned. */
  give(slot: Slot): void {
    if (slot.pinned) throw new LazydiskError('INTERNAL', 'a pinned slot cannot be free');
    this.#free.push(slot);
  }
}
