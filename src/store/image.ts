/** Opens an image's manifest from its name or digest; errors name the step that failed. */
import type { ImageDigest } from '../format/image-digest.ts';
import { isDigest } from '../format/image-digest.ts';
import type { Manifest } from '../format/manifest.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import { findReference } from './find-reference.ts';
import { openManifest } from './open-manifest.ts';
import type { Reference, Store } from './store.ts';

export interface Image {
  /** `name:tag` as in `references`, or the digest if it was asked for by digest. */
  readonly name: string;
  readonly reference?: Reference;
  readonly digest: ImageDigest;
  readonly manifest: Manifest;
}

/**
 * Opens the image that `nameOrDigest` (`NAME[:TAG]` or `sha256:…`) names in `store`. Throws USAGE if it is neither,
 * NOT_FOUND, KEY if none of `keys` opens it, CORRUPT if the stored manifest is not that of the image.
 */
export async function loadImage(store: Store, nameOrDigest: string, keys: KeyRing): Promise<Image> {
  if (isDigest(nameOrDigest)) {
    return {
      name: nameOrDigest,
      digest: nameOrDigest,
      manifest: await openManifest(store, nameOrDigest, nameOrDigest, keys),
    };
  }
  const reference = await findReference(store, nameOrDigest);
  const { name, digest } = reference;
  return { name, reference, digest, manifest: await openManifest(store, name, digest, keys) };
}
