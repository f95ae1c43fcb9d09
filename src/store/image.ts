/** From an image's name or digest to its opened manifest, with each step's failure named. */
import { errorText, LazydiskError } from '../errors.ts';
import type { TenantKey } from '../format/keys.ts';
import { Manifest } from '../format/manifest.ts';
import { isDigest, referenceName } from './reference-name.ts';
import type { ImageDigest, Reference, Store } from './store.ts';

export interface Image {
  /** As in `references`, `name:tag`, or the digest when it was asked for by that. */
  readonly name: string;
  readonly reference?: Reference;
  readonly digest: ImageDigest;
  readonly manifest: Manifest;
}

/** What `listImages` knows of a name; of an image that does not open, why. */
export interface ImageListing {
  readonly reference: Reference;
  readonly manifest?: Manifest;
  readonly problem?: string;
}

/**
 * Opens the image that `nameOrDigest` (`NAME[:TAG]` or `sha256:…`) means in `store`. Throws USAGE for what is
 * neither, NOT_FOUND, KEY when `key` does not open it, CORRUPT when what lies there is not that image.
 */
export async function loadImage(store: Store, nameOrDigest: string, key: TenantKey): Promise<Image> {
  if (isDigest(nameOrDigest)) {
    return {
      name: nameOrDigest,
      digest: nameOrDigest,
      manifest: await loadManifest(store, nameOrDigest, nameOrDigest, key),
    };
  }
  const name = referenceName(nameOrDigest);
  const reference = await store.getReference(name);
  if (!reference) throw new LazydiskError('NOT_FOUND', `no image ${name} in ${store.url}`);
  return {
    name,
    reference,
    digest: reference.digest,
    manifest: await loadManifest(store, name, reference.digest, key),
  };
}

/** All names in `store`, sorted; with `key`, their manifests too. One broken image does not hide the others. */
export async function listImages(store: Store, key?: TenantKey): Promise<ImageListing[]> {
  const listings: ImageListing[] = [];
  for (const reference of await store.listReferences()) {
    if (!key) {
      listings.push({ reference });
      continue;
    }
    try {
      listings.push({
        reference,
        manifest: await loadManifest(store, reference.name, reference.digest, key),
      });
    } catch (error) {
      listings.push({ reference, problem: errorText(error) });
    }
  }
  return listings;
}

async function loadManifest(
  store: Store,
  name: string,
  digest: ImageDigest,
  key: TenantKey,
): Promise<Manifest> {
  const bytes = await store.getManifest(digest, key.id);
  if (!bytes) {
    // A name that is there proves that someone built the image; then it is the key that does not fit.
    const code = name === digest ? 'NOT_FOUND' : 'KEY';
    const why = 'it was built with another key, or deleted';
    throw new LazydiskError(code, `image ${name} in ${store.url}: no manifest for key ${key.id} (${why})`);
  }
  let manifest: Manifest;
  try {
    manifest = Manifest.open(bytes, key);
  } catch (error) {
    const code = error instanceof LazydiskError ? error.code : 'INTERNAL';
    throw new LazydiskError(code, `image ${name} in ${store.url}: ${errorText(error)}`, { cause: error });
  }
  if (manifest.digest !== digest)
    throw new LazydiskError(
      'CORRUPT',
      `image ${name} in ${store.url}: the manifest of ${digest} is that of ${manifest.digest}`,
    );
  return manifest;
}
