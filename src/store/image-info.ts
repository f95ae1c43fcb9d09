/** Descriptions of images for people, from the store's references and manifests. */
import { LazydiskError } from '../errors.ts';
import { isDigest } from '../format/image-digest.ts';
import type { Manifest } from '../format/manifest.ts';
import type { LayerRange, RunConfig } from '../format/manifest-metadata.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import { findReference } from './find-reference.ts';
import { loadImage } from './image.ts';
import { listImages } from './image-list.ts';
import type { Store } from './store.ts';

export interface ImageInfo {
  /** NAME:TAG */
  readonly name: string;
  readonly digest: string;
  readonly updated: string;
  /** Size of the disk, number of chunks with data, their sealed bytes; null if no manifest is valid. */
  readonly sizeBytes: number | null;
  readonly storedChunks: number | null;
  readonly storedBytes: number | null;
  /** Sealed bytes of its chunks that no other image in the list has. */
  readonly uniqueBytes: number | null;
  /** Ids of the keys that it is sealed for. */
  readonly keys: readonly string[];
  /** Why it does not open with the given keys (without keys: why its size is unknown), or null. */
  readonly problem: string | null;
}

export interface ImageDetail {
  /** NAME:TAG, or the digest if it was asked for by digest. */
  readonly name: string;
  readonly digest: string;
  readonly updated: string | null;
  /** The content of the manifest; null without a key to find and open it. */
  readonly content: ImageContent | null;
}

export interface ImageContent {
  readonly sizeBytes: number;
  readonly storedChunks: number;
  readonly storedBytes: number;
  /** Versions of the code that laid out the disk and of the code that encoded its chunks. */
  readonly writer: string;
  readonly encoder: string;
  readonly domain: string;
  readonly saltEpoch: number;
  /** Digest of the image that was flattened. */
  readonly source: string;
  readonly architecture: string;
  readonly os: string;
  readonly layers: readonly Pick<LayerRange, 'digest' | 'sizeBytes' | 'chunks'>[];
  readonly config: RunConfig;
}

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
  const { name, digest, updated } = await findReference(store, nameOrDigest);
  return { name, digest, updated, content: null };
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
