/**
 * Puts verified chunks into the tiers above the one that had them, in the background. This helps later reads only, so
 * it is bounded and may be dropped: a cache with slow writes costs hits, not memory, and never makes a read wait. Each
 * tier has its own bound, so a hung tier takes nothing from the others.
 */
import type { ChunkId } from '../format/chunk-id.ts';
import type { ReadObserver } from './observer.ts';
import type { ChunkTier, SealedLoan } from './tier.ts';

/** A tier that should have had the chunk. `heals`: it had a bad copy. */
export interface WriteBackTarget {
  readonly tier: ChunkTier;
  readonly heals: boolean;
}

/** How long a hung tier may delay a stop. */
const DRAIN_MS = 3_000;

export class WriteBack {
  readonly #bytesMax: number;
  readonly #observer: ReadObserver;
  readonly #running = new Set<Promise<void>>();
  /** Bytes being written, by tier. */
  readonly #bytes = new Map<ChunkTier, number>();
  /** Chunks that were not offered to a tier because too much was already being written there. */
  dropped = 0;

  /** `bytesMax`: the most being written to one tier, counted as the memory that it holds. */
  constructor(bytesMax: number, observer: ReadObserver) {
    this.#bytesMax = bytesMax;
    this.#observer = observer;
  }

  /** Takes over the loan, frees its place, and releases it when the tiers have taken what they want. */
  offer(targets: readonly WriteBackTarget[], id: ChunkId, loan: SealedLoan): void {
    // A loan from a pool holds its whole buffer.
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

  /** Resolves when no writes are left, or after DRAIN_MS. */
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
    // The failure needs no report: a later read finds the chunk missing there.
    const isThere = await tier.put(id, loan.bytes).catch(() => false);
    if (isThere && heals) this.#observer.heal(tier.name);
  }
}
