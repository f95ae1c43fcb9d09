/**
 * Leases: each daemon lists the images that it has attached in one object of its own, and writes it anew well within the
 * store's retention. Garbage collection takes what is listed for alive as if a name meant it, so a drive that stays attached
 * loses nothing, whoever reads it from whatever cache; and a host that died lets go of it by itself. Anyone with a daemon's
 * credentials can write here, so nothing that is found is trusted to be small, few or of any form.
 */
import { pooled } from '../async/pooled.ts';
import { codeOf, errorText, LazydiskError } from '../errors.ts';
import { type ImageDigest, isDigest } from '../format/image-digest.ts';
import type { ObjectInfo, ObjectStore } from './objects/object-store.ts';
import { HOSTS_PREFIX, LEASES_PREFIX, meaningOf } from './roots/layout.ts';
import type { StorePolicy } from './roots/policy.ts';

/** Images in one lease; a daemon attaches no more drives than that. */
export const LEASED_IMAGES_MAX = 16_384;
/** Of one object: that many digests, and some room. */
const LEASE_BYTES_MAX = 2 * 1024 * 1024;
const READS_MAX = 32;
const EXAMPLES_MAX = 5;

/** A lease that is not renewed for this long is over. Its images are garbage then by the rules for what has lost its name. */
export function leaseTermMs({ retentionMs }: StorePolicy): number {
  return retentionMs;
}

/** The bytes of a lease. Sorted, so that equal leases are equal bytes. */
export function encodeLease(images: Iterable<ImageDigest>): Buffer {
  return Buffer.from(`${JSON.stringify({ version: 1, images: [...images].sort() })}\n`);
}

/** The images of a lease. Throws CORRUPT; `where` is for its text. */
export function parseLease(bytes: Buffer, where: string): ImageDigest[] {
  const corrupt = (why: string, cause?: unknown) =>
    new LazydiskError('CORRUPT', `${where} is no lease: ${why}`, { cause });
  if (bytes.length > LEASE_BYTES_MAX) throw corrupt(`over ${LEASE_BYTES_MAX} bytes`);
  let fields: { version?: unknown; images?: unknown } | null;
  try {
    fields = JSON.parse(bytes.toString()) as typeof fields;
  } catch (cause) {
    throw corrupt(errorText(cause), cause);
  }
  const { version, images } = fields ?? {};
  if (version !== 1 || !Array.isArray(images)) throw corrupt('not what a lease holds');
  if (images.length > LEASED_IMAGES_MAX) throw corrupt(`over ${LEASED_IMAGES_MAX} images`);
  if (!images.every((image): image is ImageDigest => typeof image === 'string' && isDigest(image)))
    throw corrupt('not an image among its images');
  return images;
}

/** What was found among the leases. */
export interface LeaseCount {
  /** Hosts with a lease that counts. */
  hosts: number;
  /** Objects under `hosts/leases/` that are none, and some of them, for people. */
  strange: number;
  readonly examples: string[];
}

export interface LeaseSearch {
  /** Leases written since count, by the store's clock, in milliseconds since 1970. */
  readonly sinceMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** Calls `visit` with each image of each lease. Throws UNAVAILABLE, ABORTED: what cannot be read might list any image. */
export async function readLeases(
  objects: ObjectStore,
  { sinceMs, signal }: LeaseSearch,
  visit: (image: ImageDigest, host: string) => void,
): Promise<LeaseCount> {
  const count: LeaseCount = { hosts: 0, strange: 0, examples: [] };
  const strange = (text: string) => {
    count.strange++;
    if (count.examples.length < EXAMPLES_MAX) count.examples.push(text);
  };
  await pooled(READS_MAX, writtenSince(objects, sinceMs), async ({ key, sizeBytes }) => {
    signal?.throwIfAborted();
    const meaning = meaningOf(key);
    if (meaning?.kind !== 'lease') return strange(key);
    // Of what is too long by the listing no byte is read.
    if (sizeBytes > LEASE_BYTES_MAX) return strange(`${key}: ${sizeBytes} bytes`);
    const found = await objects.get(key, LEASE_BYTES_MAX);
    if (!found) return;
    try {
      for (const image of parseLease(found.bytes, key)) visit(image, meaning.host);
      count.hosts++;
    } catch (error) {
      if (codeOf(error) !== 'CORRUPT') throw error;
      strange(errorText(error));
    }
  });
  return count;
}

/** What a listing alone tells of leases at `nowMs`: those that count, those that are over, and what is none. */
export async function countLeases(
  objects: ObjectStore,
  policy: StorePolicy,
  nowMs: number,
): Promise<{ readonly hosts: number; readonly over: number; readonly strange: number }> {
  const count = { hosts: 0, over: 0, strange: 0 };
  for await (const page of objects.list(LEASES_PREFIX)) {
    for (const { key, sizeBytes, modifiedMs } of page) {
      const isLease = meaningOf(key)?.kind === 'lease' && sizeBytes <= LEASE_BYTES_MAX;
      if (!isLease) count.strange++;
      else if (modifiedMs < nowMs - leaseTermMs(policy)) count.over++;
      else count.hosts++;
    }
  }
  return count;
}

async function* writtenSince(objects: ObjectStore, sinceMs: number): AsyncGenerator<ObjectInfo> {
  for await (const page of objects.list(LEASES_PREFIX))
    for (const info of page) if (info.modifiedMs >= sinceMs) yield info;
}

/** Those of `images` that a lease lists, each with one of the hosts that have it attached. */
export async function leasedOf(
  objects: ObjectStore,
  images: Pick<ReadonlySet<ImageDigest>, 'has'>,
  search: LeaseSearch,
): Promise<{
  readonly leased: Map<ImageDigest, string>;
  readonly hasOthers: boolean;
  readonly count: LeaseCount;
}> {
  const leased = new Map<ImageDigest, string>();
  let hasOthers = false;
  const count = await readLeases(objects, search, (image, host) => {
    if (images.has(image)) leased.set(image, host);
    else hasOthers = true;
  });
  return { leased, hasOthers, count };
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
