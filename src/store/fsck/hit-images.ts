/**
 * Reports what damaged chunks mean for the images that use them: how many chunks of each image, and, with its key,
 * which paths. Finding the paths of a disk reads all its inodes, so the number of lookups is limited.
 */
import { pooled } from '../../async/pooled.ts';
import { errorText, LazydiskError } from '../../errors.ts';
import { type ChunkId, ID_BYTES, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import type { Manifest } from '../../format/manifest.ts';
import { chunkKey } from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { KnownImage } from './images.ts';
import { DAMAGED, type LiveChunks } from './live-chunks.ts';
import type { Damage, HitImage } from './report.ts';
import { isChunk, readObject } from './source.ts';

/** Maximum path lookups for single chunks, over all images, and for all chunks of an image. */
const CHUNK_LOOKUPS_MAX = 64;
const IMAGE_LOOKUPS_MAX = 100;
const MANIFESTS_MAX = 4;

export interface PathsFound {
  readonly paths: string[];
  readonly more: number;
  readonly metadata: boolean;
}

/**
 * Finds the paths that chunks of a disk are part of; `getChunk` returns verified sealed bytes. Supplied by the caller,
 * because a store knows nothing of file systems. The finder rejects with UNSUPPORTED or CORRUPT for a disk that it
 * cannot read.
 */
export type DiskPaths = (
  manifest: Manifest,
  getChunk: (id: ChunkId) => Promise<Buffer | undefined>,
) => (chunks: ReadonlySet<number>, signal?: AbortSignal) => Promise<PathsFound>;

export interface HitImageOptions {
  readonly paths: DiskPaths | undefined;
  readonly signal: AbortSignal | undefined;
}

/** Reports each image of `known` that has damaged chunks, and adds the paths of single chunks to `damaged`. */
export async function describeHits(
  parts: StoreParts,
  known: readonly KnownImage[],
  live: LiveChunks,
  damaged: readonly Damage[],
  options: HitImageOptions,
): Promise<HitImage[]> {
  const images: HitImage[] = [];
  const left = { ofChunks: CHUNK_LOOKUPS_MAX, ofImages: IMAGE_LOOKUPS_MAX };
  await pooled(MANIFESTS_MAX, known, async (image) => {
    options.signal?.throwIfAborted();
    const found = await describeHit(parts, image, { live, damaged, left }, options);
    if (found) images.push(found);
  });
  return images.sort((a, b) => ((a.names[0] ?? '') < (b.names[0] ?? '') ? -1 : 1));
}

interface HitSearch {
  readonly live: LiveChunks;
  readonly damaged: readonly Damage[];
  /** Lookups of paths that may still be made. */
  readonly left: { ofChunks: number; ofImages: number };
}

async function describeHit(
  parts: StoreParts,
  image: KnownImage,
  { live, damaged, left }: HitSearch,
  { paths, signal }: HitImageOptions,
): Promise<HitImage | undefined> {
  const clear = await image.clear();
  const indices = new Set<number>();
  for (let entry = 0; entry < clear.storedChunks; entry++)
    if (live.flagsAt(clear.ids, entry * ID_BYTES) & DAMAGED) indices.add(clear.indexOf(entry));
  if (indices.size === 0) return undefined;
  const { names, digest } = image;
  const unknown = (why: string): HitImage => {
    const damagedChunks = indices.size;
    return { names, digest, damagedChunks, paths: null, morePaths: 0, metadata: false, why };
  };
  if (!paths) return unknown('no key is given');
  if (--left.ofImages < 0) return unknown(`paths are told of ${IMAGE_LOOKUPS_MAX} images`);
  const manifest = await image.open();
  if (!manifest) return unknown('it is sealed for other keys');
  const find = paths(manifest, (id) => goodChunk(parts, id));
  try {
    for (const { hits } of damaged) {
      const own = hits.find((one) => one.digest === digest);
      if (!own || --left.ofChunks < 0) continue;
      own.paths = (await find(new Set(own.indices), signal)).paths;
    }
    const { more, metadata, ...all } = await find(indices, signal);
    return {
      names,
      digest,
      damagedChunks: indices.size,
      paths: all.paths,
      morePaths: more,
      metadata,
      why: null,
    };
  } catch (error) {
    const isDisk =
      error instanceof LazydiskError && (error.code === 'UNSUPPORTED' || error.code === 'CORRUPT');
    if (!isDisk) throw error;
    return unknown(errorText(error));
  }
}

/** Reads a good copy from anywhere in the store. */
async function goodChunk(parts: StoreParts, id: ChunkId): Promise<Buffer | undefined> {
  for (const { path } of (await parts.views.forReading()).areas) {
    const bytes = await readObject(parts.objects, chunkKey(path, id), SEALED_BYTES_MAX);
    if (typeof bytes !== 'string' && isChunk(bytes, id)) return bytes;
  }
  return undefined;
}
