/**
 * Resolves a descriptor to an image, wherever its blobs are: (index →) manifest → config and layers. Each document is
 * checked against the digest and size that its descriptor states. Spec: OCI image-spec 1.1, "Image Index", "Image
 * Manifest".
 */

import { LazydiskError } from '../../errors.ts';
import type { TypeOf } from '../../shape.ts';
import {
  configDocument,
  type Descriptor,
  imageConfig,
  indexDocument,
  LAYERS_MAX,
  manifestDocument,
  parseDocument,
} from './documents.ts';
import type { ImageSource, LayerBlob } from './image-source.ts';
import { type BlobDescription, checkDigest, checkedDigestName, hashOf, openBlob } from './layer-blob.ts';
import { isConfig, isIndex, isManifest, layerCompression } from './media-types.ts';
import { choosePlatform, matchesPlatform, type Platform, showPlatform } from './platform.ts';

const INDEX_DEPTH_MAX = 4;

/**
 * The bytes of a layer's blob, unchecked, each buffer valid until the next is requested. Throws NOT_FOUND, UNAVAILABLE.
 */
export type LayerReader = (signal?: AbortSignal) => AsyncIterable<Buffer>;

/** The blobs of an image's source. */
export interface ImageBlobs {
  /** Where they are, for messages. */
  readonly description: string;
  /** A whole document, unchecked, of at most DOCUMENT_BYTES_MAX. Throws NOT_FOUND, CORRUPT for a longer one, UNAVAILABLE. */
  document(descriptor: Descriptor): Promise<Buffer>;
  /** A reader for each of the image's layers, base first. They are used one after the other, mostly in this order. */
  layers(descriptors: readonly Descriptor[]): readonly LayerReader[];
  close(): Promise<void>;
}

/**
 * Opens the image for the platform `wanted` among `descriptors`. The source closes `blobs` when it is closed; if this
 * throws, the caller must. Throws NOT_FOUND, CORRUPT, UNSUPPORTED, UNAVAILABLE.
 */
export async function openImage(
  description: string,
  blobs: ImageBlobs,
  descriptors: readonly Descriptor[],
  wanted: Platform,
): Promise<ImageSource> {
  const descriptor = await manifestFor(blobs, descriptors, wanted, INDEX_DEPTH_MAX);
  return await openManifest(description, blobs, descriptor, wanted);
}

/** Walks down to the manifest of the wanted platform. */
async function manifestFor(
  blobs: ImageBlobs,
  descriptors: readonly Descriptor[],
  wanted: Platform,
  depthLeft: number,
): Promise<Descriptor> {
  // A single image need not state its platform here: its config does.
  const [only] = descriptors;
  const chosen =
    descriptors.length === 1 && !only?.platform
      ? only
      : (choosePlatform(descriptors, (one) => one.platform ?? undefined, wanted) ??
        descriptors.find((one) => isIndex(one.mediaType) && !one.platform));
  if (!chosen) {
    const offered = descriptors.flatMap((one) => (one.platform ? [showPlatform(one.platform)] : []));
    throw new LazydiskError(
      'NOT_FOUND',
      `${blobs.description} has no image for ${showPlatform(wanted)}; it has: ${offered.slice(0, 20).join(', ') || 'none'}`,
    );
  }
  if (isManifest(chosen.mediaType)) return chosen;
  if (!isIndex(chosen.mediaType)) {
    throw new LazydiskError(
      'UNSUPPORTED',
      `${chosen.digest} is of type ${JSON.stringify(chosen.mediaType)}, not an image`,
    );
  }
  if (depthLeft === 0)
    throw new LazydiskError('UNSUPPORTED', `indexes nested more than ${INDEX_DEPTH_MAX} deep`);
  const index = parseDocument(indexDocument, await readDocument(blobs, chosen), `index ${chosen.digest}`);
  return await manifestFor(blobs, index.manifests, wanted, depthLeft - 1);
}

async function openManifest(
  description: string,
  blobs: ImageBlobs,
  descriptor: Descriptor,
  wanted: Platform,
): Promise<ImageSource> {
  const manifest = parseDocument(
    manifestDocument,
    await readDocument(blobs, descriptor),
    `manifest ${descriptor.digest}`,
  );
  if (!isConfig(manifest.config.mediaType)) {
    throw new LazydiskError(
      'UNSUPPORTED',
      `manifest ${descriptor.digest} is of an artifact (${JSON.stringify(manifest.config.mediaType)}), not an image`,
    );
  }
  const document = parseDocument(
    configDocument,
    await readDocument(blobs, manifest.config),
    `config ${manifest.config.digest}`,
  );
  checkPlatform(blobs, document, wanted);
  const diffIds = checkedDiffIds(
    document.rootfs.diff_ids ?? [],
    manifest.layers.length,
    manifest.config.digest,
  );
  const described = manifest.layers.map((layer, index) => describeLayer(layer, diffIds[index]!));
  const readers = blobs.layers(manifest.layers);
  const layers = described.map(
    (layer, index): LayerBlob => ({
      digest: layer.digest,
      mediaType: manifest.layers[index]!.mediaType,
      sizeBytes: layer.sizeBytes,
      diffId: layer.diffId,
      open: (signal, onInput) => openBlob(readers[index]!(signal), layer, signal, onInput),
    }),
  );
  return {
    description,
    digest: descriptor.digest,
    config: imageConfig(document),
    layers,
    close: () => blobs.close(),
  };
}

/** Throws CORRUPT unless there is a digest for each layer. */
export function checkedDiffIds(
  diffIds: readonly string[],
  layers: number,
  config: string,
): readonly string[] {
  if (layers > LAYERS_MAX) {
    throw new LazydiskError('UNSUPPORTED', `an image of ${layers} layers; the maximum is ${LAYERS_MAX}`);
  }
  if (diffIds.length !== layers) {
    throw new LazydiskError(
      'CORRUPT',
      `config ${config} has ${diffIds.length} diff_ids for ${layers} layers`,
    );
  }
  for (const diffId of diffIds) checkedDigestName(diffId, `config ${config}: diff_ids`);
  return diffIds;
}

/** Throws NOT_FOUND if the config is for another platform; some tools leave the platform empty. */
export function checkPlatform(
  blobs: { readonly description: string },
  config: Pick<TypeOf<typeof configDocument>, 'os' | 'architecture' | 'variant'>,
  wanted: Platform,
): void {
  const { os = '', architecture = '', variant } = config;
  const offered = { os, architecture, variant: variant ?? undefined };
  if (offered.architecture === '' || matchesPlatform(offered, wanted)) return;
  throw new LazydiskError(
    'NOT_FOUND',
    `${blobs.description} has no image for ${showPlatform(wanted)}; it has: ${showPlatform(offered)}`,
  );
}

/** Throws CORRUPT, UNSUPPORTED. */
function describeLayer({ digest, size, mediaType }: Descriptor, diffId: string): BlobDescription {
  checkedDigestName(digest, 'a layer');
  const compression = layerCompression(mediaType, digest);
  return { digest, sizeBytes: size, compression, blobDigest: digest, diffId };
}

/** Reads a document and checks its digest and size. Throws NOT_FOUND, CORRUPT. */
async function readDocument(blobs: ImageBlobs, descriptor: Descriptor): Promise<Buffer> {
  const { digest, size } = descriptor;
  checkedDigestName(digest, 'a descriptor');
  const bytes = await blobs.document(descriptor);
  if (bytes.length !== size) {
    throw new LazydiskError('CORRUPT', `blob ${digest} is ${bytes.length} bytes, expected ${size}`);
  }
  checkDigest(hashOf(digest).update(bytes), digest, `blob ${digest}`);
  return bytes;
}
