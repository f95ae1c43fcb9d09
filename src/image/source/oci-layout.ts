/**
 * An image in an OCI layout: index.json → (nested index →) manifest → config and layers, each document checked
 * against the digest and size by which it was named. Spec: OCI image-spec 1.1, "Image Layout".
 */
import { LazydiskError } from '../../errors.ts';
import type { ImageSource, LayerBlob } from '../source.ts';
import {
  configDocument,
  type Descriptor,
  DOCUMENT_BYTES_MAX,
  imageConfig,
  indexDocument,
  LAYERS_MAX,
  manifestDocument,
  parseDocument,
} from './documents.ts';
import { readWhole, type SourceFiles } from './files.ts';
import { checkDigest, checkedDigestName, hashOf, openBlob } from './layer-blob.ts';
import { isConfig, isIndex, isManifest, layerCompression } from './media-types.ts';
import { choosePlatform, matchesPlatform, type Platform, showPlatform } from './platform.ts';

const INDEX_DEPTH_MAX = 4;

/** The source closes `files` when it is closed; if this throws, the caller does. */
export async function openOciLayout(
  description: string,
  files: SourceFiles,
  tag: string | undefined,
  wanted: Platform,
): Promise<ImageSource> {
  const bytes = await readWhole(files, 'index.json', DOCUMENT_BYTES_MAX);
  if (!bytes)
    throw new LazydiskError('NOT_FOUND', `${files.description} is no OCI layout: no index.json in it`);
  const index = parseDocument(indexDocument, bytes, `${files.description}: index.json`);
  const named = byTag(index.manifests, tag, files.description);
  const descriptor = await manifestFor(files, named, wanted, INDEX_DEPTH_MAX);
  return await openManifest(description, files, descriptor, wanted);
}

/** Those of index.json's images that the tag means; without a tag, all of them if they share one name. */
function byTag(manifests: readonly Descriptor[], tag: string | undefined, where: string): Descriptor[] {
  const names = (one: Descriptor) =>
    ['org.opencontainers.image.ref.name', 'io.containerd.image.name']
      .map((key) => one.annotations?.[key])
      .filter((name) => name !== undefined);
  const known = [...new Set(manifests.flatMap((one) => names(one)[0] ?? []))];
  if (tag === undefined) {
    if (known.length <= 1) return [...manifests];
    throw new LazydiskError(
      'USAGE',
      `${where} holds several images, say which: ${known.slice(0, 20).join(', ')}`,
    );
  }
  const found = manifests.filter((one) => names(one).some((name) => sameName(name, tag)));
  if (found.length > 0) return found;
  throw new LazydiskError(
    'NOT_FOUND',
    `${where} has no image named ${JSON.stringify(tag)}; it has: ${known.slice(0, 20).join(', ') || 'one without a name'}`,
  );
}

/** Docker's short names: `debian` is `docker.io/library/debian:latest`. */
export function sameName(name: string, asked: string): boolean {
  const full = (short: string) => {
    const tagged = /:[^/]+$|@/.test(short) ? short : `${short}:latest`;
    return tagged.replace(/^docker\.io\//, '').replace(/^library\//, '');
  };
  return name === asked || full(name) === full(asked);
}

/** Walks down to the manifest of the wanted platform. */
async function manifestFor(
  files: SourceFiles,
  descriptors: readonly Descriptor[],
  wanted: Platform,
  depthLeft: number,
): Promise<Descriptor> {
  // A lone image need not say its platform here: its config will.
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
      `${files.description} has no image for ${showPlatform(wanted)}; it has: ${offered.slice(0, 20).join(', ') || 'none'}`,
    );
  }
  if (isManifest(chosen.mediaType)) return chosen;
  if (!isIndex(chosen.mediaType)) {
    throw new LazydiskError(
      'UNSUPPORTED',
      `${chosen.digest} is of type ${JSON.stringify(chosen.mediaType)}, no image`,
    );
  }
  if (depthLeft === 0) throw new LazydiskError('UNSUPPORTED', `indexes nested over ${INDEX_DEPTH_MAX} deep`);
  const index = parseDocument(indexDocument, await readDocument(files, chosen), `index ${chosen.digest}`);
  return await manifestFor(files, index.manifests, wanted, depthLeft - 1);
}

async function openManifest(
  description: string,
  files: SourceFiles,
  descriptor: Descriptor,
  wanted: Platform,
): Promise<ImageSource> {
  const manifest = parseDocument(
    manifestDocument,
    await readDocument(files, descriptor),
    `manifest ${descriptor.digest}`,
  );
  if (!isConfig(manifest.config.mediaType)) {
    throw new LazydiskError(
      'UNSUPPORTED',
      `manifest ${descriptor.digest} is of an artifact (${JSON.stringify(manifest.config.mediaType)}), no image`,
    );
  }
  const document = parseDocument(
    configDocument,
    await readDocument(files, manifest.config),
    `config ${manifest.config.digest}`,
  );
  checkPlatform(files, document, wanted);
  const diffIds = checkedDiffIds(
    document.rootfs.diff_ids ?? [],
    manifest.layers.length,
    manifest.config.digest,
  );
  const layers = manifest.layers.map((layer, index) => layerOf(files, layer, diffIds[index]!));
  return {
    description,
    digest: descriptor.digest,
    config: imageConfig(document),
    layers,
    close: () => files.close(),
  };
}

/** Throws CORRUPT unless there is a digest for each layer. */
export function checkedDiffIds(
  diffIds: readonly string[],
  layers: number,
  config: string,
): readonly string[] {
  if (layers > LAYERS_MAX) {
    throw new LazydiskError('UNSUPPORTED', `an image of ${layers} layers, at most ${LAYERS_MAX} are read`);
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

/** Throws NOT_FOUND when the config is for another platform; some tools leave it empty. */
export function checkPlatform(
  files: SourceFiles,
  config: { os: string; architecture: string; variant?: string | null | undefined },
  wanted: Platform,
): void {
  const offered = { os: config.os, architecture: config.architecture, variant: config.variant ?? undefined };
  if (offered.architecture === '' || matchesPlatform(offered, wanted)) return;
  throw new LazydiskError(
    'NOT_FOUND',
    `${files.description} has no image for ${showPlatform(wanted)}; it has: ${showPlatform(offered)}`,
  );
}

function layerOf(files: SourceFiles, layer: Descriptor, diffId: string): LayerBlob {
  const digest = checkedDigestName(layer.digest, 'a layer');
  const blob = {
    name: blobName(digest),
    digest,
    sizeBytes: layer.size,
    compression: layerCompression(layer.mediaType, digest),
    blobDigest: digest,
    diffId,
  };
  return {
    digest,
    mediaType: layer.mediaType,
    sizeBytes: layer.size,
    diffId,
    open: (signal, onInput) => openBlob(files, blob, signal, onInput),
  };
}

/** A document named by its digest and size. Throws NOT_FOUND, CORRUPT. */
async function readDocument(files: SourceFiles, { digest, size }: Descriptor): Promise<Buffer> {
  checkedDigestName(digest, 'a descriptor');
  const bytes = await readWhole(files, blobName(digest), DOCUMENT_BYTES_MAX);
  if (!bytes) throw new LazydiskError('NOT_FOUND', `blob ${digest} is missing in ${files.description}`);
  if (bytes.length !== size) {
    throw new LazydiskError('CORRUPT', `blob ${digest} is ${bytes.length} bytes, expected ${size}`);
  }
  checkDigest(hashOf(digest).update(bytes), digest, `blob ${digest}`);
  return bytes;
}

/** Where a layout keeps a blob; `digest` has passed DIGEST, so the name leads nowhere else. */
function blobName(digest: string): string {
  return `blobs/${digest.slice(0, 6)}/${digest.slice(7)}`;
}
