/**
 * What the read path tells whoever counts (the daemon's Prometheus metrics, a drive's own statistics, a test).
 * Calls are synchronous and must be cheap: they sit on the path of every chunk, though not of every read.
 */
import type { ReadClass } from '../async/read-context.ts';
import type { TierName } from './tier.ts';

export interface ReadObserver {
  /** One tier was asked for one chunk. `sealedBytes` is 0 unless it was a hit. */
  tierRead(
    tier: TierName,
    result: 'hit' | 'miss' | 'error',
    readClass: ReadClass,
    sealedBytes: number,
    durationMs: number,
  ): void;
  /** A tier's copy failed its proof and was dropped. */
  verifyFailure(tier: TierName): void;
  /** After a failure in `tier`, proven bytes from elsewhere were put there again. */
  heal(tier: TierName): void;
  /** A read found its chunk being fetched already and waited for that. */
  singleFlightWait(): void;
}
