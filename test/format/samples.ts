/** A small manifest and its parts, for tests of the format and the store. */
import { createCipheriv } from 'node:crypto';
import { CHUNK_BYTES, type ChunkId, KEY_BYTES } from '../../src/format/chunk-id.ts';
import { digestBytes } from '../../src/format/image-digest.ts';
import { type NewKeyOptions, TenantKey } from '../../src/format/keys.ts';
import { BODY_NONCE, Manifest } from '../../src/format/manifest.ts';
import { KEY_ENTRY_BYTES, SEAL, SEAL_HEADER_BYTES } from '../../src/format/manifest-layout.ts';
import { encodeMetadata, type ImageMetadata } from '../../src/format/manifest-metadata.ts';
import { type ManifestEntry, type ManifestParts, sealManifest } from '../../src/format/manifest-seal.ts';

export const sampleMetadata: ImageMetadata = {
  architecture: 'amd64',
  os: 'linux',
  config: {
    entrypoint: ['/bin/sh'],
    cmd: ['-c', 'true'],
    env: ['PATH=/usr/bin', 'SECRET=hunter2-is-not-in-the-clear'],
    user: '1000:1000',
    workingDir: '/srv',
    labels: { b: '2', a: '1' },
  },
  source: { digest: `sha256:${'ab'.repeat(32)}` },
  layers: [{ digest: `sha256:${'cd'.repeat(32)}`, sizeBytes: 12345, firstChunk: 2, chunks: 3 }],
};

/** Entries for the given chunks of a disk, each with its own id, key and length. */
export function sampleEntries(indices: readonly number[]): ManifestEntry[] {
  return indices.map((index) => ({
    index,
    ref: {
      id: Buffer.alloc(32, `id ${index}`).toString('hex') as ChunkId,
      key: Buffer.alloc(KEY_BYTES, `key ${index}`),
      sealedBytes: 1000 + (index % 1000),
    },
  }));
}

export function sampleParts(key: TenantKey, overrides: Partial<ManifestParts> = {}): ManifestParts {
  return {
    key,
    saltEpoch: 1,
    diskBytes: 2048 * CHUNK_BYTES,
    writerVersion: 'test/1',
    encoderVersion: 'zstd-1.5.7/3',
    entries: sampleEntries([0, 1, 7, 2047]),
    metadata: sampleMetadata,
    ...overrides,
  };
}

export function sampleManifest(options: NewKeyOptions = {}) {
  const key = TenantKey.generate(options);
  return { key, ...sealManifest(sampleParts(key)) };
}

/**
 * The forgery of an attacker who knows a manifest's data key, but not the key that wraps it: the same image with other
 * metadata.
 */
export function forgeMetadata(bytes: Buffer, dataKey: Buffer, metadata: ImageMetadata, keys: Buffer): Buffer {
  const { digest, clearBytes } = Manifest.readClear(bytes);
  const cipher = createCipheriv('aes-256-gcm', dataKey, BODY_NONCE).setAAD(digestBytes(digest));
  const sealed = Buffer.concat([
    cipher.update(keys),
    cipher.update(encodeMetadata(metadata)),
    cipher.final(),
  ]);
  const header = Buffer.from(bytes.subarray(clearBytes, clearBytes + SEAL_HEADER_BYTES));
  header.writeUInt32LE(sealed.length, SEAL.bodyBytes);
  return Buffer.concat([bytes.subarray(0, clearBytes), header, sealed, cipher.getAuthTag()]);
}

/** The data key and the column of chunk keys of a manifest that `key` opens. */
export function secretsOf(bytes: Buffer, key: TenantKey): { dataKey: Buffer; keys: Buffer } {
  const { clear, dataKey, body } = Manifest.openSealed(bytes, key);
  return { dataKey, keys: body.subarray(0, clear.storedChunks * KEY_ENTRY_BYTES) };
}
