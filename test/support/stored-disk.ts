/**
 * Puts a disk, given as bytes, into a store, so that code that reads images is tested without code that builds them.
 */
import { ENCODER_VERSION, encodeChunk, isZero } from '../../src/format/chunk-codec.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import type { TenantKey } from '../../src/format/keys.ts';
import { type ManifestEntry, sealManifest } from '../../src/format/manifest-seal.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { type Image, loadImage } from '../../src/store/image.ts';
import type { Store, StoreWriter } from '../../src/store/store.ts';

/** Stores `disk` (a multiple of CHUNK_BYTES) as image `name`. */
export async function putDisk(store: Store, key: TenantKey, name: string, disk: Buffer): Promise<Image> {
  const writer = await store.writer();
  const salt = key.salt(writer.epoch);
  const entries: ManifestEntry[] = [];
  for (let index = 0; index < disk.length / CHUNK_BYTES; index++) {
    const plain = disk.subarray(index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES);
    if (isZero(plain)) continue;
    const { id, key: chunkKey, sealed } = encodeChunk(plain, salt);
    await writer.putChunk(id, sealed);
    entries.push({ index, ref: { id, key: chunkKey, sealedBytes: sealed.length } });
  }
  await putEntries(writer, key, { name, diskBytes: disk.length, entries });
  return loadImage(store, name, KeyRing.of(key));
}

export interface StoredEntries {
  readonly name: string;
  readonly diskBytes: number;
  readonly entries: readonly ManifestEntry[];
  /** Images with equal entries are one image, unless this differs. */
  readonly writerVersion?: string;
}

/** Names an image whose chunks need not exist. */
export async function putEntries(
  writer: StoreWriter,
  key: TenantKey,
  { name, diskBytes, entries, writerVersion = 'test/1' }: StoredEntries,
): Promise<void> {
  const { digest, bytes } = sealManifest({
    key,
    saltEpoch: writer.epoch,
    diskBytes,
    writerVersion,
    encoderVersion: ENCODER_VERSION,
    entries,
    metadata: {
      architecture: 'amd64',
      os: 'linux',
      config: { entrypoint: [], cmd: [], env: [], user: '', workingDir: '', labels: {} },
      source: { digest: `sha256:${'0'.repeat(64)}` },
      layers: [],
    },
  });
  await writer.putManifest(digest, key.id, bytes);
  await writer.putReference(name, digest);
}
