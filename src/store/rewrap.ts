/**
 * Rotation of the wrapping key: each image's manifest is put down once more, sealed for another key of its domain
 * (manifest-rewrap.ts), under the same data key or, resealed, under a new one; and the one of the old key removed if that
 * is asked for. No chunk is read or written. It can be stopped at any moment and run again: what is done is recognised by
 * opening it (what is resealed, by its data key, which is not that of the old key's manifest), and an old manifest goes
 * only after its successor was read back from the store and opened.
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

/** Images that are worked on at once. */
const IMAGES_MAX = 4;

/** The part of a store that is needed. */
export type RewrapStore = Pick<
  Store,
  'url' | 'getReference' | 'listReferences' | 'getManifest' | 'manifestKeys'
> & {
  writer(): Promise<RewrapWriter>;
};

/** An image may be in another root by now than when its name was listed; these find it where it is. */
export type RewrapWriter = Pick<StoreWriter, 'addManifest' | 'replaceManifest' | 'removeManifest'>;

export interface RewrapOptions {
  /** Names or digests; all names of the store if there are none given. */
  readonly images?: readonly string[];
  /** Removes each image's manifest for the old key once it has a sound one for the new. */
  readonly removeOld?: boolean;
  /** Seals each image under a new data key, for the new key, which may be the old one. */
  readonly reseal?: boolean;
  /** Looks, counts, and writes nothing. */
  readonly dryRun?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, images: number) => void;
}

/** An image that could not be rewrapped; its manifests are as they were. */
export interface RewrapFailure {
  readonly name: string;
  readonly error: LazydiskError;
}

/** Counts of images by digest: one with several names is one. Of a dry run, what would have been done. */
export interface RewrapReport {
  readonly images: number;
  readonly rewrapped: number;
  /** Already sealed for the new key, and whole. */
  readonly skipped: number;
  /** Of all of a store: neither the old nor the new key's. */
  readonly foreign: number;
  /** Manifests of the old key. */
  readonly removed: number;
  /** Ids of other keys whose manifests are still sealed under a data key that was replaced; their owners can reseal them. */
  readonly sharingKeys: readonly string[];
  readonly failures: readonly RewrapFailure[];
}

interface Target {
  readonly name: string;
  readonly digest: ImageDigest;
}

/** What one call works with. */
interface Work {
  readonly store: RewrapStore;
  readonly writer: RewrapWriter;
  readonly from: TenantKey;
  readonly to: TenantKey;
  readonly options: RewrapOptions;
}

/**
 * Seals images that `from` opens for `to`, too; or, to reseal them, those that either opens. One image's failure (CORRUPT, KEY, UNSUPPORTED, USAGE for another
 * domain, NOT_FOUND for an image that was named and is not there) is in the report and stops no other; throws what the
 * store does, ABORTED, and USAGE for keys that do not go together.
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
  /** Of an image that was resealed: a manifest under the data key before. */
  readonly replaced?: Buffer;
}

async function rewrapImage(work: Work, target: Target): Promise<Rewrapped> {
  const { store, writer, from, to, options } = work;
  if (options.reseal) return resealImage(work, target);
  const { digest } = target;
  const state = await stateOf(store, digest, to);
  const isDone = state === 'sound';
  // When nothing is left to do, the old manifest matters only to whoever wants it gone.
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
  // Without the old key's manifest it does not show whether this was done before: then it is done again.
  const isDone = isCurrentSound && isOldSound && !shareDataKey(current, old);
  const [source, key] = isOldSound || !current ? [old!, from] : [current, to];
  const resealed = isDone ? current : resealManifest(source, key, to);
  const found = Manifest.readClear(resealed).digest;
  if (found !== digest) throw new LazydiskError('CORRUPT', `the manifest of ${digest} is that of ${found}`);
  const isOldRemoved = old !== undefined && options.removeOld === true;
  if (!options.dryRun) {
    // What was done before may have been stopped before older copies were gone.
    await writer.replaceManifest(digest, to.id, resealed);
    if (!(await store.getManifest(digest, to.id))?.equals(resealed))
      throw new LazydiskError('CORRUPT', `what was written for key ${to.id} did not come back whole`);
    if (isOldRemoved) await writer.removeManifest(digest, from.id);
  }
  return { state: isDone ? 'skipped' : 'rewrapped', isOldRemoved, replaced: source };
}

/** Which keys but these two have a manifest of the image under the data key of `replaced`. */
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

/** Of the image's manifest for `key`: sound is what opens. */
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

/** What is wrong with one image, with its name; anything else is thrown on. */
function failureOf(store: RewrapStore, name: string, error: unknown): LazydiskError {
  const ofImage = ['CORRUPT', 'KEY', 'UNSUPPORTED', 'USAGE', 'NOT_FOUND'];
  if (!(error instanceof LazydiskError) || !ofImage.includes(error.code)) throw error;
  return withContext(error, `image ${name} in ${store.url}`);
}
