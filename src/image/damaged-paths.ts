/**
 * Finds the paths of an image that given chunks belong to, by reading the image itself: the readable part of its disk
 * is enough to find most of them. Directories are close together, so a few decoded chunks are cached.
 */
import { LRUCache } from 'lru-cache';
import { decodeChunk } from '../format/chunk-codec.ts';
import { CHUNK_BYTES, type ChunkId } from '../format/chunk-id.ts';
import type { Manifest } from '../format/manifest.ts';
import type { DiskPaths } from '../store/fsck/hit-images.ts';
import { type DiskRead, pathsOfChunks } from './ext4/reader/paths.ts';

/** 32 MiB of decoded chunks. */
const CHUNKS_MAX = 64;
const PATHS_MAX = 1000;

export const ext4Paths: DiskPaths = (manifest, getChunk) => {
  const read = diskOf(manifest, getChunk);
  return (chunks, signal) =>
    pathsOfChunks(read, manifest.diskBytes, chunks, { pathsMax: PATHS_MAX, ...(signal && { signal }) });
};

/** Reads the image's disk where its chunks exist and decrypt. */
function diskOf(manifest: Manifest, getChunk: (id: ChunkId) => Promise<Buffer | undefined>): DiskRead {
  const zeroes = Buffer.alloc(CHUNK_BYTES);
  const chunks = new LRUCache<number, Promise<Buffer | undefined>>({ max: CHUNKS_MAX });
  const open = async (entry: number) => {
    const { id, key } = manifest.ref(entry);
    const sealed = await getChunk(id);
    if (!sealed) return undefined;
    try {
      return decodeChunk(sealed, key);
    } catch {
      // A chunk that its key does not decrypt counts as unreadable.
      return undefined;
    }
  };
  return async (offset, lengthBytes) => {
    const index = Math.floor(offset / CHUNK_BYTES);
    const entry = manifest.entryOf(index);
    let chunk = entry === -1 ? Promise.resolve(zeroes) : chunks.get(entry);
    if (!chunk) {
      chunk = open(entry);
      chunks.set(entry, chunk);
    }
    const from = offset % CHUNK_BYTES;
    return (await chunk)?.subarray(from, from + lengthBytes);
  };
}
