/**
 * Checks whether a manifest object is complete and valid. The digest verifies the clear part. Anyone can check the
 * length of the sealed part and the id of its key; only the key verifies all of it. A broken manifest may be recombined
 * from its own parts and those of another key's copy, which differ in only 76 bytes: then the key must open the result.
 */
import { codeOf, errorText, LazydiskError } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import type { TenantKey } from '../format/keys.ts';
import { Manifest } from '../format/manifest.ts';
import { ClearManifest } from '../format/manifest-clear.ts';
import { KEY_ENTRY_BYTES, SEAL, SEAL_HEADER_BYTES, SEAL_TAG_BYTES } from '../format/manifest-layout.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import type { ManifestProof } from './store.ts';

export interface WholeManifest {
  readonly bytes: Buffer;
  readonly clear: ClearManifest;
  /** Null without the key. */
  readonly opened: Manifest | null;
}

/** The clear part of a manifest of `digest`, verified. Throws CORRUPT; `where` is for its text. */
export function proveClear(bytes: Buffer, digest: ImageDigest, where: string): ClearManifest {
  let clear: ClearManifest;
  try {
    clear = new ClearManifest(bytes);
  } catch (cause) {
    throw new LazydiskError('CORRUPT', `${where}: ${(cause as Error).message}`, { cause });
  }
  if (clear.digest !== digest) throw new LazydiskError('CORRUPT', `${where}: it is that of ${clear.digest}`);
  return clear;
}

/** Throws CORRUPT saying what is wrong; UNAVAILABLE if KMS cannot be reached. */
export async function checkManifest(
  bytes: Buffer,
  digest: ImageDigest,
  keyId: string,
  where: string,
  keys: KeyRing | undefined,
): Promise<WholeManifest> {
  const clear = proveClear(bytes, digest, where);
  const corrupt = (why: string, cause?: unknown) =>
    new LazydiskError('CORRUPT', `${where}: ${why}`, { cause });
  const sealed = bytes.subarray(clear.clearBytes);
  if (sealed.length < SEAL_HEADER_BYTES) throw corrupt('it ends before its sealed part');
  const bodyBytes = sealed.readUInt32LE(SEAL.bodyBytes);
  const isLong = bodyBytes >= clear.storedChunks * KEY_ENTRY_BYTES;
  if (sealed.length !== SEAL_HEADER_BYTES + bodyBytes + SEAL_TAG_BYTES || !isLong)
    throw corrupt('its length is not what it says');
  if (sealed.toString('latin1', SEAL.keyId, SEAL.wrappedKey) !== keyId)
    throw corrupt(`it is not sealed for key ${keyId}`);
  const key = await keyOf(keys, keyId);
  if (!key) return { bytes, clear, opened: null };
  try {
    return { bytes, clear, opened: Manifest.open(bytes, key) };
  } catch (error) {
    throw corrupt(errorText(error), error);
  }
}

/** Returns a function that tells whether a manifest opens with key `keyId`; undefined without that key. */
export async function manifestProof(
  digest: ImageDigest,
  keyId: string,
  keys: KeyRing | undefined,
): Promise<ManifestProof | undefined> {
  const key = await keyOf(keys, keyId);
  return key && ((bytes) => opensWith(bytes, digest, key));
}

/** Whether `bytes` is a manifest of `digest` that `key` opens completely. */
export function opensWith(bytes: Buffer, digest: ImageDigest, key: TenantKey): boolean {
  try {
    return Manifest.open(bytes, key).digest === digest;
  } catch {
    return false;
  }
}

/**
 * Recombines the manifest for `keyId` from `broken`, what is left of it, and `other`, another key's; undefined if the
 * result is not valid.
 */
export async function recombine(
  broken: Buffer,
  other: WholeManifest,
  digest: ImageDigest,
  keyId: string,
  keys: KeyRing | undefined,
): Promise<WholeManifest | undefined> {
  if (!(await keyOf(keys, keyId))) return undefined;
  const { clearBytes } = other.clear;
  const tries = [
    // Either only its clear part is broken, or anything except the wrapped data key.
    [other.bytes.subarray(0, clearBytes), broken.subarray(clearBytes)],
    [
      other.bytes.subarray(0, clearBytes),
      broken.subarray(clearBytes, clearBytes + SEAL.bodyBytes),
      other.bytes.subarray(clearBytes + SEAL.bodyBytes),
    ],
  ];
  for (const parts of tries) {
    try {
      return await checkManifest(Buffer.concat(parts), digest, keyId, 'recombined', keys);
    } catch {
      // Try the next combination.
    }
  }
  return undefined;
}

/** Treats a key that KMS refuses as one that this host does not have. */
async function keyOf(keys: KeyRing | undefined, keyId: string) {
  try {
    return await keys?.get(keyId);
  } catch (error) {
    if (codeOf(error) === 'KEY') return undefined;
    throw error;
  }
}
