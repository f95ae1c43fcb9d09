/**
 * The timeout budget. If a tier still tries after the layer above has given up, a slow read becomes an I/O error in the
 * guest, and the guest's file system may not survive that. So each layer's budget must fit into the next one's, and a
 * daemon whose settings violate this does not start.
 */
import { pausesTotalMs } from '../async/backoff.ts';
import { RETRY_PAUSES } from '../chunk/wrappers/retry.ts';
import { LazydiskError } from '../errors.ts';

export interface TimeoutBudget {
  /** One try at the origin. */
  readonly originTimeoutMs: number;
  readonly originTries: number;
  /** How long a cache in front of the origin may take, and how many caches there are. */
  readonly cacheTimeoutMs: number;
  readonly caches: number;
  /** How long an export waits for one read before it answers EIO. */
  readonly readTimeoutMs: number;
  /** When the guest gives up (its hung-task watchdog, an NBD client's own timeout). */
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
