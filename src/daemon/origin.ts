/**
 * The daemon's access to the origin. From the reader inwards: a limit on concurrent reads, demand first; a limit on
 * their rate, if the operator sets one; retries under one deadline; a second request for a slow try (hedge), within a
 * budget; and a breaker, which counts the requests that reach the store, so that in an outage each drive asks for one
 * object at a time. What the breaker refuses is not retried. A hedge runs within its try's time, so none of this takes
 * longer than tries × timeout plus the pauses, which the daemon checks at startup (budget.ts).
 */
import { type ChunkSource, OriginTier } from '../chunk/origin.ts';
import type { ChunkTier } from '../chunk/tier.ts';
import { BreakerTier } from '../chunk/wrappers/breaker.ts';
import { HedgeTier } from '../chunk/wrappers/hedge.ts';
import { LimitTier } from '../chunk/wrappers/limit.ts';
import { RateTier } from '../chunk/wrappers/rate.ts';
import { RetryTier } from '../chunk/wrappers/retry.ts';

/** Threads of the pool for chunk reads of a store that is a directory, and threads that may hang there. */
export const STORE_THREADS = { reads: 8, hung: 24 };

export interface OriginConfig {
  readonly originTimeoutMs: number;
  readonly originTries: number;
  readonly originConcurrency: number;
  /**
   * Reads per second, and sealed bytes per second; undefined: unlimited. A read that is retried or hedged counts once.
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

  /**
   * Whether reads that a guest waits for are queueing for the origin, or it is failing. Readahead alone can fill any
   * queue.
   */
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
