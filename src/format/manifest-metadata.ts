/**
 * What a manifest says about its image besides the disk: the part of the OCI configuration that is needed to start it,
 * and where the image came from. It is JSON, sealed because environments hold secrets. Its bytes go into the image's
 * digest (through an HMAC), so it has one canonical form: keys in the order below, labels sorted, and nothing that
 * depends on the machine, the clock or the path of the build.
 */
import { LazydiskError } from '../errors.ts';

/** The part of an image's OCI configuration that is kept. */
export interface RunConfig {
  readonly entrypoint: readonly string[];
  readonly cmd: readonly string[];
  /** `NAME=value`. */
  readonly env: readonly string[];
  readonly user: string;
  readonly workingDir: string;
  readonly labels: Readonly<Record<string, string>>;
}

/** One layer of the source, and the disk's chunks that its file data went to. */
export interface LayerRange {
  /** Of the layer's blob, as the OCI image manifest names it. */
  readonly digest: string;
  /** Bytes of the blob, compressed as it was pulled. */
  readonly sizeBytes: number;
  /** Disk chunk index; meaningless when `chunks` is 0. */
  readonly firstChunk: number;
  readonly chunks: number;
}

export interface ImageMetadata {
  readonly architecture: string;
  readonly os: string;
  readonly config: RunConfig;
  /** Digest of the image manifest that was flattened. */
  readonly source: { readonly digest: string };
  /** Base layer first. */
  readonly layers: readonly LayerRange[];
}

/** The canonical bytes. */
export function encodeMetadata(metadata: ImageMetadata): Buffer {
  const { architecture, os, config, source, layers } = metadata;
  const labels = Object.entries(config.labels).sort(([a], [b]) => (a < b ? -1 : 1));
  return Buffer.from(
    JSON.stringify({
      architecture,
      os,
      config: {
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        user: config.user,
        workingDir: config.workingDir,
        labels: Object.fromEntries(labels),
      },
      source: { digest: source.digest },
      layers: layers.map(({ digest, sizeBytes, firstChunk, chunks }) => ({
        digest,
        sizeBytes,
        firstChunk,
        chunks,
      })),
    }),
  );
}

/**
 * Parses what `encodeMetadata` wrote. The bytes are authenticated, so a wrong shape is a writer's bug. Throws CORRUPT.
 */
export function decodeMetadata(bytes: Buffer): ImageMetadata {
  let value: ImageMetadata;
  try {
    value = JSON.parse(bytes.toString()) as ImageMetadata;
  } catch (cause) {
    throw new LazydiskError('CORRUPT', 'corrupt manifest: its metadata is not JSON', { cause });
  }
  if (!hasShape(value))
    throw new LazydiskError('CORRUPT', 'corrupt manifest: its metadata lacks a required field');
  return value;
}

function hasShape(value: ImageMetadata): boolean {
  const texts = (list: unknown): boolean =>
    Array.isArray(list) && list.every((item) => typeof item === 'string');
  const config = value?.config;
  return (
    typeof value?.architecture === 'string' &&
    typeof value.os === 'string' &&
    typeof value.source?.digest === 'string' &&
    texts(config?.entrypoint) &&
    texts(config.cmd) &&
    texts(config.env) &&
    typeof config.user === 'string' &&
    typeof config.workingDir === 'string' &&
    typeof config.labels === 'object' &&
    config.labels !== null &&
    texts(Object.values(config.labels)) &&
    Array.isArray(value.layers) &&
    value.layers.every(
      (layer) =>
        typeof layer?.digest === 'string' &&
        [layer.sizeBytes, layer.firstChunk, layer.chunks].every((n) => Number.isSafeInteger(n) && n >= 0),
    )
  );
}
