/**
 * Puts manifests into areas. Two manifests of one digest and key may differ, because their sealed parts are random, and
 * without the key a good one cannot be told from a damaged one. So an existing manifest stays, unless the key proves
 * that the new one opens and the old one does not.
 */
import { codeOf } from '../../errors.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import { checkManifest } from '../manifest-check.ts';
import type { ObjectBytes, ObjectOptions, ObjectStore } from '../objects/object-store.ts';
import type { ManifestPlacement, ManifestProof } from '../store.ts';
import { withinTime } from './clock.ts';
import { type AreaPath, manifestKey } from './layout.ts';
import type { StoreParts } from './parts.ts';

/** A full 1 TiB disk's manifest is 151 MiB; objects beyond these bounds are not read into memory. */
export const MANIFEST_BYTES_MAX = 256 * 1024 * 1024;

/** Performs a write, possibly with a time limit. Without one by default. */
export type BoundedWrite = (write: (options: ObjectOptions) => Promise<void>) => Promise<void>;

const unbounded: BoundedWrite = (write) => write({});

/**
 * Returns a BoundedWrite that starts each write only if `checkTime` allows it, and abandons it after the settle time.
 * It repeats the write for as long as the store retries its calls. `what` is for errors.
 */
export function boundedWrites(
  { objects, policy, clock }: Pick<StoreParts, 'objects' | 'policy' | 'clock'>,
  what: string,
  checkTime: () => void,
): BoundedWrite {
  return async (write) => {
    const startedAt = clock.now();
    for (;;) {
      checkTime();
      try {
        return await withinTime(clock, policy.settleMs, what, (signal) => write({ signal }));
      } catch (error) {
        const isTimeout = codeOf(error) === 'TIMEOUT';
        if (!isTimeout || clock.ageMs(startedAt) >= (objects.retryForMs ?? 0)) throw error;
      }
    }
  };
}

/** Maximum attempts to write a manifest while others write it at the same time. */
const TRIES_MAX = 10;

export interface ManifestPut {
  readonly digest: ImageDigest;
  readonly keyId: string;
  readonly bytes: Buffer;
  /** Without it nothing can be proven, and an existing manifest stays. */
  readonly opens?: ManifestProof | undefined;
}

/**
 * Puts a manifest into `area`. If `area`, or one of `others`, has one that it may not replace, puts that one instead.
 * (Readers that look into `area` before the others find only the one in `area`, as if it had overwritten theirs.)
 * Throws BUSY if others keep writing it, and what the store throws.
 */
export async function placeManifest(
  objects: ObjectStore,
  area: AreaPath,
  others: readonly AreaPath[],
  put: ManifestPut,
  bounded = unbounded,
): Promise<ManifestPlacement> {
  const { digest, keyId } = put;
  const key = manifestKey(area, digest, keyId);
  for (let tries = 1; ; tries++) {
    const here = await objects.get(key, MANIFEST_BYTES_MAX);
    const old = here ?? (await firstIn(objects, others, put));
    const placement = await placementOver(old?.bytes, put);
    const bytes = placement === 'written' ? put.bytes : old!.bytes;
    // It was not read to its end, so it cannot be written again as it is.
    if (bytes.length > MANIFEST_BYTES_MAX) return placement;
    try {
      // A manifest that stays is written again too, because a sweep must see that a writer is about to rely on it.
      await bounded((options) => objects.put(key, bytes, { ...options, ifVersion: here?.version ?? null }));
      return placement === 'present' && !here && old!.bytes.equals(put.bytes) ? 'written' : placement;
    } catch (error) {
      if (!isBusy(error) || tries === TRIES_MAX) throw error;
    }
  }
}

/** Decides what putting a manifest over `old` results in. */
export async function placementOver(
  old: Buffer | undefined,
  { bytes, opens }: Pick<ManifestPut, 'bytes' | 'opens'>,
): Promise<ManifestPlacement> {
  if (!old) return 'written';
  if (old.equals(bytes)) return 'present';
  if (!opens) return 'kept';
  if (await opens(old)) return 'present';
  return (await opens(bytes)) ? 'written' : 'kept';
}

/**
 * Copies the manifest of an image for one key into area `to`, unless it has one: from the first area of `from` whose
 * manifest is valid as far as that shows without a key, otherwise from the first that has any, because the key may
 * repair it. False if none has one.
 */
export async function carryManifest(
  objects: ObjectStore,
  { digest, keyId }: Pick<ManifestPut, 'digest' | 'keyId'>,
  from: readonly AreaPath[],
  to: AreaPath,
  bounded = unbounded,
): Promise<boolean> {
  if (await objects.head(manifestKey(to, digest, keyId))) return true;
  let best: Buffer | undefined;
  for (const area of from) {
    const key = manifestKey(area, digest, keyId);
    const bytes = (await objects.get(key, MANIFEST_BYTES_MAX))?.bytes;
    if (!bytes) continue;
    best ??= bytes;
    const isWhole = await checkManifest(bytes, digest, keyId, key, undefined).then(
      () => true,
      () => false,
    );
    if (!isWhole) continue;
    best = bytes;
    break;
  }
  if (!best) return false;
  await placeManifest(objects, to, [], { digest, keyId, bytes: best }, bounded);
  return true;
}

/**
 * Overwrites the manifest in `area` for this digest and key, for a caller that has verified the new one and wants the
 * old one gone. With `onlyOver`, only if there is one. Throws BUSY if others keep writing it.
 */
export async function overwriteManifest(
  objects: ObjectStore,
  area: AreaPath,
  { digest, keyId, bytes }: ManifestPut,
  onlyOver: boolean,
): Promise<void> {
  const key = manifestKey(area, digest, keyId);
  for (let tries = 1; ; tries++) {
    const here = await objects.get(key, MANIFEST_BYTES_MAX);
    if (here?.bytes.equals(bytes) || (!here && onlyOver)) return;
    try {
      return await objects.put(key, bytes, { ifVersion: here?.version ?? null });
    } catch (error) {
      if (!isBusy(error) || tries === TRIES_MAX) throw error;
    }
  }
}

function isBusy(error: unknown): boolean {
  return codeOf(error) === 'BUSY';
}

async function firstIn(
  objects: ObjectStore,
  areas: readonly AreaPath[],
  { digest, keyId }: ManifestPut,
): Promise<ObjectBytes | undefined> {
  for (const area of areas) {
    const found = await objects.get(manifestKey(area, digest, keyId), MANIFEST_BYTES_MAX);
    if (found) return found;
  }
  return undefined;
}
