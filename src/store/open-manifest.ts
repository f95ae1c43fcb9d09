/**
 * Opens an image's manifest with whichever key of this host fits. The keys' public ids tell which manifest to read, so
 * the store is asked first, and KMS only for the one key that the image is sealed for. If none fits, the error names
 * the image's keys and this host's.
 */
import { codeOf, LazydiskError, withContext } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import { Manifest } from '../format/manifest.ts';
import type { KeyRing } from '../keys/key-ring.ts';

/** The part of a store that is needed. */
export interface ManifestSource {
  /** For messages. */
  readonly url: string;
  getManifest(digest: ImageDigest, keyId: string): Promise<Buffer | undefined>;
  /** Ids of the keys that the image is sealed for. Throws UNSUPPORTED if the store cannot be listed. */
  manifestKeys(digest: ImageDigest): Promise<string[]>;
}

/**
 * Opens the manifest of `digest`, which the user named `name` (possibly the digest itself). Throws NOT_FOUND if it is
 * missing, KEY if it is sealed only for other keys or KMS refuses, CORRUPT, UNSUPPORTED, UNAVAILABLE, all with the
 * image's name.
 */
export async function openManifest(
  source: ManifestSource,
  name: string,
  digest: ImageDigest,
  ring: KeyRing,
): Promise<Manifest> {
  const ids = await ring.ids();
  // With one key, one read decides; with many, a listing saves asking for each of them.
  const sealedFor = ids.length > 1 ? await manifestKeys(source, digest) : undefined;
  let failure: unknown;
  for (const id of likelyFirst(ids, sealedFor)) {
    const bytes = await source.getManifest(digest, id);
    if (!bytes) continue;
    try {
      return await openWith(ring, id, bytes, digest);
    } catch (error) {
      // Another key of this host may open a good one.
      failure ??= error;
    }
  }
  if (failure !== undefined) {
    throw withContext(failure, `image ${name} in ${source.url}`);
  }
  throw await refusal(source, name, digest, ring, sealedFor ?? (await manifestKeys(source, digest)));
}

async function openWith(ring: KeyRing, id: string, bytes: Buffer, digest: ImageDigest): Promise<Manifest> {
  const key = await ring.get(id);
  if (!key) throw new LazydiskError('KEY', `key ${id} is gone from this host`);
  const manifest = await Manifest.openInSlices(bytes, key);
  if (manifest.digest !== digest)
    throw new LazydiskError('CORRUPT', `the manifest of ${digest} is that of ${manifest.digest}`);
  return manifest;
}

/** `ids` with those in `sealedFor` first. The others stay, because a listing may lag behind a build. */
function likelyFirst(ids: readonly string[], sealedFor: readonly string[] | undefined): string[] {
  const listed = new Set(sealedFor);
  return [...ids.filter((id) => listed.has(id)), ...ids.filter((id) => !listed.has(id))];
}

/** Undefined if the store cannot be listed. */
async function manifestKeys(source: ManifestSource, digest: ImageDigest): Promise<string[] | undefined> {
  try {
    return await source.manifestKeys(digest);
  } catch (error) {
    if (codeOf(error) === 'UNSUPPORTED') return undefined;
    throw error;
  }
}

async function refusal(
  source: ManifestSource,
  name: string,
  digest: ImageDigest,
  ring: KeyRing,
  sealedFor: readonly string[] | undefined,
): Promise<LazydiskError> {
  const image = `image ${name} in ${source.url}`;
  const has = await ring.describe();
  if (sealedFor === undefined) {
    // A name proves that the image was built, so the key does not fit.
    const code = name === digest ? 'NOT_FOUND' : 'KEY';
    const why = 'it was built with another key, or deleted';
    return new LazydiskError(code, `${image}: no manifest for ${has} (${why})`);
  }
  if (sealedFor.length === 0) return new LazydiskError('NOT_FOUND', `${image}: no manifest of ${digest}`);
  const wanted = sealedFor.map((id) => `key ${id}`).join(' or ');
  return new LazydiskError('KEY', `${image} is sealed for ${wanted}, and this host has ${has}`);
}
