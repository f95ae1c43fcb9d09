/**
 * The layout of a manifest (FORMAT.md, "Manifests"): the one place that knows the offsets, shared by writer and reader.
 * All integers are little-endian; the tables are columns, so that a reader takes each as one typed array and parses
 * nothing.
 */
import { KEY_BYTES } from './chunk-id.ts';
import { WRAPPED_KEY_BYTES } from './keys.ts';

export const MAGIC = Buffer.from('LAZYDISK', 'latin1');
export const FORMAT_VERSION = 1;

/** Fields of the clear part's header. */
export const CLEAR = {
  magic: 0,
  version: 8,
  chunkBytes: 12,
  diskBytes: 16,
  storedChunks: 24,
  saltEpoch: 28,
  flags: 32,
  reserved: 36,
  writerVersion: 40,
  encoderVersion: 72,
  domain: 104,
  metadataMac: 168,
} as const;
export const CLEAR_HEADER_BYTES = 200;

/** Lengths of the header's text fields; the text is ASCII, then zeroes, and at least one zero. */
export const WRITER_VERSION_BYTES = 32;
export const ENCODER_VERSION_BYTES = 32;
export const DOMAIN_BYTES = 64;

/** Columns of the table of stored chunks, after the header: all indices, then all lengths, then all ids. */
export const INDEX_BYTES = 4;
export const LENGTH_BYTES = 4;
/** One chunk's share of the three columns. */
export const ENTRY_BYTES = INDEX_BYTES + LENGTH_BYTES + 32;

/** Fields of the sealed part, from its start. */
export const SEAL = {
  keyId: 0,
  wrappedKey: 16,
  bodyBytes: 16 + WRAPPED_KEY_BYTES,
} as const;
export const SEAL_HEADER_BYTES = 16 + WRAPPED_KEY_BYTES + 4;
export const SEAL_TAG_BYTES = 16;

/** One chunk's share of the sealed body: its key. */
export const KEY_ENTRY_BYTES = KEY_BYTES;

/** Largest metadata JSON: a generous bound for an image's configuration. */
export const METADATA_BYTES_MAX = 8 * 1024 * 1024;

/** Largest disk: chunk indices are 32 bits wide. */
export const DISK_CHUNKS_MAX = 2 ** 32;

/** Bytes of the clear part with `storedChunks` entries. */
export function clearBytesOf(storedChunks: number): number {
  return CLEAR_HEADER_BYTES + storedChunks * ENTRY_BYTES;
}
