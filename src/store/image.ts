/** From an image's name or digest to its opened manifest, with each step's failure named. */
import { LazydiskError } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import { isDigest } from '../format/image-digest.ts';
import type { Manifest } from '../format/manifest.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import { openManifest } from './open-manifest.ts';
import { referenceName } from './reference-name.ts';
import type { Reference, Store } from './store.ts';

export interface Image {
  /** As in `references`, `name:tag`, or the digest when it was asked for by that. */
  readonly name: string;
  readonly reference?: Reference;
  readonly digest: ImageDigest;
  readonly manifest: Manifest;
}

/**
 * Opens the image that `nameOrDigest` (`NAME[:TAG]` or `sha256:…`) means in `store`. Throws USAGE for what is
 * neither, NOT_FOUND, KEY when none of `keys` opens it, CORRUPT when what lies there is not that image.
 */
export async function loadImage(store: Store, nameOrDigest: string, keys: KeyRing): Promise<Image> {
  if (isDigest(nameOrDigest)) {
    return {
      name: nameOrDigest,
      digest: nameOrDigest,
      manifest: await openManifest(store, nameOrDigest, nameOrDigest, keys),
    };
  }
  const name = referenceName(nameOrDigest);
  const reference = await store.getReference(name);
  if (!reference) throw new LazydiskError('NOT_FOUND', `no image ${name} in ${store.url}`);
  return {
    name,
    reference,
    digest: reference.digest,
    manifest: await openManifest(store, name, reference.digest, keys),
  };
}
