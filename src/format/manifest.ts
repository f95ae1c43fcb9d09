/**
 * An image's manifest, opened: the map from chunks of the disk to stored chunks and their keys, and the image's
 * metadata. The clear part (manifest-clear.ts) says which chunks; the sealed part, opened here with the tenant's key,
 * says how to decrypt them. One read, one decryption, no parse loop.
 */
import { createDecipheriv, createHmac, timingSafeEqual } from 'node:crypto';
import { runInSlices, runNow, type Steps } from '../async/slices.ts';
import { LazydiskError } from '../errors.ts';
import type { ChunkRef } from './chunk-id.ts';
import { digestBytes, type ImageDigest } from './image-digest.ts';
import { KEY_ID, type TenantKey, WRAPPED_KEY_BYTES } from './keys.ts';
import { ClearManifest } from './manifest-clear.ts';
import {
  KEY_ENTRY_BYTES,
  METADATA_BYTES_MAX,
  SEAL,
  SEAL_HEADER_BYTES,
  SEAL_TAG_BYTES,
} from './manifest-layout.ts';
import { decodeMetadata, type ImageMetadata } from './manifest-metadata.ts';

/** The data key of a manifest is generated for it alone and seals one body, so the nonce can be constant. */
export const BODY_NONCE = Buffer.alloc(12);

/** The clear part, and the decrypted sealed part. */
interface Opened {
  readonly clear: ClearManifest;
  readonly dataKey: Buffer;
  readonly body: Buffer;
}

/** Bytes decrypted between two pauses: about 0.1 ms. */
const STEP_BYTES = 256 * 1024;
const REFS_PAGE_BITS = 10;
const REFS_PAGE = 2 ** REFS_PAGE_BITS;

export class Manifest {
  readonly clear: ClearManifest;
  readonly metadata: ImageMetadata;
  readonly #keys: Buffer;
  /** Created on first use, REFS_PAGE at a time, so that a large disk costs nothing in advance. */
  readonly #refs: (ChunkRef | undefined)[][];

  private constructor(clear: ClearManifest, keys: Buffer, metadata: ImageMetadata) {
    this.clear = clear;
    this.metadata = metadata;
    this.#keys = keys;
    this.#refs = new Array(Math.ceil(clear.storedChunks / REFS_PAGE));
  }

  /**
   * Opens a whole manifest, which must be exactly `bytes`. Throws KEY if it is sealed for another key, CORRUPT,
   * UNSUPPORTED. The caller must check by `digest` that it is the requested image.
   */
  static open(bytes: Buffer, key: TenantKey): Manifest {
    return runNow(Manifest.#open(bytes, key));
  }

  /**
   * The same without blocking the event loop: the manifest of a full disk of 1 TiB is 150 MB. `bytes` must not change
   * meanwhile.
   */
  static openInSlices(bytes: Buffer, key: TenantKey): Promise<Manifest> {
    return runInSlices(Manifest.#open(bytes, key));
  }

  /** What `open` decrypts, unparsed, for callers that seal it again. Secret. Throws as `open` does. */
  static openSealed(bytes: Buffer, key: TenantKey): Opened {
    return runNow(openParts(bytes, key));
  }

  static *#open(bytes: Buffer, key: TenantKey): Steps<Manifest> {
    const { clear, body } = yield* openParts(bytes, key);
    const keysBytes = clear.storedChunks * KEY_ENTRY_BYTES;
    return new Manifest(clear, body.subarray(0, keysBytes), decodeMetadata(body.subarray(keysBytes)));
  }

  /** The part that needs no key; `bytes` may be a whole manifest or its clear part alone. */
  static readClear(bytes: Buffer): ClearManifest {
    return new ClearManifest(bytes);
  }

  get digest(): ImageDigest {
    return this.clear.digest;
  }

  get diskBytes(): number {
    return this.clear.diskBytes;
  }

  /** Chunks of the disk, stored or zero. */
  get chunkCount(): number {
    return this.clear.chunkCount;
  }

  /** Chunks that are not all zero. */
  get storedChunks(): number {
    return this.clear.storedChunks;
  }

  /** Returns the entry that holds chunk `index` of the disk, or -1 if that chunk is all zero. */
  entryOf(index: number): number {
    return this.clear.entryOf(index);
  }

  /** Returns which chunk of the disk `entry` holds. */
  indexOf(entry: number): number {
    return this.clear.indexOf(entry);
  }

  /** What is needed to get and open the chunk of `entry`; the same object at every call. Secret: it holds the key. */
  ref(entry: number): ChunkRef {
    const at = entry >>> REFS_PAGE_BITS;
    const known = this.#refs[at]?.[entry % REFS_PAGE];
    if (known) return known;
    const ref: ChunkRef = {
      id: this.clear.idOf(entry),
      key: this.#keys.subarray(entry * KEY_ENTRY_BYTES, (entry + 1) * KEY_ENTRY_BYTES),
      sealedBytes: this.clear.sealedBytesOf(entry),
    };
    const page = this.#refs[at] ?? [];
    this.#refs[at] = page;
    page[entry % REFS_PAGE] = ref;
    return ref;
  }
}

function* openParts(bytes: Buffer, key: TenantKey): Steps<Opened> {
  const clear = yield* ClearManifest.read(bytes);
  const sealed = bytes.subarray(clear.clearBytes);
  if (sealed.length < SEAL_HEADER_BYTES) throw corrupt('it ends before its sealed part');
  const bodyBytes = sealed.readUInt32LE(SEAL.bodyBytes);
  const keysBytes = clear.storedChunks * KEY_ENTRY_BYTES;
  if (sealed.length !== SEAL_HEADER_BYTES + bodyBytes + SEAL_TAG_BYTES || bodyBytes < keysBytes)
    throw corrupt('its length does not match its header');
  if (bodyBytes - keysBytes > METADATA_BYTES_MAX) throw corrupt('too much metadata');

  const keyId = sealed.toString('latin1', SEAL.keyId, SEAL.wrappedKey);
  if (keyId !== key.id) {
    const whose = KEY_ID.test(keyId) ? `key ${keyId}` : 'a key with an invalid id';
    throw new LazydiskError('KEY', `image ${clear.digest} is sealed for ${whose}, not for key ${key.id}`);
  }
  const bound = digestBytes(clear.digest);
  const dataKey = key.unwrap(sealed.subarray(SEAL.wrappedKey, SEAL.wrappedKey + WRAPPED_KEY_BYTES), bound);
  const body = yield* openBody(sealed.subarray(SEAL_HEADER_BYTES), dataKey, bound);
  checkMetadata(clear, body.subarray(keysBytes), key);
  return { clear, dataKey, body };
}

function* openBody(sealed: Buffer, dataKey: Buffer, bound: Buffer): Steps<Buffer> {
  const end = sealed.length - SEAL_TAG_BYTES;
  const decipher = createDecipheriv('aes-256-gcm', dataKey, BODY_NONCE);
  decipher.setAAD(bound).setAuthTag(sealed.subarray(end));
  const body = Buffer.allocUnsafeSlow(end);
  for (let at = 0; at < end; at += STEP_BYTES) {
    body.set(decipher.update(sealed.subarray(at, Math.min(at + STEP_BYTES, end))), at);
    yield;
  }
  try {
    decipher.final();
  } catch (cause) {
    throw new LazydiskError('CORRUPT', 'corrupt manifest: its sealed part does not decrypt', { cause });
  }
  return body;
}

/**
 * Checks that the metadata is what the digest binds. The data key alone does not prove that: whoever once had a key of
 * the image still knows the data key, and may be able to write to the store.
 */
function checkMetadata(clear: ClearManifest, metadata: Buffer, key: TenantKey): void {
  if (clear.domain !== key.domain)
    throw new LazydiskError(
      'KEY',
      `image ${clear.digest} is of dedup domain ${clear.domain}, but key ${key.id} is of ${key.domain}`,
    );
  const mac = createHmac('sha256', key.salt(clear.saltEpoch)).update(metadata).digest();
  if (!timingSafeEqual(mac, clear.metadataMac))
    throw corrupt(`its metadata does not match its digest under the domain secret of key ${key.id}`);
}

function corrupt(why: string): LazydiskError {
  return new LazydiskError('CORRUPT', `corrupt manifest: ${why}`);
}
