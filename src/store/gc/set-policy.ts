/** Changes a store's policy, and records the change in the journal. */
import { writeMarker } from '../roots/marker.ts';
import type { StoreParts } from '../roots/parts.ts';
import { checkPolicy, type StorePolicy } from '../roots/policy.ts';
import { journaled } from './journal.ts';

/**
 * Writes and returns the store's policy with `changes`. Open processes keep the policy that they started with. Throws
 * USAGE, before anything is written, for times that do not make deletion safe.
 */
export async function setPolicy(
  { objects, policy }: Pick<StoreParts, 'objects' | 'policy'>,
  changes: Partial<StorePolicy>,
): Promise<StorePolicy> {
  const changed = { ...policy, ...changes };
  checkPolicy(changed);
  return journaled(objects, 'policy', async () => {
    await writeMarker(objects, changed);
    return changed;
  });
}
