/**
 * How far the store's clock is from this host's. Nothing in the store depends on the clocks of hosts where the store gives
 * objects their times, and all of it does where a file system leaves that to them (systemd/README.md, "The store"); what differs by more
 * than the settle time is wrong somewhere, and people should hear of it.
 */
import { isRefusal } from '../../errors.ts';
import { formatDuration } from '../../units.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import type { StoreParts } from './parts.ts';

/** The store may tell whole seconds alone, rounded down. */
const ROUNDING_MS = 999;

/**
 * The store's time, in milliseconds since 1970, for what tells people of ages and deletes nothing. Of a directory that is only
 * read nobody knows the time; then it is this machine's. Throws UNAVAILABLE.
 */
export function storeTimeMs(objects: ObjectStore): Promise<number> {
  return objects.nowMs().catch((error) => {
    if (isRefusal(error)) return Date.now();
    throw error;
  });
}

/** Milliseconds by which the store's clock is ahead of this host's, at least; negative: behind. Throws what `nowMs` throws. */
export async function clockSkewMs(objects: ObjectStore): Promise<number> {
  const beforeMs = Date.now();
  const storeMs = await objects.nowMs();
  const afterMs = Date.now();
  return Math.max(0, storeMs - afterMs) - Math.max(0, beforeMs - storeMs - ROUNDING_MS);
}

/** What people should know of such a difference; null: nothing. */
export function skewProblem(skewMs: number, { objects, policy }: StoreParts): string | null {
  if (Math.abs(skewMs) <= policy.settleMs) return null;
  const [ms, settle] = [Math.abs(skewMs), policy.settleMs].map(formatDuration);
  return `the clock of ${objects.url} is ${ms} ${skewMs > 0 ? 'ahead of' : 'behind'} this host's, more than the settle time of ${settle}: set the clock that is wrong`;
}
