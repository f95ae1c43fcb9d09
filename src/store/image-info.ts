/** What people are told of images: from the store's references and manifests to the API's words. */

import type { ImageContent, ImageDetail, ImageInfo } from '../daemon/api.ts';
import { LazydiskError } from '../errors.ts';
import type { Manifest } from '../format/manifest.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import { loadImage } from './image.ts';
import { listImages } from './image-list.ts';
import { isDigest, referenceName } from './reference-name.ts';
import type { Store } from './store.ts';

/** All names in `store`; with keys, also whether each image opens with them. */
export async function describeImages(store: Store, keys: KeyRing | undefined): Promise<ImageInfo[]> {
  const listings = await listImages(store, keys);
  return listings.map(({ reference, keyIds, figures, problem }) => ({
    name: reference.name,
    digest: reference.digest,
    updated: reference.updated,
    sizeBytes: figures?.diskBytes ?? null,
    storedChunks: figures?.storedChunks ?? null,
    storedBytes: figures?.storedBytes ?? null,
    uniqueBytes: figures?.uniqueBytes ?? null,
    keys: keyIds,
    problem: problem ?? null,
  }));
}

/** One image by name or digest. Throws NOT_FOUND, KEY, CORRUPT, USAGE. */
export async function describeImage(
  store: Store,
  nameOrDigest: string,
  keys: KeyRing | undefined,
): Promise<ImageDetail> {
  if (keys) {
    const { name, digest, reference, manifest } = await loadImage(store, nameOrDigest, keys);
    return { name, digest, updated: reference?.updated ?? null, content: contentOf(manifest) };
  }
  if (isDigest(nameOrDigest))
    throw new LazydiskError('KEY', 'an image is looked up by its digest with a key only');
  const name = referenceName(nameOrDigest);
  const reference = await store.getReference(name);
  if (!reference) throw new LazydiskError('NOT_FOUND', `no image ${name} in ${store.url}`);
  return { name, digest: reference.digest, updated: reference.updated, content: null };
}

function contentOf(manifest: Manifest): ImageContent {
  const { clear, metadata } = manifest;
  return {
    sizeBytes: manifest.diskBytes,
    storedChunks: manifest.storedChunks,
    storedBytes: clear.sealedBytes(),
    writer: clear.writerVersion,
    encoder: clear.encoderVersion,
    domain: clear.domain,
    saltEpoch: clear.saltEpoch,
    source: metadata.source.digest,
    architecture: metadata.architecture,
    os: metadata.os,
    layers: metadata.layers.map(({ digest, sizeBytes, chunks }) => ({ digest, sizeBytes, chunks })),
    config: metadata.config,
  };
}
