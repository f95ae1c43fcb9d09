/**
 * Makes the bytes of a manifest (FORMAT.md, "Manifests"). The clear part, and so the image's digest, depends only on
 * the image and the dedup domain; the sealed part is different at every call and for every tenant.
 */
import { createCipheriv, createHmac, randomBytes } from 'node:crypto';
import { LazydiskError } from '../errors.ts';
import { CHUNK_BYTES, type ChunkRef, ID_BYTES, KEY_BYTES } from './chunk-id.ts';
import type { ImageDigest } from './image-digest.ts';
import { digestBytes } from './image-digest.ts';
import type { TenantKey } from './keys.ts';
import { BODY_NONCE } from './manifest.ts';
import { ClearManifest } from './manifest-clear.ts';
import {
  CLEAR,
  CLEAR_HEADER_BYTES,
  clearBytesOf,
  DISK_CHUNKS_MAX,
  DOMAIN_BYTES,
  ENCODER_VERSION_BYTES,
  FORMAT_VERSION,
  INDEX_BYTES,
  KEY_ENTRY_BYTES,
  LENGTH_BYTES,
  MAGIC,
  METADATA_BYTES_MAX,
  SEAL,
  SEAL_HEADER_BYTES,
  WRITER_VERSION_BYTES,
} from './manifest-layout.ts';
import { encodeMetadata, type ImageMetadata } from './manifest-metadata.ts';

/** A chunk of the disk that is not all zero. */
export interface ManifestEntry {
  /** Which chunk of the disk. */
  readonly index: number;
  readonly ref: ChunkRef;
}

export interface ManifestParts {
  readonly key: TenantKey;
  readonly saltEpoch: number;
  /** A multiple of CHUNK_BYTES. */
  readonly diskBytes: number;
  /** Version of the code that laid out the disk. */
  readonly writerVersion: string;
  /** Version of the encoder of the chunks. */
  readonly encoderVersion: string;
  /** Sorted by index, each index once. */
  readonly entries: readonly ManifestEntry[];
  readonly metadata: ImageMetadata;
}

/** Throws INTERNAL for parts that no reader would accept, USAGE for metadata that is too large. */
export function sealManifest(parts: ManifestParts): { digest: ImageDigest; bytes: Buffer } {
  const metadata = encodeMetadata(parts.metadata);
  if (metadata.length > METADATA_BYTES_MAX)
    throw new LazydiskError(
      'USAGE',
      `the image's configuration is ${metadata.length} bytes, over ${METADATA_BYTES_MAX}`,
    );
  const clear = clearPart(parts, metadata);
  // Reading back what was written checks order and bounds once more, and computes the digest.
  const { digest } = new ClearManifest(clear);

  const sealed = sealedPart(digest, parts.key, [keyColumn(parts.entries), metadata]);
  return { digest, bytes: Buffer.concat([clear, ...sealed]) };
}

/** The sealed part of the manifest of `digest`, in pieces: `body` under a new data key, which `key` wraps. */
export function sealedPart(digest: ImageDigest, key: TenantKey, body: readonly Buffer[]): Buffer[] {
  const bound = digestBytes(digest);
  const dataKey = randomBytes(KEY_BYTES);
  const cipher = createCipheriv('aes-256-gcm', dataKey, BODY_NONCE).setAAD(bound);
  const sealed = body.map((piece) => cipher.update(piece));
  sealed.push(cipher.final());
  const header = Buffer.alloc(SEAL_HEADER_BYTES);
  header.write(key.id, SEAL.keyId, 'latin1');
  key.wrap(dataKey, bound).copy(header, SEAL.wrappedKey);
  dataKey.fill(0);
  header.writeUInt32LE(
    body.reduce((sum, { length }) => sum + length, 0),
    SEAL.bodyBytes,
  );
  return [header, ...sealed, cipher.getAuthTag()];
}

function clearPart(parts: ManifestParts, metadata: Buffer): Buffer {
  const { entries, diskBytes } = parts;
  if (diskBytes % CHUNK_BYTES || diskBytes < CHUNK_BYTES || diskBytes > DISK_CHUNKS_MAX * CHUNK_BYTES)
    throw new LazydiskError('INTERNAL', `a disk of ${diskBytes} bytes`);
  const clear = Buffer.alloc(clearBytesOf(entries.length));
  MAGIC.copy(clear, CLEAR.magic);
  clear.writeUInt32LE(FORMAT_VERSION, CLEAR.version);
  clear.writeUInt32LE(CHUNK_BYTES, CLEAR.chunkBytes);
  clear.writeBigUInt64LE(BigInt(diskBytes), CLEAR.diskBytes);
  clear.writeUInt32LE(entries.length, CLEAR.storedChunks);
  clear.writeUInt32LE(parts.saltEpoch, CLEAR.saltEpoch);
  writeText(clear, CLEAR.writerVersion, WRITER_VERSION_BYTES, parts.writerVersion);
  writeText(clear, CLEAR.encoderVersion, ENCODER_VERSION_BYTES, parts.encoderVersion);
  writeText(clear, CLEAR.domain, DOMAIN_BYTES, parts.key.domain);
  const salt = parts.key.salt(parts.saltEpoch);
  createHmac('sha256', salt).update(metadata).digest().copy(clear, CLEAR.metadataMac);

  const lengths = CLEAR_HEADER_BYTES + entries.length * INDEX_BYTES;
  const ids = lengths + entries.length * LENGTH_BYTES;
  entries.forEach(({ index, ref }, entry) => {
    clear.writeUInt32LE(index, CLEAR_HEADER_BYTES + entry * INDEX_BYTES);
    clear.writeUInt32LE(ref.sealedBytes, lengths + entry * LENGTH_BYTES);
    clear.write(ref.id, ids + entry * ID_BYTES, 'hex');
  });
  return clear;
}

function keyColumn(entries: readonly ManifestEntry[]): Buffer {
  const keys = Buffer.alloc(entries.length * KEY_ENTRY_BYTES);
  entries.forEach(({ ref }, entry) => {
    keys.set(ref.key, entry * KEY_ENTRY_BYTES);
  });
  return keys;
}

function writeText(bytes: Buffer, offset: number, length: number, text: string): void {
  if (text.length >= length)
    throw new LazydiskError('INTERNAL', `${JSON.stringify(text)} is over ${length - 1} bytes`);
  bytes.write(text, offset, 'latin1');
}
