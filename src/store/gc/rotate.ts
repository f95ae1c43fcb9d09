/**
 * Opens the next root, moves into it every image that a name points to, then retires the previous root. Each step looks
 * at the store and does what is left, so a rotation that was killed can be resumed from any machine, and two at once
 * merely do the same work twice. Images keep their bytes, ids and digests; new builds use the new root's salt.
 */
import { codeOf, LazydiskError } from '../../errors.ts';
import { ID_BYTES } from '../../format/chunk-id.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import { IdTable } from '../id-table.ts';
import { leasedOf, leaseTermMs } from '../leases.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import { ensureIn, manifestKeysIn } from '../roots/carry.ts';
import { type AreaPath, rootPath, stateKey } from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import { carryManifest } from '../roots/place-manifest.ts';
import type { NamedDigest } from '../roots/references.ts';
import { type Area, type View, writeIndex } from '../roots/view.ts';
import { carryLeased } from './carry-leased.ts';
import { type Journal, journaled } from './journal.ts';
import { areasOfRoot, findClear, imagesIn } from './mark.ts';
import type { GcOptions } from './sweep.ts';

export interface RotateProgress {
  readonly phase: 'wait' | 'move';
  readonly done: number;
  readonly total: number;
  readonly movedBytes: number;
}

export interface RotateReport {
  readonly from: string;
  readonly to: string;
  /** Names that moved with their images, or would move. */
  readonly names: number;
  /** Images that moved because hosts have them attached, although no name points to them. */
  readonly leasedImages: number;
  readonly movedChunks: number;
  readonly movedBytes: number;
  /** Names that a stalled writer set to an image that had been deleted by then; they are removed. */
  readonly lostNames: readonly string[];
  readonly retired: boolean;
}

/** Throws NOT_FOUND or CORRUPT for a name whose image is incomplete (the previous root then stays), and UNAVAILABLE. */
export async function rotate(
  parts: StoreParts,
  options: GcOptions<RotateProgress> = {},
): Promise<RotateReport> {
  return journaled(parts.objects, options.dryRun ? 'rotate --dry-run' : 'rotate', async (journal) => {
    const { objects, clock, policy, views } = parts;
    let view = await views.newerThan(0);
    if (options.dryRun) return preview(parts, view, await journal.storeNowMs());
    if (!view.draining) view = await open(parts, view, options.signal);
    const from = view.draining!;
    const to = view.active;
    // By then, listings show everything that was written into the previous root while it was active. A writer that sets
    // a name there later checks whether the next root is open, and if so sets the name there too.
    const quietMs = to.openedMs + 2 * policy.settleMs;
    for (let nowMs = await journal.storeNowMs(); nowMs < quietMs; nowMs = await journal.storeNowMs()) {
      options.onProgress?.({ phase: 'wait', done: 0, total: 0, movedBytes: 0 });
      await clock.sleep(Math.min(quietMs - nowMs, 5_000), options.signal);
    }
    const moved = await move(parts, from, to, journal, options);
    const sinceMs = (await journal.storeNowMs()) - leaseTermMs(policy);
    const onCopied = (bytes: number) => {
      moved.movedChunks++;
      moved.movedBytes += bytes;
    };
    // Damaged images stay where they are, and keep the old root.
    const { carried } = await carryLeased(parts, from, { sinceMs, onCopied, signal: options.signal });
    await objects.put(stateKey(from.path, 'retired'), Buffer.alloc(0));
    await writeIndex(objects);
    return { from: from.path, to: to.path, ...moved, leasedImages: carried.length, retired: true };
  });
}

/** Returns the view with the next root opened. */
async function open(parts: StoreParts, view: View, signal: AbortSignal | undefined): Promise<View> {
  const { objects, clock, policy, views } = parts;
  const next = rootPath(view.active.root + 1);
  // A root that disappears from listings once its successor exists would be forgotten with everything in it.
  await markOpened(objects, view.active.path);
  await clock.sleep(policy.settleMs, signal);
  await markOpened(objects, next);
  await clock.sleep(policy.settleMs, signal);
  await writeIndex(objects);
  const opened = await views.newerThan(0);
  if (opened.active.path !== next || opened.draining?.path !== view.active.path)
    throw new LazydiskError('BUSY', `${objects.url}: another rotation is further on; run it again to help`);
  return opened;
}

/**
 * Writes the marker unless it exists. An existing marker keeps its age, which tells names that have moved from names
 * that a writer set too late in the previous root.
 */
async function markOpened(objects: ObjectStore, root: AreaPath): Promise<void> {
  const key = stateKey(root, 'opened');
  if (await objects.head(key)) return;
  await objects.put(key, Buffer.alloc(0), { ifVersion: null }).catch((error) => {
    if (codeOf(error) !== 'BUSY') throw error;
  });
}

async function move(
  parts: StoreParts,
  from: Area,
  to: Area,
  journal: Journal,
  options: GcOptions<RotateProgress>,
): Promise<{ names: number; movedChunks: number; movedBytes: number; lostNames: string[] }> {
  const { objects, references, views, policy } = parts;
  const counts = { names: 0, movedChunks: 0, movedBytes: 0, lostNames: [] as string[] };
  const onCopied = (bytes: number) => {
    counts.movedChunks++;
    counts.movedBytes += bytes;
  };
  const there = await references.listIn(to.path);
  const names = live(await references.listIn(from.path));
  const whole = new Set<ImageDigest>();
  for (const [done, reference] of names.entries()) {
    options.signal?.throwIfAborted();
    options.onProgress?.({ phase: 'move', done, total: names.length, movedBytes: counts.movedBytes });
    const { name, digest } = reference;
    if (there.has(name)) continue;
    if (!whole.has(digest) && !(await bring(parts, from, to, reference, onCopied))) {
      await references.inherit(to.path, { ...reference, digest: null });
      counts.lostNames.push(name);
      continue;
    }
    whole.add(digest);
    const view = await views.newerThan(policy.viewMs / 2);
    // The image may have moved before a key was added to it.
    for (const keyId of await manifestKeysIn(objects, from.path, digest))
      await carryManifest(objects, { digest, keyId }, areasOfRoot(view, from), to.path);
    await references.inherit(to.path, reference);
    counts.names++;
    await journal.write('running', { from: from.path, to: to.path, ...counts });
  }
  return counts;
}

/**
 * Copies the image of a name into the next root. Returns false if the image is incomplete and its writer stalled for so
 * long that the image may never have been complete; otherwise an incomplete image is an error.
 */
async function bring(
  parts: StoreParts,
  from: Area,
  to: Area,
  { name, digest }: LiveName,
  onCopied: (bytes: number) => void,
): Promise<boolean> {
  const { objects, references, views, clock, policy } = parts;
  const view = await views.newerThan(policy.viewMs / 2);
  const startedAt = clock.now();
  const checkTime = () => {
    if (clock.ageMs(startedAt) > policy.buildMs)
      throw new LazydiskError('TIMEOUT', `${objects.url}: ${name} took too long to move: run it again`);
  };
  try {
    if (await ensureIn(parts, view, to.path, digest, { checkTime, onCopied })) return true;
    throw new LazydiskError(
      'NOT_FOUND',
      `${objects.url}: ${name} means image ${digest}, which has no manifest`,
    );
  } catch (error) {
    const isLost = codeOf(error) === 'NOT_FOUND';
    if (isLost && (await references.isLate(from.path, name, policy.buildMs))) return false;
    throw error;
  }
}

type LiveName = NamedDigest & { readonly digest: ImageDigest };

function live(names: ReadonlyMap<string, NamedDigest>): LiveName[] {
  return [...names.values()].filter((name): name is LiveName => name.digest !== null);
}

/** Reports what a rotation would move if it began now; the bytes are those of named images. */
async function preview(parts: StoreParts, view: View, nowMs: number): Promise<RotateReport> {
  const { objects, references, policy } = parts;
  const from = view.draining ?? view.active;
  const to = view.draining ? view.active.path : rootPath(view.active.root + 1);
  const there = view.draining ? await references.listIn(to) : new Map();
  const names = live(await references.listIn(from.path)).filter(({ name }) => !there.has(name));
  const seen = new IdTable();
  let movedBytes = 0;
  for (const { name, digest } of names) {
    const clear = await findClear(objects, areasOfRoot(view, from), digest, name);
    if (!clear)
      throw new LazydiskError(
        'NOT_FOUND',
        `${objects.url}: ${name} means image ${digest}, which has no manifest`,
      );
    for (let entry = 0; entry < clear.storedChunks; entry++)
      if (seen.add(clear.ids, entry * ID_BYTES)) movedBytes += clear.sealedBytesOf(entry);
  }
  const unnamed = await imagesIn(objects, areasOfRoot(view, from));
  for (const { digest } of names) unnamed.delete(digest);
  const { leased } = await leasedOf(objects, unnamed, { sinceMs: nowMs - leaseTermMs(policy) });
  const leasedImages = leased.size;
  return {
    from: from.path,
    to,
    names: names.length,
    leasedImages,
    movedChunks: seen.size,
    movedBytes,
    lostNames: [],
    retired: false,
  };
}
