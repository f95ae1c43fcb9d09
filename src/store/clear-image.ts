/** The clear part of an image's manifest: what is known of an image without a key. */
import { LazydiskError } from '../errors.ts';
import { type ImageDigest, isDigest } from '../format/image-digest.ts';
import type { ClearManifest } from '../format/manifest-clear.ts';
import { findReference } from './find-reference.ts';
import { proveClear } from './manifest-check.ts';
import type { Store } from './store.ts';

export interface ClearImage {
  /** `name:tag`, or the digest if it was asked for by digest. */
  readonly name: string;
  readonly digest: ImageDigest;
  readonly clear: ClearManifest;
}

/**
 * Finds the image that `nameOrDigest` (`NAME[:TAG]` or `sha256:…`) names in `store`; needs no key. Throws USAGE if it
 * is neither, NOT_FOUND, CORRUPT, UNSUPPORTED if the store cannot be listed.
 */
export async function loadClearImage(store: Store, nameOrDigest: string): Promise<ClearImage> {
  const { name, digest } = isDigest(nameOrDigest)
    ? { name: nameOrDigest, digest: nameOrDigest }
    : await findReference(store, nameOrDigest);
  return { name, digest, clear: await anyClear(store, digest, await store.manifestKeys(digest)) };
}

/** The clear part of the first valid manifest for one of `keyIds`. Throws NOT_FOUND, CORRUPT. */
export async function anyClear(
  store: Store,
  digest: ImageDigest,
  keyIds: readonly string[],
): Promise<ClearManifest> {
  let failure: unknown;
  for (const keyId of keyIds) {
    const bytes = await store.getManifest(digest, keyId);
    if (!bytes) continue;
    try {
      return proveClear(bytes, digest, `${store.url}: manifest of ${digest} for key ${keyId}`);
    } catch (error) {
      failure ??= error;
    }
  }
  throw failure ?? new LazydiskError('NOT_FOUND', `${store.url}: no manifest of ${digest}`);
}
