/**
 * The one timeout budget. A tier that still tries when the layer above it has given up turns a slow read into an
 * I/O error in the guest, and the guest's file system then turns that into a dead machine; so each layer's budget
 * must fit into the next one's, and a daemon whose settings do not is not started.
 */
import { LazydiskError } from '../errors.ts';

/** Pauses between tries at the origin: the first, before it doubles, and the longest (RetryTier's). */
const PAUSE_MS = 50;
const PAUSE_MS_MAX = 2_000;

export interface TimeoutBudget {
  /** One try at the origin. */
  readonly originTimeoutMs: number;
  readonly originTries: number;
  /** What a cache in front of the origin may take, and how many there are. */
  readonly cacheTimeoutMs: number;
  readonly caches: number;
  /** What an export waits for one read before it answers EIO. */
  readonly readTimeoutMs: number;
  /** When the guest's side gives up (its hung-task watchdog, an NBD client's own timeout). */
  readonly guestTimeoutMs: number;
}

/** Throws USAGE, with the sum, unless caches + origin timeout × tries + pauses < read timeout < guest timeout. */
export function checkBudget(budget: TimeoutBudget): void {
  const { originTimeoutMs, originTries, caches, cacheTimeoutMs, readTimeoutMs, guestTimeoutMs } = budget;
  let pausesMs = 0;
  for (let n = 0; n < originTries - 1; n++) pausesMs += Math.min(PAUSE_MS * 2 ** n, PAUSE_MS_MAX);
  const tiersMs = caches * cacheTimeoutMs + originTimeoutMs * originTries + pausesMs;
  if (tiersMs >= readTimeoutMs) {
    throw new LazydiskError(
      'USAGE',
      `timeouts: the caches may take ${caches} × ${cacheTimeoutMs} ms, the origin ${originTries} × ${originTimeoutMs} ms and ` +
        `${pausesMs} ms of pauses, together ${tiersMs} ms, which must be under the read timeout of ${readTimeoutMs} ms`,
    );
  }
  if (readTimeoutMs >= guestTimeoutMs) {
    throw new LazydiskError(
      'USAGE',
      `timeouts: the read timeout of ${readTimeoutMs} ms must be under the guest's of ${guestTimeoutMs} ms`,
    );
  }
}
