/**
 * The one timeout budget. A tier that still tries when the layer above it has given up turns a slow read into an
 * I/O error in the guest, and the guest's file system then turns that into a dead machine; so each layer's budget
 * must fit into the next one's, and a daemon whose settings do not is not started.
 */
import { pausesTotalMs } from '../async/backoff.ts';
import { RETRY_PAUSES } from '../chunk/wrappers/retry.ts';
import { LazydiskError } from '../errors.ts';

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
  const pausesMs = pausesTotalMs(originTries, RETRY_PAUSES);
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
