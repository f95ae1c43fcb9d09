/**
 * Reads an image's disk chunk by chunk, for who looks at little of it: its metadata. What is asked for lies close together,
 * so a few decoded chunks are kept.
 */
import { LRUCache } from 'lru-cache';
import { errorText, LazydiskError } from '../errors.ts';
import { decodeChunk } from '../format/chunk-codec.ts';
import { CHUNK_BYTES, type ChunkId } from '../format/chunk-id.ts';
import type { Manifest } from '../format/manifest.ts';
import { isChunk } from '../store/fsck/source.ts';
import type { Image } from '../store/image.ts';
import type { Store } from '../store/store.ts';
import type { DiskRead } from './ext4/reader/disk.ts';

/** 32 MiB of decoded chunks. */
const CHUNKS_MAX = 64;

/** Reads the disk of `manifest`, of whose stored chunks `open` gives the plain bytes, or undefined where it cannot. */
function readDisk(manifest: Manifest, open: (entry: number) => Promise<Buffer | undefined>): DiskRead {
  const zeroes = Buffer.alloc(CHUNK_BYTES);
  const chunks = new LRUCache<number, Promise<Buffer | undefined>>({ max: CHUNKS_MAX });
  return async (offset, lengthBytes) => {
    const entry = manifest.entryOf(Math.floor(offset / CHUNK_BYTES));
    let chunk = entry === -1 ? Promise.resolve(zeroes) : chunks.get(entry);
    if (!chunk) {
      chunk = open(entry);
      chunks.set(entry, chunk);
    }
    const from = offset % CHUNK_BYTES;
    return (await chunk)?.subarray(from, from + lengthBytes);
  };
}

/** The disk of an image whose chunks `getChunk` gives proven: undefined where one is missing or does not open. */
export function readWhatOpens(
  manifest: Manifest,
  getChunk: (id: ChunkId) => Promise<Buffer | undefined>,
): DiskRead {
  return readDisk(manifest, async (entry) => {
    const { id, key } = manifest.ref(entry);
    const sealed = await getChunk(id);
    if (!sealed) return undefined;
    try {
      return decodeChunk(sealed, key);
    } catch {
      // A chunk that its key does not open is one more that cannot be read.
      return undefined;
    }
  });
}

/** The disk of an image in `store`, every chunk proven. Reads reject with NOT_FOUND or CORRUPT, naming the chunk, and UNAVAILABLE. */
export function readImage(store: Store, { name, manifest }: Image): DiskRead {
  return readDisk(manifest, async (entry) => {
    const { id, key } = manifest.ref(entry);
    const where = `chunk ${manifest.indexOf(entry)} (${id}) of ${name}`;
    const sealed = await store.getChunk(id);
    if (!sealed) throw new LazydiskError('NOT_FOUND', `${where} is not in ${store.url}`);
    if (!isChunk(sealed, id)) throw new LazydiskError('CORRUPT', `${where} has wrong bytes in ${store.url}`);
    try {
      return decodeChunk(sealed, key);
    } catch (cause) {
      throw new LazydiskError('CORRUPT', `${where} does not open in ${store.url}: ${errorText(cause)}`, {
        cause,
      });
    }
  });
}
