/**
 * The times that all users of one store agree on, kept in the store's marker so that no machine can have others. The
 * argument for the safety of garbage collection (FORMAT.md, "Why nothing live is deleted") is made of these five
 * numbers and the two inequalities that `checkPolicy` holds them to.
 */
import { LazydiskError } from '../../errors.ts';
import { formatDuration } from '../../units.ts';

export interface StorePolicy {
  /** What has lost its last name is garbage after this long; what is younger than this is never swept. */
  readonly graceMs: number;
  /** What was swept, and a retired root, is kept this long after it was last read: longer than any drive is attached. */
  readonly retentionMs: number;
  /** The longest time from a writer's first look at the store to the name that it writes. */
  readonly buildMs: number;
  /** The longest time that a process reads, or begins to write, by what it knows of the store's roots. */
  readonly viewMs: number;
  /** How long a listing may lag behind writes, and a request take effect after its sender gave it up. */
  readonly settleMs: number;
}

const MINUTE_MS = 60_000;
const DAY_MS = 24 * 60 * MINUTE_MS;

export const DEFAULT_POLICY: StorePolicy = {
  graceMs: 7 * DAY_MS,
  retentionMs: 7 * DAY_MS,
  buildMs: DAY_MS,
  viewMs: MINUTE_MS,
  settleMs: MINUTE_MS,
};

/** Longest of any of them: ten years. */
const POLICY_MS_MAX = 3650 * DAY_MS;

/** Throws USAGE for times that do not make deletion safe. */
export function checkPolicy(policy: StorePolicy): void {
  for (const [name, ms] of Object.entries(policy)) {
    if (!Number.isInteger(ms) || ms < 1 || ms > POLICY_MS_MAX)
      throw new LazydiskError(
        'USAGE',
        `store policy: ${name} is ${ms}; want 1 to ${POLICY_MS_MAX} milliseconds`,
      );
  }
  const least = policy.buildMs + policy.viewMs + 4 * policy.settleMs;
  for (const name of ['graceMs', 'retentionMs'] as const) {
    if (policy[name] < least)
      throw new LazydiskError(
        'USAGE',
        `store policy: ${name.replace('Ms', '')} must be at least build + view + 4 × settle, ${formatDuration(least)}`,
      );
  }
}
