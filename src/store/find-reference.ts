/** Looks up a name that must exist. */
import { LazydiskError } from '../errors.ts';
import { referenceName } from './reference-name.ts';
import type { Reference, Store } from './store.ts';

/** What `name` (`NAME[:TAG]`) points to in `store`. Throws USAGE for an invalid name, NOT_FOUND. */
export async function findReference(
  store: Pick<Store, 'url' | 'getReference'>,
  name: string,
): Promise<Reference> {
  const reference = await store.getReference(name);
  if (!reference) throw new LazydiskError('NOT_FOUND', `no image ${referenceName(name)} in ${store.url}`);
  return reference;
}
