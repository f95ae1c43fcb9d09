/**
 * Leases: each daemon records in the store which images it has attached, as one empty object for each, and renews it
 * well within the retention. Garbage collection treats leased images as if a name pointed to them. So a drive that
 * stays attached loses nothing, whichever cache it reads from; and the leases of a dead host expire. Anyone with a
 * daemon's credentials can write leases. So everything is in the key and the time, which a listing shows to the
 * bucket's owner whatever the object's permissions or encryption, and an extra object cannot invalidate others.
 */
import { pooled } from '../async/pooled.ts';
import { type ImageDigest, isDigest } from '../format/image-digest.ts';
import type { ObjectStore } from './objects/object-store.ts';
import { HOSTS_PREFIX, LEASES_PREFIX, leasesPrefix, meaningOf } from './roots/layout.ts';
import type { StorePolicy } from './roots/policy.ts';

const LISTINGS_MAX = 32;
/** Maximum number of other leased images whose leases are checked: enough to tell whether there are any. */
const OTHERS_MAX = 1000;

/**
 * A lease expires if it is not renewed for this long. Its image is then garbage by the rules for images that have lost
 * their name.
 */
export function leaseTermMs({ retentionMs }: StorePolicy): number {
  return retentionMs;
}

export interface LeaseSearch {
  /** Leases written since this store time count, in milliseconds since 1970. */
  readonly sinceMs: number;
  /** Images whose leases are ignored. */
  readonly except?: Pick<ReadonlySet<ImageDigest>, 'has'>;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Finds which of `images` are leased, each with one of the hosts that have it attached, and whether other images may
 * be. Only lists; reads no objects. Throws UNAVAILABLE, ABORTED.
 */
export async function leasedOf(
  objects: ObjectStore,
  images: Pick<ReadonlySet<ImageDigest>, 'has'>,
  search: LeaseSearch,
): Promise<{ readonly leased: Map<ImageDigest, string>; readonly hasOthers: boolean }> {
  const { except, signal } = search;
  const asked = new Set<ImageDigest>();
  const others = new Set<ImageDigest>();
  for await (const page of objects.list(LEASES_PREFIX, { shallow: true })) {
    signal?.throwIfAborted();
    for (const { key } of page) {
      const image = `sha256:${key.split('/', 3)[2]}`;
      if (!isDigest(image) || except?.has(image)) continue;
      if (images.has(image)) asked.add(image);
      else if (others.size <= OTHERS_MAX) others.add(image);
    }
  }
  const leased = new Map<ImageDigest, string>();
  await pooled(LISTINGS_MAX, asked, async (image) => {
    const host = await leaseHolder(objects, image, search);
    if (host !== undefined) leased.set(image, host);
  });
  let hasOthers = others.size > OTHERS_MAX;
  await pooled(LISTINGS_MAX, others, async (image) => {
    hasOthers ||= (await leaseHolder(objects, image, search)) !== undefined;
  });
  return { leased, hasOthers };
}

/** A host with a current lease of `image`. */
async function leaseHolder(
  objects: ObjectStore,
  image: ImageDigest,
  { sinceMs, signal }: LeaseSearch,
): Promise<string | undefined> {
  for await (const page of objects.list(leasesPrefix(image), signal && { signal })) {
    for (const { key, modifiedMs } of page) {
      const meaning = meaningOf(key);
      if (meaning?.kind === 'lease' && modifiedMs >= sinceMs) return meaning.host;
    }
  }
  return undefined;
}

/** Counts the leases at `nowMs`: current ones, expired ones, and objects that are not valid leases. */
export async function countLeases(
  objects: ObjectStore,
  policy: StorePolicy,
  nowMs: number,
): Promise<{ readonly current: number; readonly over: number; readonly strange: number }> {
  const count = { current: 0, over: 0, strange: 0 };
  for await (const page of objects.list(LEASES_PREFIX)) {
    for (const { key, modifiedMs } of page) {
      if (meaningOf(key)?.kind !== 'lease') count.strange++;
      else if (modifiedMs < nowMs - leaseTermMs(policy)) count.over++;
      else count.current++;
    }
  }
  return count;
}

/**
 * Deletes expired host records: leases that have ended, reads from areas that no longer exist, and other objects.
 * Returns how many it deleted, or with `dryRun` would delete.
 */
export async function forgetHosts(
  objects: ObjectStore,
  policy: StorePolicy,
  {
    areas,
    nowMs,
    dryRun,
  }: { readonly areas: ReadonlySet<string>; readonly nowMs: number; readonly dryRun: boolean },
): Promise<number> {
  let forgotten = 0;
  for await (const page of objects.list(HOSTS_PREFIX)) {
    const over = page.filter(({ key, modifiedMs }) => {
      const meaning = meaningOf(key);
      // Reads from an existing area go with the area: one that is renewed meanwhile must not be lost.
      const isOfArea = meaning?.kind === 'read' && areas.has(meaning.area);
      return !isOfArea && modifiedMs < nowMs - leaseTermMs(policy);
    });
    forgotten += over.length;
    if (!dryRun && over.length > 0) await objects.delete(over.map(({ key }) => key));
  }
  return forgotten;
}
