/** Takes names of images away. The images stay until garbage collection finds that nothing names or uses them. */
import { LazydiskError } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import type { RootStore } from './roots/root-store.ts';
import type { Reference, StoreWriter } from './store.ts';

export interface RemoveOptions {
  /** Only names that mean this image now. */
  readonly expected?: ImageDigest | undefined;
  /** Change nothing; the report says what would be taken away. */
  readonly dryRun?: boolean;
}

export interface RemoveReport {
  readonly removed: readonly Reference[];
  /** Images that lost their last name. */
  readonly unnamed: readonly ImageDigest[];
  /** How long an image without a name is kept at least. */
  readonly graceMs: number;
  readonly failures: readonly { readonly name: string; readonly error: unknown }[];
}

/**
 * Tries all of `names` (NAME:TAG). A name that is not there (NOT_FOUND) or means another image than `expected` (BUSY) is
 * a failure in the report. Throws what the store throws when it is opened for writing or listed.
 */
export async function removeNames(
  store: RootStore,
  names: readonly string[],
  options: RemoveOptions = {},
): Promise<RemoveReport> {
  const writer = await store.writer();
  // Looked at before, since a listing may lag behind what is taken away now.
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
  const reference = await store.getReference(name);
  if (!reference) throw new LazydiskError('NOT_FOUND', `no image ${name} in ${store.url}`);
  const { digest } = reference;
  if (expected !== undefined && expected !== digest)
    throw new LazydiskError('BUSY', `${name} is ${digest} and not ${expected}: it stays`);
  // What the report says that it meant is what it means when it goes.
  if (!dryRun) await writer.removeReference(name, { expected: digest });
  return reference;
}
