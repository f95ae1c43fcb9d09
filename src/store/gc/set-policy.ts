/** Gives a store other times to keep to, with a line in the journal that says when. */
import { writeMarker } from '../roots/marker.ts';
import type { StoreParts } from '../roots/parts.ts';
import { checkPolicy, type StorePolicy } from '../roots/policy.ts';
import { journaled } from './journal.ts';

/**
 * The store's policy with `changes`, which it has from now on; a process that is open keeps the one it began with.
 * Throws USAGE for times that do not make deletion safe, before anything is written.
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
