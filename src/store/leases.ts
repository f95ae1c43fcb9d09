/**
 * Leases: each daemon tells the store which images it has attached, and goes on telling it well within the retention, by one
 * empty object for each. Garbage collection takes what is leased for alive as if a name meant it, so a drive that stays
 * attached loses nothing, whoever reads it from whatever cache; and a host that died lets go of it by itself. Anyone with
 * a daemon's credentials can write here. So everything is in the key and the time, which a listing shows to whoever owns the
 * bucket, whatever rights or keys the object itself came with; and one more object takes nothing away from the others.
 */
import { pooled } from '../async/pooled.ts';
import { type ImageDigest, isDigest } from '../format/image-digest.ts';
import type { ObjectStore } from './objects/object-store.ts';
import { HOSTS_PREFIX, LEASES_PREFIX, leasesPrefix, meaningOf } from './roots/layout.ts';
import type { StorePolicy } from './roots/policy.ts';

const LISTINGS_MAX = 32;
/** Leased images beyond those that are asked for whose leases are looked at: enough to tell that there are any. */
const OTHERS_MAX = 1000;

/** A lease that is not renewed for this long is over. Its image is garbage then by the rules for what has lost its name. */
export function leaseTermMs({ retentionMs }: StorePolicy): number {
  return retentionMs;
}

export interface LeaseSearch {
  /** Leases written since count, by the store's clock, in milliseconds since 1970. */
  readonly sinceMs: number;
  /** Images whose leases are of no interest. */
  readonly except?: Pick<ReadonlySet<ImageDigest>, 'has'>;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Those of `images` that are leased, each with one of the hosts that have it attached; and whether others may be. Needs to
 * list, and to read nothing. Throws UNAVAILABLE, ABORTED.
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

/** A host with a lease of `image` that counts. */
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

/** What a listing tells of leases at `nowMs`: those that count, those that are over, and what is none. */
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
 * Takes away what hosts wrote and what means nothing any more: leases that are over, reads from areas that are gone,
 * and what is neither. Gives how many objects that are, or with `dryRun` would be.
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
      // Those of an area that is there go with it: one that is made again meanwhile must not be lost.
      const isOfArea = meaning?.kind === 'read' && areas.has(meaning.area);
      return !isOfArea && modifiedMs < nowMs - leaseTermMs(policy);
    });
    forgotten += over.length;
    if (!dryRun && over.length > 0) await objects.delete(over.map(({ key }) => key));
  }
  return forgotten;
}
