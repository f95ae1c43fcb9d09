/** Media types of OCI (image-spec 1.1) and Docker (image manifest v2, schema 2), and how each is treated. */
import { LazydiskError } from '../../errors.ts';

export type Compression = 'none' | 'gzip' | 'zstd';

const INDEX = new Set([
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
]);
const MANIFEST = new Set([
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.v2+json',
]);
const CONFIG = new Set([
  'application/vnd.oci.image.config.v1+json',
  'application/vnd.docker.container.image.v1+json',
]);
const LAYER = new Map<string, Compression>([
  ['application/vnd.oci.image.layer.v1.tar', 'none'],
  ['application/vnd.oci.image.layer.v1.tar+gzip', 'gzip'],
  ['application/vnd.oci.image.layer.v1.tar+zstd', 'zstd'],
  ['application/vnd.docker.image.rootfs.diff.tar', 'none'],
  ['application/vnd.docker.image.rootfs.diff.tar.gzip', 'gzip'],
  ['application/vnd.docker.image.rootfs.diff.tar.zstd', 'zstd'],
]);

/** What a registry may return for a name. */
export const MANIFEST_TYPES: readonly string[] = [...MANIFEST, ...INDEX];

export const isIndex = (mediaType: string) => INDEX.has(mediaType);
export const isManifest = (mediaType: string) => MANIFEST.has(mediaType);
export const isConfig = (mediaType: string) => CONFIG.has(mediaType);

/** How a layer of this type is compressed. Throws UNSUPPORTED, saying why. */
export function layerCompression(mediaType: string, digest: string): Compression {
  const compression = LAYER.get(mediaType);
  if (compression) return compression;
  const why = /encrypted/.test(mediaType)
    ? 'it is encrypted'
    : /nondistributable|foreign/.test(mediaType)
      ? 'its content is not part of the image'
      : 'want tar, gzip or zstd';
  throw new LazydiskError('UNSUPPORTED', `layer ${digest} of type ${JSON.stringify(mediaType)}: ${why}`);
}
