/**
 * Puts proven chunks into the tiers above the one that had them, behind the reader's back. It is a courtesy to
 * later reads and so bounded and droppable: a cache that takes its writes slowly costs hits, not memory, and never makes
 * a read wait. Each tier has a bound of its own, so one that hangs keeps nothing from the others.
 */
import type { ChunkId } from '../format/chunk-id.ts';
import type { ReadObserver } from './observer.ts';
import type { ChunkTier, SealedLoan } from './tier.ts';

/** A tier that should have had the chunk. `heals`: it had a copy, and that was bad. */
export interface WriteBackTarget {
  readonly tier: ChunkTier;
  readonly heals: boolean;
}

/** What a tier that hangs may hold up a stop. */
const DRAIN_MS = 3_000;

export class WriteBack {
  readonly #bytesMax: number;
  readonly #observer: ReadObserver;
  readonly #running = new Set<Promise<void>>();
  /** Bytes on their way, by tier. */
  readonly #bytes = new Map<ChunkTier, number>();
  /** Chunks that were not offered to a tier, because too much was on its way there already. */
  dropped = 0;

  /** `bytesMax`: on their way to one tier, counted as the memory that they hold. */
  constructor(bytesMax: number, observer: ReadObserver) {
    this.#bytesMax = bytesMax;
    this.#observer = observer;
  }

  /** Takes over the loan, gives its place back, and returns it when the tiers have what they want of it. */
  offer(targets: readonly WriteBackTarget[], id: ChunkId, loan: SealedLoan): void {
    // A loan out of a pool holds all of its buffer.
    const heldBytes = loan.bytes.buffer.byteLength;
    const open = targets.filter(({ tier }) => this.#bytesOf(tier) + heldBytes <= this.#bytesMax);
    this.dropped += targets.length - open.length;
    if (open.length === 0) {
      loan.release();
      return;
    }
    loan.freePlace?.();
    let left = open.length;
    for (const target of open) {
      const { tier } = target;
      this.#bytes.set(tier, this.#bytesOf(tier) + heldBytes);
      const running = this.#put(target, id, loan).finally(() => {
        this.#running.delete(running);
        this.#bytes.set(tier, this.#bytesOf(tier) - heldBytes);
        if (--left === 0) loan.release();
      });
      this.#running.add(running);
    }
  }

  /** Resolves when nothing is on its way any longer, or a tier has held that up for too long. */
  async drain(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, DRAIN_MS);
    });
    const all = async () => {
      while (this.#running.size > 0) await Promise.all(this.#running);
    };
    await Promise.race([all(), late]);
    clearTimeout(timer);
  }

  #bytesOf(tier: ChunkTier): number {
    return this.#bytes.get(tier) ?? 0;
  }

  async #put({ tier, heals }: WriteBackTarget, id: ChunkId, loan: SealedLoan): Promise<void> {
    // What a tier cannot take it does not have; the next read finds that out and needs no news of it.
    const isThere = await tier.put(id, loan.bytes).catch(() => false);
    if (isThere && heals) this.#observer.heal(tier.name);
  }
}
