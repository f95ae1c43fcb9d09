/**
 * One chunk of a disk to its sealed form and back (FORMAT.md, "Chunks"). The key is derived from the encoded bytes
 * themselves: equal chunks of one dedup domain seal to equal bytes, so they are stored once, and no key ever seals two
 * different payloads, so the nonce can be fixed.
 */
import { createCipheriv, createDecipheriv, createHmac, hash } from 'node:crypto';
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { LazydiskError } from '../errors.ts';
import { CHUNK_BYTES, type ChunkId, chunkIdOf, KEY_BYTES, SEALED_BYTES_MAX } from './chunk-id.ts';

const ZSTD_LEVEL = 3;

/** The encoder of the payloads. Another encoder produces other bytes, so each manifest records it. */
export const ENCODER_VERSION = `zstd-${process.versions.zstd}/${ZSTD_LEVEL}`;

/** The first byte of a payload: how its rest is encoded. */
export const CODEC_RAW = 0;
export const CODEC_ZSTD = 1;

/** AES-GCM tag, at the end of the sealed bytes. */
export const TAG_BYTES = 16;

/** Shortest possible sealed form: codec byte, one byte, tag. */
export const SEALED_BYTES_MIN = 1 + 1 + TAG_BYTES;

/** Zstd must save at least a sixteenth, or the chunk is stored uncompressed and opens without decompression. */
const ZSTD_BODY_BYTES_MAX = CHUNK_BYTES - CHUNK_BYTES / 16;

/** A key seals exactly one payload, so the nonce can be constant. */
const NONCE = Buffer.alloc(12);

// Room for the whole output of one call: with less, zstd takes its input in pieces and may split blocks elsewhere.
const ZSTD_OPTIONS = {
  chunkSize: CHUNK_BYTES + CHUNK_BYTES / 64,
  params: { [constants.ZSTD_c_compressionLevel]: ZSTD_LEVEL },
};

const zeroes = Buffer.alloc(CHUNK_BYTES);

/** A chunk ready for a store. `key` is secret. */
export interface EncodedChunk {
  readonly id: ChunkId;
  /** KEY_BYTES long. */
  readonly key: Buffer;
  readonly sealed: Buffer;
}

/** Whether all of at most CHUNK_BYTES bytes are zero; such a chunk is not stored. */
export function isZero(bytes: Uint8Array): boolean {
  // Data nearly always differs within the first bytes; comparing a whole chunk of zeroes takes 7 µs.
  return zeroes.compare(bytes, 0, bytes.length, 0, bytes.length) === 0;
}

/**
 * Compresses and seals one chunk of exactly CHUNK_BYTES bytes. This is the reference implementation, synchronous and
 * slow, for tools and tests; builds use the native `sealChunk`, which returns the same bytes. Equal `plain` and `salt`
 * give equal results under one ENCODER_VERSION.
 */
export function encodeChunk(plain: Buffer, salt: Uint8Array): EncodedChunk {
  if (plain.length !== CHUNK_BYTES)
    throw new LazydiskError('INTERNAL', `a chunk of ${plain.length} bytes; want ${CHUNK_BYTES}`);
  const frame = zstdCompressSync(plain, ZSTD_OPTIONS);
  return frame.length <= ZSTD_BODY_BYTES_MAX ? seal(CODEC_ZSTD, frame, salt) : seal(CODEC_RAW, plain, salt);
}

function seal(codec: number, body: Buffer, salt: Uint8Array): EncodedChunk {
  const codecByte = Buffer.of(codec);
  const key = createHmac('sha256', salt).update(codecByte).update(body).digest();
  const cipher = createCipheriv('aes-256-gcm', key, NONCE);
  const sealed = Buffer.concat([
    cipher.update(codecByte),
    cipher.update(body),
    cipher.final(),
    cipher.getAuthTag(),
  ]);
  return { id: chunkIdOf(hash('sha256', sealed, 'buffer')), key, sealed };
}

/**
 * Returns the chunk of CHUNK_BYTES bytes in `sealed`. This is the reference implementation, synchronous and slow, for
 * tools and tests; drives read with the native codec. It verifies the tag but not the id, which the caller knows.
 * Throws CORRUPT.
 */
export function decodeChunk(sealed: Uint8Array, key: Uint8Array): Buffer {
  if (sealed.length < SEALED_BYTES_MIN || sealed.length > SEALED_BYTES_MAX || key.length !== KEY_BYTES)
    throw new LazydiskError('CORRUPT', `a sealed chunk of ${sealed.length} bytes`);
  const payload = openPayload(sealed, key);
  const body = payload.subarray(1);
  let plain: Buffer;
  if (payload[0] === CODEC_RAW) plain = body;
  else if (payload[0] === CODEC_ZSTD) plain = inflate(body);
  else throw new LazydiskError('CORRUPT', `a chunk of unknown codec ${payload[0]}`);
  if (plain.length !== CHUNK_BYTES)
    throw new LazydiskError('CORRUPT', `a chunk that decodes to ${plain.length} bytes`);
  return plain;
}

function openPayload(sealed: Uint8Array, key: Uint8Array): Buffer {
  const decipher = createDecipheriv('aes-256-gcm', key, NONCE);
  decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES));
  try {
    return Buffer.concat([decipher.update(sealed.subarray(0, sealed.length - TAG_BYTES)), decipher.final()]);
  } catch (cause) {
    throw new LazydiskError('CORRUPT', 'a chunk that its key does not decrypt', { cause });
  }
}

function inflate(body: Buffer): Buffer {
  try {
    return zstdDecompressSync(body, { maxOutputLength: CHUNK_BYTES });
  } catch (cause) {
    throw new LazydiskError('CORRUPT', 'a chunk with a corrupt zstd frame', { cause });
  }
}
