/**
 * Archives that `docker save` and `skopeo copy … docker-archive:` write. Current docker puts an OCI layout into the
 * archive, which is then read as one; the older form, which skopeo still writes, is manifest.json with paths of layers.
 * It states no digest of a layer's file, but the config is named by its digest and holds those of the tars.
 */
import { createHash } from 'node:crypto';
import { LazydiskError } from '../../errors.ts';
import {
  configDocument,
  DOCUMENT_BYTES_MAX,
  dockerManifestDocument,
  imageConfig,
  parseDocument,
} from './documents.ts';
import { readBlob, readWhole, type SourceFiles } from './files.ts';
import { checkedDiffIds, checkPlatform } from './image-manifest.ts';
import type { ImageSource, LayerBlob } from './image-source.ts';
import { openBlob } from './layer-blob.ts';
import type { Compression } from './media-types.ts';
import { openOciLayout, sameName } from './oci-layout.ts';
import type { Platform } from './platform.ts';

/** The source closes `files` when it is closed; if this throws, the caller does. */
export async function openDockerArchive(
  description: string,
  files: SourceFiles,
  tag: string | undefined,
  wanted: Platform,
): Promise<ImageSource> {
  const isLayout =
    (await files.sizeOf('index.json')) !== undefined && (await files.sizeOf('oci-layout')) !== undefined;
  return await (isLayout ? openOciLayout : openOld)(description, files, tag, wanted);
}

async function openOld(
  description: string,
  files: SourceFiles,
  tag: string | undefined,
  wanted: Platform,
): Promise<ImageSource> {
  const bytes = await readWhole(files, 'manifest.json', DOCUMENT_BYTES_MAX);
  if (!bytes)
    throw new LazydiskError(
      'NOT_FOUND',
      `${files.description} is not a docker archive: it has no manifest.json`,
    );
  const images = parseDocument(dockerManifestDocument, bytes, `${files.description}: manifest.json`);
  const image = chooseImage(files, images, tag);

  const configBytes = await readWhole(files, image.Config, DOCUMENT_BYTES_MAX);
  if (!configBytes) {
    throw new LazydiskError(
      'NOT_FOUND',
      `${files.description}: config ${JSON.stringify(image.Config)} is missing`,
    );
  }
  const digest = `sha256:${createHash('sha256').update(configBytes).digest('hex')}`;
  const stated = /(?:^|\/)([0-9a-f]{64})(?:\.json)?$/.exec(image.Config)?.[1];
  if (stated !== undefined && digest !== `sha256:${stated}`) {
    throw new LazydiskError('CORRUPT', `blob sha256:${stated} (${image.Config}) has digest ${digest}`);
  }
  const document = parseDocument(configDocument, configBytes, `config ${image.Config}`);
  checkPlatform(files, document, wanted);
  const names = image.Layers ?? [];
  const diffIds = checkedDiffIds(document.rootfs.diff_ids ?? [], names.length, digest);
  const layers: LayerBlob[] = [];
  for (const [index, name] of names.entries()) layers.push(await layerOf(files, name, diffIds[index]!));
  return { description, digest, config: imageConfig(document), layers, close: () => files.close() };
}

type DockerImage = {
  Config: string;
  RepoTags?: string[] | null | undefined;
  Layers?: string[] | null | undefined;
};

function chooseImage(
  files: SourceFiles,
  images: readonly DockerImage[],
  tag: string | undefined,
): DockerImage {
  if (tag === undefined && images.length === 1) return images[0]!;
  const known = images.flatMap((image) => image.RepoTags ?? []).slice(0, 20);
  if (tag === undefined) {
    throw new LazydiskError(
      'USAGE',
      `${files.description} holds several images; name one of: ${known.join(', ')}`,
    );
  }
  const found = images.find((image) => image.RepoTags?.some((name) => sameName(name, tag)));
  if (found) return found;
  throw new LazydiskError(
    'NOT_FOUND',
    `${files.description} has no image named ${JSON.stringify(tag)}; it has: ${known.join(', ') || 'one without a name'}`,
  );
}

const MEDIA_TYPES: Record<Compression, string> = {
  none: 'application/vnd.docker.image.rootfs.diff.tar',
  gzip: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
  zstd: 'application/vnd.docker.image.rootfs.diff.tar.zstd',
};

async function layerOf(files: SourceFiles, name: string, diffId: string): Promise<LayerBlob> {
  const sizeBytes = await files.sizeOf(name);
  if (sizeBytes === undefined) {
    throw new LazydiskError(
      'NOT_FOUND',
      `blob ${diffId} (${JSON.stringify(name)}) is missing in ${files.description}`,
    );
  }
  const compression = await compressionOf(files, name, sizeBytes);
  const blob = { digest: diffId, sizeBytes, compression, blobDigest: undefined, diffId };
  const file = { name, digest: diffId, sizeBytes };
  return {
    digest: diffId,
    mediaType: MEDIA_TYPES[compression],
    sizeBytes,
    diffId,
    open: (signal, onInput) => openBlob(readBlob(files, file), blob, signal, onInput),
  };
}

/** manifest.json states no media types, so the first bytes decide. */
async function compressionOf(files: SourceFiles, name: string, sizeBytes: number): Promise<Compression> {
  if (sizeBytes < 4) return 'none';
  for await (const bytes of files.read(name)) {
    if (bytes[0] === 0x1f && bytes[1] === 0x8b) return 'gzip';
    return bytes.readUInt32LE(0) === 0xfd2fb528 ? 'zstd' : 'none';
  }
  return 'none';
}
