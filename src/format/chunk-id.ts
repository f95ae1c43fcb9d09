/**
 * The name of a chunk. An id is the SHA-256 of the chunk's sealed bytes, so that anyone can verify a copy without a
 * key; as a string it is 64 lower-case hex digits, usable as a Map key, a file name and in a log line.
 */

/** Bytes of the disk that one chunk covers. */
export const CHUNK_BYTES = 512 * 1024;

/** Bytes of an id, and of a key, in binary. */
export const ID_BYTES = 32;
export const KEY_BYTES = 32;

/** Longest sealed form: codec byte, the uncompressed chunk, GCM tag. */
export const SEALED_BYTES_MAX = 1 + CHUNK_BYTES + 16;

/** SHA-256 of the sealed bytes: 64 lower-case hex digits. */
export type ChunkId = string & { readonly __brand: 'ChunkId' };

/** Everything needed to get and open one stored chunk. `key` is secret: it must never be logged. */
export interface ChunkRef {
  readonly id: ChunkId;
  /** AES-256 key, KEY_BYTES long. */
  readonly key: Uint8Array;
  /** Length of the sealed bytes; a copy of any other length is wrong. */
  readonly sealedBytes: number;
}

/** The binary id as a ChunkId. */
export function chunkIdOf(binary: Uint8Array): ChunkId {
  return Buffer.from(binary.buffer, binary.byteOffset, ID_BYTES).toString('hex') as ChunkId;
}
