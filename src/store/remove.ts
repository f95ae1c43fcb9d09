/** Removes names of images. The images stay until garbage collection finds that no name or host uses them. */
import { LazydiskError } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import { findReference } from './find-reference.ts';
import type { RootStore } from './roots/root-store.ts';
import type { Reference, StoreWriter } from './store.ts';

export interface RemoveOptions {
  /** Remove only names that point to this image now. */
  readonly expected?: ImageDigest | undefined;
  /** Change nothing; the report says what would be removed. */
  readonly dryRun?: boolean;
}

export interface RemoveReport {
  readonly removed: readonly Reference[];
  /** Images that lost their last name. */
  readonly unnamed: readonly ImageDigest[];
  /** Minimum time for which an image without a name is kept. */
  readonly graceMs: number;
  readonly failures: readonly { readonly name: string; readonly error: unknown }[];
}

/**
 * Tries to remove all of `names` (NAME:TAG). A name that does not exist (NOT_FOUND) or points to another image than
 * `expected` (BUSY) is a failure in the report. Throws what the store throws when it is opened for writing or listed.
 */
export async function removeNames(
  store: RootStore,
  names: readonly string[],
  options: RemoveOptions = {},
): Promise<RemoveReport> {
  const writer = await store.writer();
  // Listed first, because a listing may lag behind the removals.
  const named = await store.listReferences();
  const removed: Reference[] = [];
  const failures: { name: string; error: unknown }[] = [];
  for (const name of names) {
    try {
      removed.push(await removeName(store, writer, name, options));
    } catch (error) {
      failures.push({ name, error });
    }
  }
  const gone = new Set(removed.map(({ name }) => name));
  const kept = new Set(named.filter(({ name }) => !gone.has(name)).map(({ digest }) => digest));
  const unnamed = new Set(removed.map(({ digest }) => digest).filter((digest) => !kept.has(digest)));
  return { removed, unnamed: [...unnamed], graceMs: store.parts.policy.graceMs, failures };
}

async function removeName(
  store: RootStore,
  writer: StoreWriter,
  name: string,
  { expected, dryRun = false }: RemoveOptions,
): Promise<Reference> {
  const reference = await findReference(store, name);
  const { digest } = reference;
  if (expected !== undefined && expected !== digest)
    throw new LazydiskError('BUSY', `${name} is ${digest} and not ${expected}: it stays`);
  // Ensures that the name still points to the reported image when it is removed.
  if (!dryRun) await writer.removeReference(name, { expected: digest });
  return reference;
}
