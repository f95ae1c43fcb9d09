/**
 * The origin as the daemon asks it. From the reader inwards: a bound on reads at once, demand first; a bound on their
 * rate, where the operator sets one; tries under one deadline; a second request for a try that is slow, within a
 * budget; and a breaker, which counts what really goes to the store, so that in an outage each drive asks for one
 * object at a time. What the breaker refuses is not tried again. A hedge lives in its try's time, so none of this takes longer
 * than tries × timeout and the pauses, which the daemon checks at start (budget.ts).
 */
import { type ChunkSource, OriginTier } from '../chunk/origin.ts';
import type { ChunkTier } from '../chunk/tier.ts';
import { BreakerTier } from '../chunk/wrappers/breaker.ts';
import { HedgeTier } from '../chunk/wrappers/hedge.ts';
import { LimitTier } from '../chunk/wrappers/limit.ts';
import { RateTier } from '../chunk/wrappers/rate.ts';
import { RetryTier } from '../chunk/wrappers/retry.ts';

/** Threads of the pool that reads of chunks may take where the store is a directory, and those that hang there. */
export const STORE_THREADS = { reads: 8, hung: 24 };

export interface OriginConfig {
  readonly originTimeoutMs: number;
  readonly originTries: number;
  readonly originConcurrency: number;
  /**
   * Reads a second, and sealed bytes a second; undefined: as many as there are. A read that is tried again or hedged
   * counts once.
   */
  readonly originRate: number | undefined;
  readonly originBandwidth: number | undefined;
}

export interface OriginStats {
  readonly active: number;
  readonly queued: number;
  readonly rateWaits: number;
  readonly hedgesWon: number;
  readonly hedgesLost: number;
  readonly breaker: 'closed' | 'open' | 'half-open';
  readonly breakerOpened: number;
}

export class Origin {
  readonly tier: ChunkTier;
  readonly #limit: LimitTier;
  readonly #rate: RateTier | undefined;
  readonly #hedge: HedgeTier;
  readonly #breaker: BreakerTier;

  constructor(store: ChunkSource, config: OriginConfig) {
    const { originRate, originBandwidth, originTries, originTimeoutMs, originConcurrency } = config;
    const threads = store.url.startsWith('file:') ? { threads: STORE_THREADS } : {};
    this.#breaker = new BreakerTier(new OriginTier(store, threads), {});
    this.#hedge = new HedgeTier(this.#breaker, {});
    const retry = new RetryTier(this.#hedge, { tries: originTries, tryTimeoutMs: originTimeoutMs });
    if (originRate !== undefined || originBandwidth !== undefined) {
      this.#rate = new RateTier(retry, {
        ...(originRate !== undefined && { requestsPerSecond: originRate }),
        ...(originBandwidth !== undefined && { bytesPerSecond: originBandwidth }),
      });
    }
    this.#limit = new LimitTier(this.#rate ?? retry, { concurrency: originConcurrency });
    this.tier = this.#limit;
  }

  /** Whether reads that a guest waits for have to queue for it, or it fails. What is read ahead fills any queue. */
  get isStrained(): boolean {
    const holdsDemand = this.#limit.holdsDemand || (this.#rate?.holdsDemand ?? false);
    return holdsDemand || this.#breaker.stats().state !== 'closed';
  }

  stats(): OriginStats {
    const { won, lost } = this.#hedge.stats();
    const { state, opened } = this.#breaker.stats();
    return {
      ...this.#limit.stats(),
      rateWaits: this.#rate?.stats().waits ?? 0,
      hedgesWon: won,
      hedgesLost: lost,
      breaker: state,
      breakerOpened: opened,
    };
  }
}
