/**
 * Brings a whole image into a root, from wherever in the store it lies: chunks first, then its manifests, so that a
 * manifest in a root means that all of its chunks are there (or in the trash of a sweep of it). Nothing is decoded and
 * no key is needed, and where the store can, the bytes do not pass through here.
 */
import { pooled } from '../../async/pooled.ts';
import { LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import type { ClearManifest } from '../../format/manifest-clear.ts';
import { proveClear } from '../manifest-check.ts';
import type { ObjectOptions, ObjectStore } from '../objects/object-store.ts';
import { type AreaPath, chunkKey, manifestKey, manifestsPrefix, meaningOf } from './layout.ts';
import type { StoreParts } from './parts.ts';
import { boundedWrites, carryManifest, MANIFEST_BYTES_MAX } from './place-manifest.ts';
import type { View } from './view.ts';

const COPIES_MAX = 16;

export interface CarryOptions {
  /**
   * Take a manifest in the root for the proof that all chunks of it are there. Its writer may have been stopped, and have
   * put it when they were gone, so nothing is done by this that is not looked at again.
   */
  readonly isTrusting?: boolean;
  /** Keys of manifests that a listing may not show yet. */
  readonly knownKeys?: readonly string[];
  /**
   * Called before manifests are written; throws when that is too late, because chunks that were there when it began may
   * have been swept and purged by then.
   */
  checkTime(): void;
  onCopied?(bytes: number): void;
}

/** The ids of the keys that there are manifests of `digest` for in `area`, sorted. */
export async function manifestKeysIn(
  objects: ObjectStore,
  area: AreaPath,
  digest: ImageDigest,
): Promise<string[]> {
  const keyIds: string[] = [];
  for await (const page of objects.list(manifestsPrefix(area, digest))) {
    for (const { key } of page) {
      const meaning = meaningOf(key);
      if (meaning?.kind === 'manifest') keyIds.push(meaning.keyId);
    }
  }
  return keyIds.sort();
}

/**
 * Whether image `digest` is in root `to`, after what was not there of it was copied. False if no area of `view` has it.
 * Throws NOT_FOUND if a chunk of it is nowhere, CORRUPT, UNAVAILABLE, what `checkTime` throws.
 */
export async function ensureIn(
  parts: Pick<StoreParts, 'objects' | 'policy' | 'clock'>,
  view: View,
  to: AreaPath,
  digest: ImageDigest,
  options: CarryOptions,
): Promise<boolean> {
  const { objects } = parts;
  const { knownKeys = [] } = options;
  const here: { area: AreaPath; keyId: string }[] = [];
  const places: { area: AreaPath; keyId: string }[] = [];
  const isIn = (keyId: string) => objects.head(manifestKey(to, digest, keyId));
  // Whoever trusts a manifest needs no listing to find one that it knows.
  if (options.isTrusting) for (const keyId of knownKeys) if (await isIn(keyId)) return true;
  for (const path of new Set([to, ...view.areas.map((area) => area.path)])) {
    const keyIds = new Set([...(await manifestKeysIn(objects, path, digest)), ...knownKeys]);
    for (const keyId of keyIds) {
      if (path !== to) places.push({ area: path, keyId });
      else if (await isIn(keyId)) here.push({ area: to, keyId });
    }
    if (here.length > 0 && options.isTrusting) return true;
  }
  const clear = await firstClear(objects, [...here, ...places], digest);
  if (!clear) return false;
  const from = view.areas.map(({ path }) => path).filter((path) => path !== to);
  await copyChunks(objects, clear, from, to, digest, options);
  if (here.length > 0) return true;
  // Where it was may be purged under our hands; then it is not here.
  let isHere = false;
  for (const keyId of new Set(places.map((place) => place.keyId))) {
    const what = `${objects.url}: writing ${manifestKey(to, digest, keyId)}`;
    const bounded = boundedWrites(parts, what, options.checkTime);
    if (await carryManifest(objects, { digest, keyId }, from, to, bounded)) isHere = true;
  }
  return isHere;
}

/** The clear part of the first manifest of `digest` that proves itself; undefined if there is none at all. Throws CORRUPT. */
export async function firstClear(
  objects: ObjectStore,
  places: readonly { readonly area: AreaPath; readonly keyId: string }[],
  digest: ImageDigest,
): Promise<ClearManifest | undefined> {
  let bad: unknown;
  for (const { area, keyId } of places) {
    const key = manifestKey(area, digest, keyId);
    const found = await objects.get(key, MANIFEST_BYTES_MAX);
    if (!found) continue;
    try {
      return proveClear(found.bytes, digest, `${objects.url}/${key}`);
    } catch (error) {
      bad ??= error;
    }
  }
  if (bad) throw bad;
  return undefined;
}

async function copyChunks(
  objects: ObjectStore,
  clear: ClearManifest,
  from: readonly AreaPath[],
  to: AreaPath,
  digest: ImageDigest,
  options: CarryOptions,
): Promise<void> {
  const entries = Array.from({ length: clear.storedChunks }, (_, entry) => entry);
  await pooled(COPIES_MAX, entries, async (entry) => {
    const id = clear.idOf(entry);
    const sealedBytes = clear.sealedBytesOf(entry);
    if ((await objects.head(chunkKey(to, id)))?.sizeBytes === sealedBytes) return;
    if (!(await copyFirst(objects, id, from, to)))
      throw new LazydiskError(
        'NOT_FOUND',
        `${objects.url}: chunk ${clear.indexOf(entry)} (${id}) of image ${digest} is nowhere in the store`,
      );
    options.onCopied?.(sealedBytes);
  });
}

/** Copies chunk `id` into `to` from the first area that has it. */
async function copyFirst(
  objects: ObjectStore,
  id: ChunkId,
  from: readonly AreaPath[],
  to: AreaPath,
  options?: ObjectOptions,
): Promise<boolean> {
  for (const area of from) if (await objects.copy(chunkKey(area, id), chunkKey(to, id), options)) return true;
  return false;
}
