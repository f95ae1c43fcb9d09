/**
 * Bounds how many reads of a tier run at once, and orders the rest (places.ts). A place is held until the loan is
 * returned, or its reader says that only others still need it, so the limit also bounds the sealed bytes that reads
 * hold in memory.
 */
import type { ReadContext } from '../../async/read-context.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { Places, type PlacesOptions } from '../places.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
import { WrapperTier } from './wrapper.ts';

export interface LimitOptions extends Omit<PlacesOptions, 'name' | 'places'> {
  /** Reads at the tier at once, all classes together. */
  readonly concurrency: number;
}

export interface LimitStats {
  readonly active: number;
  readonly queued: number;
}

export class LimitTier extends WrapperTier {
  readonly #places: Places;

  constructor(inner: ChunkTier, { concurrency, ...options }: LimitOptions) {
    super(inner);
    this.#places = new Places({ name: inner.name, places: concurrency, ...options });
  }

  /** Whether demand reads wait here. */
  get holdsDemand(): boolean {
    return this.#places.holdsDemand;
  }

  stats(): LimitStats {
    return { active: this.#places.taken, queued: this.#places.waiting };
  }

  /** Rejects with TIMEOUT or ABORTED while it waits, OVERLOAD if too many wait, otherwise as the tier does. */
  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    const place = this.#places.tryEnter(ctx) ?? (await this.#places.enter(ctx));
    let loan: SealedLoan | undefined;
    try {
      loan = await this.inner.get(id, sealedBytes, ctx);
    } finally {
      if (!loan) this.#places.leave(place);
    }
    return loan && this.#places.withPlace(place, loan);
  }
}
