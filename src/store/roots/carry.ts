/**
 * Copies a whole image into a root from anywhere in the store: chunks first, then manifests, so that a manifest in a
 * root means that all of its chunks are there (or in that root's trash). Nothing is decoded, no key is needed, and if
 * the store can copy, the bytes do not pass through this process.
 */
import { pooled } from '../../async/pooled.ts';
import { LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import type { ClearManifest } from '../../format/manifest-clear.ts';
import { proveClear } from '../manifest-check.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import { type AreaPath, chunkKey, manifestKey, manifestsPrefix, meaningOf } from './layout.ts';
import type { StoreParts } from './parts.ts';
import { boundedWrites, carryManifest, MANIFEST_BYTES_MAX } from './place-manifest.ts';
import type { View } from './view.ts';

const COPIES_MAX = 16;

export interface CarryOptions {
  /**
   * Accept a manifest in the root as proof that all its chunks are there. Its writer may have stalled, and put it when
   * the chunks were gone, so anything done on this basis is checked again later.
   */
  readonly isTrusting?: boolean;
  /** Ids of keys whose manifests a listing may not show yet. */
  readonly knownKeys?: readonly string[];
  /**
   * Called before manifests are written; throws if that is too late, because chunks that were there at the start may
   * have been swept and purged by then.
   */
  checkTime(): void;
  onCopied?(bytes: number): void;
}

/** The ids of the keys for which `area` has manifests of `digest`, sorted. */
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
 * Copies whatever is missing of image `digest` into root `to`. False if no area of `view` has a manifest of it. Throws
 * NOT_FOUND if one of its chunks is nowhere, CORRUPT, UNAVAILABLE, and what `checkTime` throws.
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
  // A trusting caller needs no listing to find a manifest that it knows.
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
  await copyChunks(objects, { digest, clear }, from, to, options);
  if (here.length > 0) return true;
  // The source may be purged meanwhile; then the manifest is not here.
  let isHere = false;
  for (const keyId of new Set(places.map((place) => place.keyId))) {
    const what = `${objects.url}: writing ${manifestKey(to, digest, keyId)}`;
    const bounded = boundedWrites(parts, what, options.checkTime);
    if (await carryManifest(objects, { digest, keyId }, from, to, bounded)) isHere = true;
  }
  return isHere;
}

/**
 * The clear part of the first valid manifest of `digest`; undefined if there is none. Throws CORRUPT if none is valid.
 */
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
  { digest, clear }: { readonly digest: ImageDigest; readonly clear: ClearManifest },
  from: readonly AreaPath[],
  to: AreaPath,
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
): Promise<boolean> {
  for (const area of from) if (await objects.copy(chunkKey(area, id), chunkKey(to, id))) return true;
  return false;
}
