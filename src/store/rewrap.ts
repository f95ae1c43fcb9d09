/**
 * Rotates the wrapping key: writes each image's manifest again, sealed for another key of its domain
 * (manifest-rewrap.ts), under the same data key or, resealed, under a new one; and removes the old key's manifest if
 * asked to. No chunk is read or written. It can be stopped at any moment and run again: finished manifests are
 * recognised by opening them (resealed ones by their data key, which differs from that of the old key's manifest), and
 * an old manifest is removed only after its successor was read back from the store and opened.
 */
import { pooled } from '../async/pooled.ts';
import { LazydiskError, withContext } from '../errors.ts';
import { type ImageDigest, isDigest } from '../format/image-digest.ts';
import type { TenantKey } from '../format/keys.ts';
import { Manifest } from '../format/manifest.ts';
import { resealManifest, rewrapManifest, shareDataKey } from '../format/manifest-rewrap.ts';
import { opensWith } from './manifest-check.ts';
import { referenceName } from './reference-name.ts';
import type { Store, StoreWriter } from './store.ts';

/** Images processed at once. */
const IMAGES_MAX = 4;

/** The part of a store that is needed. */
export type RewrapStore = Pick<
  Store,
  'url' | 'getReference' | 'listReferences' | 'getManifest' | 'manifestKeys'
> & {
  writer(): Promise<RewrapWriter>;
};

/** An image may have moved to another root since its name was listed; these methods find it. */
export type RewrapWriter = Pick<StoreWriter, 'addManifest' | 'replaceManifest' | 'removeManifest'>;

export interface RewrapOptions {
  /** Names or digests; all names of the store by default. */
  readonly images?: readonly string[];
  /** Removes each image's manifest for the old key once it has a good one for the new key. */
  readonly removeOld?: boolean;
  /** Seals each image under a new data key, for the new key, which may be the old one. */
  readonly reseal?: boolean;
  /** Checks and counts, but writes nothing. */
  readonly dryRun?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, images: number) => void;
}

/** An image that could not be rewrapped; its manifests are unchanged. */
export interface RewrapFailure {
  readonly name: string;
  readonly error: LazydiskError;
}

/** Counts of images by digest: one with several names counts once. For a dry run, what would have been done. */
export interface RewrapReport {
  readonly images: number;
  readonly rewrapped: number;
  /** Already sealed for the new key, with a valid manifest. */
  readonly skipped: number;
  /** When rewrapping a whole store: images of neither the old nor the new key. */
  readonly foreign: number;
  /** Removed manifests of the old key. */
  readonly removed: number;
  /** Ids of other keys whose manifests are still sealed under a replaced data key; their owners can reseal them. */
  readonly sharingKeys: readonly string[];
  readonly failures: readonly RewrapFailure[];
}

interface Target {
  readonly name: string;
  readonly digest: ImageDigest;
}

/** The inputs of one call. */
interface Work {
  readonly store: RewrapStore;
  readonly writer: RewrapWriter;
  readonly from: TenantKey;
  readonly to: TenantKey;
  readonly options: RewrapOptions;
}

/**
 * Seals images that `from` opens for `to` as well; with `reseal`, those that either key opens. The failure of one image
 * (CORRUPT, KEY, UNSUPPORTED, USAGE for another domain, NOT_FOUND for an image that was named and is missing) is in the
 * report and does not stop the others. Throws what the store throws, ABORTED, and USAGE for keys that do not go
 * together.
 */
export async function rewrapImages(
  store: RewrapStore,
  from: TenantKey,
  to: TenantKey,
  options: RewrapOptions = {},
): Promise<RewrapReport> {
  if (from.id === to.id && (!options.reseal || options.removeOld))
    throw new LazydiskError('USAGE', `key ${from.id} is both the old and the new key`);
  if (!from.sharesDomain(to)) {
    const why = `key ${to.id} is of another dedup domain than key ${from.id}`;
    throw new LazydiskError(
      'USAGE',
      `${why}; \`lazydisk key new --sharing\` makes a key that joins a domain`,
    );
  }
  const work: Work = { store, writer: await store.writer(), from, to, options };
  const counts = { rewrapped: 0, skipped: 0, foreign: 0, removed: 0 };
  const failures: RewrapFailure[] = [];
  const sharing = new Set<string>();
  const isNamed = options.images !== undefined;
  const targets = isNamed
    ? await namedTargets(store, options.images, failures)
    : distinct(await store.listReferences());
  const images = targets.length + failures.length;
  let done = failures.length;
  options.onProgress?.(done, images);

  await pooled(IMAGES_MAX, targets, async (target) => {
    options.signal?.throwIfAborted();
    try {
      const { state, isOldRemoved, replaced } = await rewrapImage(work, target);
      if (state === 'foreign' && isNamed)
        throw new LazydiskError('KEY', `no manifest for key ${from.id} (not sealed for it, or deleted)`);
      counts[state]++;
      if (isOldRemoved) counts.removed++;
      if (replaced) for (const keyId of await keysSharing(work, target, replaced)) sharing.add(keyId);
    } catch (error) {
      failures.push({ name: target.name, error: failureOf(store, target.name, error) });
    }
    options.onProgress?.(++done, images);
  });
  return { images, ...counts, sharingKeys: [...sharing].sort(), failures };
}

interface Rewrapped {
  readonly state: 'rewrapped' | 'skipped' | 'foreign';
  readonly isOldRemoved: boolean;
  /** For a resealed image: a manifest under the previous data key. */
  readonly replaced?: Buffer;
}

async function rewrapImage(work: Work, target: Target): Promise<Rewrapped> {
  const { store, writer, from, to, options } = work;
  if (options.reseal) return resealImage(work, target);
  const { digest } = target;
  const state = await stateOf(store, digest, to);
  const isDone = state === 'sound';
  // When nothing is left to do, the old manifest matters only if it is to be removed.
  const old = isDone && !options.removeOld ? undefined : await store.getManifest(digest, from.id);
  if (!isDone && !old) {
    if (state === 'absent') return { state: 'foreign', isOldRemoved: false };
    throw new LazydiskError(
      'CORRUPT',
      `its manifest for key ${to.id} is broken, for key ${from.id} it has none`,
    );
  }
  if (!isDone) {
    const rewrapped = rewrapManifest(old!, from, to);
    const found = Manifest.readClear(rewrapped).digest;
    if (found !== digest) throw new LazydiskError('CORRUPT', `the manifest of ${digest} is that of ${found}`);
    if (!options.dryRun)
      await writer.addManifest(digest, to.id, rewrapped, (bytes) => opensWith(bytes, digest, to));
  }
  const isOldRemoved = old !== undefined && options.removeOld === true;
  if (isOldRemoved && !options.dryRun) {
    if (!isDone && (await stateOf(store, digest, to)) !== 'sound')
      throw new LazydiskError('CORRUPT', `what was written for key ${to.id} did not come back whole`);
    await writer.removeManifest(digest, from.id);
  }
  return { state: isDone ? 'skipped' : 'rewrapped', isOldRemoved };
}

async function resealImage(
  { store, writer, from, to, options }: Work,
  { digest }: Target,
): Promise<Rewrapped> {
  const current = await store.getManifest(digest, to.id);
  const old = from.id === to.id ? undefined : await store.getManifest(digest, from.id);
  const isOldSound = old !== undefined && opensWith(old, digest, from);
  const isCurrentSound = current !== undefined && opensWith(current, digest, to);
  if (!current && !old) return { state: 'foreign', isOldRemoved: false };
  // Without the old key's manifest, an earlier reseal cannot be recognised; then it is done again.
  const isDone = isCurrentSound && isOldSound && !shareDataKey(current, old);
  const [source, key] = isOldSound || !current ? [old!, from] : [current, to];
  const resealed = isDone ? current : resealManifest(source, key, to);
  const found = Manifest.readClear(resealed).digest;
  if (found !== digest) throw new LazydiskError('CORRUPT', `the manifest of ${digest} is that of ${found}`);
  const isOldRemoved = old !== undefined && options.removeOld === true;
  if (!options.dryRun) {
    // An earlier run may have stopped before it removed older copies.
    await writer.replaceManifest(digest, to.id, resealed);
    if (!(await store.getManifest(digest, to.id))?.equals(resealed))
      throw new LazydiskError('CORRUPT', `what was written for key ${to.id} did not come back whole`);
    if (isOldRemoved) await writer.removeManifest(digest, from.id);
  }
  return { state: isDone ? 'skipped' : 'rewrapped', isOldRemoved, replaced: source };
}

/** Which other keys have a manifest of the image under the data key of `replaced`. */
async function keysSharing(
  { store, from, to }: Work,
  { digest }: Target,
  replaced: Buffer,
): Promise<string[]> {
  const sharing: string[] = [];
  for (const keyId of await store.manifestKeys(digest)) {
    if (keyId === from.id || keyId === to.id) continue;
    const bytes = await store.getManifest(digest, keyId);
    if (bytes && isOf(bytes, digest) && shareDataKey(bytes, replaced)) sharing.push(keyId);
  }
  return sharing;
}

function isOf(bytes: Buffer, digest: ImageDigest): boolean {
  try {
    return Manifest.readClear(bytes).digest === digest;
  } catch {
    return false;
  }
}

/** State of the image's manifest for `key`; it is sound if it opens. */
async function stateOf(
  store: RewrapStore,
  digest: ImageDigest,
  key: TenantKey,
): Promise<'absent' | 'corrupt' | 'sound'> {
  const bytes = await store.getManifest(digest, key.id);
  if (!bytes) return 'absent';
  return opensWith(bytes, digest, key) ? 'sound' : 'corrupt';
}

async function namedTargets(
  store: RewrapStore,
  images: readonly string[],
  failures: RewrapFailure[],
): Promise<Target[]> {
  const targets: Target[] = [];
  for (const image of images) {
    if (isDigest(image)) {
      targets.push({ name: image, digest: image });
      continue;
    }
    const name = referenceName(image);
    const reference = await store.getReference(name);
    if (reference) targets.push(reference);
    else failures.push({ name, error: new LazydiskError('NOT_FOUND', `no image ${name} in ${store.url}`) });
  }
  return distinct(targets);
}

/** The first name of each digest. */
function distinct(targets: readonly Target[]): Target[] {
  const byDigest = new Map<ImageDigest, Target>();
  for (const target of targets) if (!byDigest.has(target.digest)) byDigest.set(target.digest, target);
  return [...byDigest.values()];
}

/** Returns the error of one image, with its name; rethrows any other error. */
function failureOf(store: RewrapStore, name: string, error: unknown): LazydiskError {
  const ofImage = ['CORRUPT', 'KEY', 'UNSUPPORTED', 'USAGE', 'NOT_FOUND'];
  if (!(error instanceof LazydiskError) || !ofImage.includes(error.code)) throw error;
  return withContext(error, `image ${name} in ${store.url}`);
}
