/**
 * What the read path reports to statistics (the daemon's Prometheus metrics, a drive's own statistics, a test). Calls
 * are synchronous and must be cheap: they are on the path of every chunk, though not of every read.
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
  /** A tier's copy failed verification and was dropped. */
  verifyFailure(tier: TierName): void;
  /** After a failed copy in `tier`, verified bytes from elsewhere were put there again. */
  heal(tier: TierName): void;
  /** A read found its chunk already being fetched and waited for that fetch. */
  singleFlightWait(): void;
}
