/**
 * How far the store's clock is from this host's. If the store stamps objects itself, nothing depends on the hosts'
 * clocks; if a file system leaves that to the hosts, everything does (systemd/README.md, "The store"). A difference of
 * more than the settle time is a fault that people should hear of.
 */
import { isRefusal } from '../../errors.ts';
import { formatDuration } from '../../units.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import type { StoreParts } from './parts.ts';

/** The store's time may be rounded down to whole seconds. */
const ROUNDING_MS = 999;

/**
 * The store's time, in milliseconds since 1970, for code that reports ages and deletes nothing. For a read-only
 * directory it is unknown; then this is the local time. Throws UNAVAILABLE.
 */
export function storeTimeMs(objects: ObjectStore): Promise<number> {
  return objects.nowMs().catch((error) => {
    if (isRefusal(error)) return Date.now();
    throw error;
  });
}

/**
 * How far the store's clock is at least ahead of this host's, in milliseconds; negative if it is behind. Throws what
 * `nowMs` throws.
 */
export async function clockSkewMs(objects: ObjectStore): Promise<number> {
  const beforeMs = Date.now();
  const storeMs = await objects.nowMs();
  const afterMs = Date.now();
  return Math.max(0, storeMs - afterMs) - Math.max(0, beforeMs - storeMs - ROUNDING_MS);
}

/** A message about a skew that people should know of, or null. */
export function skewProblem(skewMs: number, { objects, policy }: StoreParts): string | null {
  if (Math.abs(skewMs) <= policy.settleMs) return null;
  const [ms, settle] = [Math.abs(skewMs), policy.settleMs].map(formatDuration);
  return `the clock of ${objects.url} is ${ms} ${skewMs > 0 ? 'ahead of' : 'behind'} this host's, more than the settle time of ${settle}: set the clock that is wrong`;
}
