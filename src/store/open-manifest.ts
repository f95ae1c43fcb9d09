/**
 * An image's manifest, opened with whichever key of this host fits. The keys' public ids say which manifest to read, so
 * the store is asked first and KMS only for the one key that the image is sealed for. Where none fits, the error says
 * whose the image is and what this host has.
 */
import { codeOf, LazydiskError, withContext } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import { Manifest } from '../format/manifest.ts';
import type { KeyRing } from '../keys/key-ring.ts';

/** The part of a store that is asked. */
export interface ManifestSource {
  /** For messages. */
  readonly url: string;
  getManifest(digest: ImageDigest, keyId: string): Promise<Buffer | undefined>;
  /** Ids of the keys that the image is sealed for. Throws UNSUPPORTED where the store cannot be listed. */
  manifestKeys(digest: ImageDigest): Promise<string[]>;
}

/**
 * The manifest of `digest`, which the user knows as `name` (the digest itself, if by that). Throws NOT_FOUND when nothing
 * is there, KEY when it is sealed for other keys only or KMS refuses, CORRUPT, UNSUPPORTED, UNAVAILABLE, all of them
 * with the image's name.
 */
export async function openManifest(
  source: ManifestSource,
  name: string,
  digest: ImageDigest,
  ring: KeyRing,
): Promise<Manifest> {
  const ids = await ring.ids();
  // With one key the manifest is there or not; with many, a list saves asking for each of them.
  const sealedFor = ids.length > 1 ? await manifestKeys(source, digest) : undefined;
  let failure: unknown;
  for (const id of likelyFirst(ids, sealedFor)) {
    const bytes = await source.getManifest(digest, id);
    if (!bytes) continue;
    try {
      return await openWith(ring, id, bytes, digest);
    } catch (error) {
      // Another key of this host may open a sound one.
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

/** `ids` with those of `sealedFor` in front. The others stay: a list may lag behind a build. */
function likelyFirst(ids: readonly string[], sealedFor: readonly string[] | undefined): string[] {
  const listed = new Set(sealedFor);
  return [...ids.filter((id) => listed.has(id)), ...ids.filter((id) => !listed.has(id))];
}

/** Undefined where the store cannot tell. */
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
    // A name that is there proves that someone built the image; then it is the key that does not fit.
    const code = name === digest ? 'NOT_FOUND' : 'KEY';
    const why = 'it was built with another key, or deleted';
    return new LazydiskError(code, `${image}: no manifest for ${has} (${why})`);
  }
  if (sealedFor.length === 0) return new LazydiskError('NOT_FOUND', `${image}: no manifest of ${digest}`);
  const wanted = sealedFor.map((id) => `key ${id}`).join(' or ');
  return new LazydiskError('KEY', `${image} is sealed for ${wanted}, and this host has ${has}`);
}
