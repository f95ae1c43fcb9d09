/**
 * How a manifest gets into an area. Two manifests of one digest and key may differ, for their sealed parts are random, and
 * without the key nobody can tell a good one from a damaged one. So what is there stays, unless the key proves that the
 * new one opens and the old one does not.
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

/** How a write is made: bounded in time, perhaps. By default as it is. */
export type BoundedWrite = (write: (options: ObjectOptions) => Promise<void>) => Promise<void>;

const unbounded: BoundedWrite = (write) => write({});

/**
 * Writes that each begin when `checkTime` allows it and are given up after settle; again while the store is waited for,
 * for as long as its calls are tried. `what` is for errors.
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

/** Times that a manifest is tried when others write it at the same moment. */
const TRIES_MAX = 10;

export interface ManifestPut {
  readonly digest: ImageDigest;
  readonly keyId: string;
  readonly bytes: Buffer;
  /** Without it nothing is proven, and what is there stays. */
  readonly opens?: ManifestProof | undefined;
}

/**
 * Puts a manifest into `area`; if one is there that it may not replace, or in one of `others`, that one is put there
 * again. (Whoever reads `area` before the others meets only what is in `area`, as if theirs had been overwritten.) Throws BUSY when others write it all the time, and what the store does.
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
    // Not read to its end, so it cannot be put again as it is.
    if (bytes.length > MANIFEST_BYTES_MAX) return placement;
    try {
      // What stays is put again, too: a sweep must see that somebody is about to rely on it.
      await bounded((options) => objects.put(key, bytes, { ...options, ifVersion: here?.version ?? null }));
      return placement === 'present' && !here && old!.bytes.equals(put.bytes) ? 'written' : placement;
    } catch (error) {
      if (!isBusy(error) || tries === TRIES_MAX) throw error;
    }
  }
}

/** What putting a manifest comes to where `old` is. */
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
 * Brings the manifest of an image for one key into area `to`, unless one is there: from the first of `from` in which it
 * is whole as far as that shows without a key, else from the first that has any, for a key may mend that. False if none
 * has.
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
 * Puts a manifest over whatever is in `area` for its digest and key: for who has proven it, and wants the other gone. If
 * `onlyOver`, not where there is none. Throws BUSY when others write it all the time.
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
