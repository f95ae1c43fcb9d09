/**
 * Puts proven chunks into the tiers above the one that had them, behind the reader's back. It is a courtesy to
 * later reads and so bounded and droppable: a cache that takes its writes slowly costs hits, not memory, and
 * never makes a read wait.
 */
import type { ChunkId } from '../format/chunk-id.ts';
import type { ReadObserver } from './observer.ts';
import type { ChunkTier, SealedLoan } from './tier.ts';

/** A tier that should have had the chunk. `heals`: it had a copy, and that was bad. */
export interface WriteBackTarget {
  readonly tier: ChunkTier;
  readonly heals: boolean;
}

export class WriteBack {
  readonly #bytesMax: number;
  readonly #observer: ReadObserver;
  readonly #running = new Set<Promise<void>>();
  #bytes = 0;
  /** Chunks that were not offered to any tier, because too much was on its way already. */
  dropped = 0;

  constructor(bytesMax: number, observer: ReadObserver) {
    this.#bytesMax = bytesMax;
    this.#observer = observer;
  }

  /** Takes over the loan, and returns it when the tiers have what they want of it. */
  offer(targets: readonly WriteBackTarget[], id: ChunkId, loan: SealedLoan): void {
    const sizeBytes = loan.bytes.length;
    if (targets.length === 0 || this.#bytes + sizeBytes > this.#bytesMax) {
      if (targets.length > 0) this.dropped++;
      loan.release();
      return;
    }
    this.#bytes += sizeBytes;
    const running = this.#putAll(targets, id, loan).finally(() => {
      this.#running.delete(running);
      this.#bytes -= sizeBytes;
      loan.release();
    });
    this.#running.add(running);
  }

  /** Resolves when nothing is on its way any longer. */
  async drain(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  async #putAll(targets: readonly WriteBackTarget[], id: ChunkId, loan: SealedLoan): Promise<void> {
    const puts = targets.map(async ({ tier, heals }) => {
      await tier.put(id, loan.bytes);
      if (heals) this.#observer.heal(tier.name);
    });
    // What a tier cannot take it does not have; the next read finds that out and needs no news of it.
    await Promise.allSettled(puts);
  }
}
