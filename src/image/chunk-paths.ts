/** Which path of an image lies in which chunks: read from the metadata of its disk, whose chunks alone are fetched. */
import type { ChunkId } from '../format/chunk-id.ts';
import type { Manifest } from '../format/manifest.ts';
import type { Image } from '../store/image.ts';
import type { Store } from '../store/store.ts';
import { Best } from './best.ts';
import { readImage } from './disk-read.ts';
import { ChunkUses } from './ext4/reader/chunk-uses.ts';
import type { BlockUse } from './ext4/reader/inodes.ts';
import { globMatcher } from './glob.ts';
import { printable } from './quote.ts';

interface StoredChunk {
  /** Which chunk of the disk. */
  readonly index: number;
  readonly id: ChunkId;
  readonly sealedBytes: number;
}

export interface PathChunks {
  /** Absolute, every name of a hard link; text for a person (see printable). */
  readonly path: string;
  /** What of it lies in stored chunks, in the order of the disk. Its inode is not among that. */
  readonly chunks: readonly (StoredChunk & { readonly use: BlockUse })[];
}

export interface MetadataChunk extends StoredChunk {
  /** What of the file system lies there; nothing where that is not known. */
  readonly uses: readonly BlockUse[];
}

export interface ChunkPaths {
  /** By path. */
  readonly paths: readonly PathChunks[];
  readonly morePaths: number;
  /** Directories that could not be read, or only in part: what lies below them is not told. */
  readonly unreadable: number;
  /** Stored chunks that hold anything but data of files. */
  readonly metadata: readonly MetadataChunk[];
}

export interface ChunkPathsOptions {
  /** Paths that are wanted, see globMatcher. Default: all. */
  readonly glob?: string;
  readonly pathsMax: number;
  readonly signal?: AbortSignal;
}

/**
 * The chunks of an image's paths. Rejects with UNSUPPORTED for what is not ext4, NOT_FOUND and CORRUPT naming the chunk,
 * UNAVAILABLE, ABORTED.
 */
export async function chunkPaths(
  store: Store,
  image: Image,
  { glob, pathsMax, signal }: ChunkPathsOptions,
): Promise<ChunkPaths> {
  const { manifest } = image;
  const isWanted = glob === undefined ? () => true : globMatcher(glob);
  const uses = await ChunkUses.read(readImage(store, image), manifest.diskBytes, {
    ...(signal && { signal }),
  });
  const paths = new Best<{ path: string; number: number }>(pathsMax, (a, b) => (a.path < b.path ? -1 : 1));
  let unreadable = 0;
  await uses.walk({
    name(number, bytes) {
      const path = printable(bytes);
      if (isWanted(path)) paths.add({ path, number });
    },
    unread: () => unreadable++,
  });
  const { best, more } = paths.take();
  return {
    paths: best.map(({ path, number }) => ({ path, chunks: chunksOf(manifest, uses, number) })),
    morePaths: more,
    unreadable,
    metadata: metadataOf(manifest, uses),
  };
}

function chunksOf(manifest: Manifest, uses: ChunkUses, number: number): PathChunks['chunks'] {
  return uses.ofInode(number).flatMap(({ chunk, use }) => {
    const entry = manifest.entryOf(chunk);
    return entry === -1 ? [] : [{ ...storedChunk(manifest, entry), use }];
  });
}

function metadataOf(manifest: Manifest, uses: ChunkUses): MetadataChunk[] {
  const metadata: MetadataChunk[] = [];
  for (let entry = 0; entry < manifest.storedChunks; entry++) {
    const all = [...(uses.ofChunk(manifest.indexOf(entry))?.keys() ?? [])];
    const own = all.filter((use) => use !== 'data');
    if (own.length > 0 || all.length === 0) metadata.push({ ...storedChunk(manifest, entry), uses: own });
  }
  return metadata;
}

function storedChunk({ clear }: Manifest, entry: number): StoredChunk {
  return { index: clear.indexOf(entry), id: clear.idOf(entry), sealedBytes: clear.sealedBytesOf(entry) };
}
