/**
 * The times that all users of a store agree on, kept in the store's marker so that no machine can use others. The
 * safety of garbage collection (FORMAT.md, "Why nothing live is deleted") rests on these five numbers and the two
 * inequalities that `checkPolicy` enforces.
 */
import { LazydiskError } from '../../errors.ts';
import { formatDuration } from '../../units.ts';

export interface StorePolicy {
  /** An image is garbage this long after it lost its last name; anything younger is never swept. */
  readonly graceMs: number;
  /** Trash and retired roots are kept this long after they were last read: longer than any drive is attached. */
  readonly retentionMs: number;
  /** The maximum time from a writer's first look at the store to the name that it writes. */
  readonly buildMs: number;
  /** The maximum age of a view by which a process reads, or begins to write. */
  readonly viewMs: number;
  /** How long a listing may lag behind writes, and how late a request may take effect after its sender abandoned it. */
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

/** Maximum of each time: ten years. */
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
