/**
 * Lists a store's names, with their images and sizes from the clear parts of manifests. No key is needed; with keys,
 * each image is also opened, to see whether it can be. Only a few manifests are in memory at a time, so that a list of
 * thousands of images takes the memory of a few.
 */
import { pooled } from '../async/pooled.ts';
import { errorText } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import type { ClearManifest } from '../format/manifest-clear.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import { ChunkOwners } from './chunk-owners.ts';
import { anyClear } from './clear-image.ts';
import { openManifest } from './open-manifest.ts';
import type { Reference, Store } from './store.ts';

/** Manifests in memory at once. */
const MANIFESTS_MAX = 8;

export interface ImageListing {
  readonly reference: Reference;
  /** Ids of the keys that the image has manifests for, sorted. */
  readonly keyIds: readonly string[];
  /** Undefined if no manifest is valid. */
  readonly figures?: ImageFigures;
  /** Why the image does not open with the keys at hand; without keys, why it has no figures. */
  readonly problem?: string;
}

export interface ImageFigures {
  readonly diskBytes: number;
  /** Chunks of the disk that are not all zero, and their sealed bytes; repeated chunks count each time. */
  readonly storedChunks: number;
  readonly storedBytes: number;
  /** Sealed bytes of the distinct chunks that no other image in the list has. */
  readonly uniqueBytes: number;
}

/** An image as it was found; `number` is its number in the table of chunk owners. */
interface Found {
  readonly keyIds: readonly string[];
  readonly figures?: Omit<ImageFigures, 'uniqueBytes'> & { readonly number: number };
  readonly problem?: string;
}

/**
 * All names in `store`, sorted. A broken image does not hide the others. Throws UNSUPPORTED if the store cannot be
 * listed.
 */
export async function listImages(store: Store, keys?: KeyRing): Promise<ImageListing[]> {
  const references = await store.listReferences();
  const owners = new ChunkOwners();
  const byDigest = new Map(references.map((reference) => [reference.digest, reference]));
  const found = new Map<ImageDigest, Found>();
  await pooled(MANIFESTS_MAX, byDigest.values(), async (reference) => {
    found.set(reference.digest, await look(store, reference, keys, owners));
  });
  return references.map((reference): ImageListing => {
    const { figures, ...rest } = found.get(reference.digest)!;
    if (!figures) return { reference, ...rest };
    const { number, ...sizes } = figures;
    return { reference, ...rest, figures: { ...sizes, uniqueBytes: owners.uniqueBytes(number) } };
  });
}

async function look(
  store: Store,
  { name, digest }: Reference,
  keys: KeyRing | undefined,
  owners: ChunkOwners,
): Promise<Found> {
  let keyIds: readonly string[] = [];
  let problem: string | undefined;
  let clear: ClearManifest | undefined;
  try {
    keyIds = await store.manifestKeys(digest);
    if (keys)
      clear = await openClear(store, name, digest, keyIds, keys).catch((error) => {
        problem = errorText(error);
        return undefined;
      });
    clear ??= await anyClear(store, digest, keyIds);
  } catch (error) {
    problem ??= errorText(error);
  }
  const figures = clear && {
    diskBytes: clear.diskBytes,
    storedChunks: clear.storedChunks,
    storedBytes: clear.sealedBytes(),
    number: await owners.add(clear),
  };
  return { keyIds, ...(figures && { figures }), ...(problem !== undefined && { problem }) };
}

/** The clear part of a manifest that opens with `keys`. */
async function openClear(
  store: Store,
  name: string,
  digest: ImageDigest,
  keyIds: readonly string[],
  keys: KeyRing,
): Promise<ClearManifest> {
  const source = {
    url: store.url,
    getManifest: store.getManifest.bind(store),
    manifestKeys: async () => [...keyIds],
  };
  return (await openManifest(source, name, digest, keys)).clear;
}
