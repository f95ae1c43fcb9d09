/**
 * Deletes what nobody has needed for the store's retention: the trash of sweeps, and retired roots. Only this command
 * destroys data, so it checks twice: the time, which starts anew with each read from the area; and what is live by now.
 * Live objects found nowhere else are restored before anything is deleted.
 */

import type { ImageDigest } from '../../format/image-digest.ts';
import { forgetHosts, leaseTermMs } from '../leases.ts';
import type { ObjectInfo } from '../objects/object-store.ts';
import type { Moment } from '../roots/clock.ts';
import { type LastRead, lastRead } from '../roots/host-reads.ts';
import {
  type AreaMarker,
  type AreaPath,
  readsPrefix,
  rootPath,
  STATE_PREFIX,
  stateKey,
} from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import { type Area, type View, writeIndex } from '../roots/view.ts';
import { carryLeased } from './carry-leased.ts';
import { type Journal, journaled } from './journal.ts';
import { litterPages } from './litter.ts';
import { addLeased, type LiveSet, mark } from './mark.ts';
import { type HeldArea, heldByOthers, heldByRead, purgePlan, readsOf, withTrash } from './purge-plan.ts';
import { restore } from './restore.ts';
import type { GcOptions } from './sweep.ts';

const BATCH_MAX = 1000;

export interface PurgeProgress {
  readonly area: string;
  readonly objects: number;
  readonly bytes: number;
}

export interface PurgeReport {
  readonly purged: readonly string[];
  readonly held: readonly HeldArea[];
  readonly deletedObjects: number;
  /** Bytes freed, not counting restored objects. */
  readonly deletedBytes: number;
  /** Objects that turned out to be live, and were restored. */
  readonly restoredObjects: number;
  /** Attached images without a name, copied from a retired root to the active one. */
  readonly carriedImages: number;
  /** Names that writers set in a root as it was retired, and did not live to set in the next. */
  readonly lostNames: readonly string[];
  /** Expired host records: leases that have ended, and reads from areas that no longer exist. */
  readonly forgottenObjects: number;
}

/** Throws what `mark` throws, UNAVAILABLE, ABORTED. */
export async function purge(parts: StoreParts, options: GcOptions<PurgeProgress> = {}): Promise<PurgeReport> {
  return journaled(parts.objects, options.dryRun ? 'purge --dry-run' : 'purge', (journal) =>
    new Purge(parts, journal, options).run(),
  );
}

/** While the chunks of any live image are unknown, no trash may go. */
function heldByUnknown({ path }: Area, live: LiveSet): HeldArea | undefined {
  const [unknown] = live.unknown;
  if (unknown === undefined) return undefined;
  return {
    area: path,
    why: `the manifest of image ${unknown} is corrupt, so any chunk may be needed: \`lazydisk fsck\` says more`,
    until: null,
    isRead: false,
  };
}

/** An area as found before its deletion, and the areas that go with it. */
interface Look {
  readonly area: Area;
  readonly areas: readonly Area[];
  readonly view: View;
  readonly nowMs: number;
}

class Purge {
  readonly #parts: StoreParts;
  readonly #journal: Journal;
  readonly #options: GcOptions<PurgeProgress>;
  readonly #counts = { deletedObjects: 0, deletedBytes: 0, restoredObjects: 0 };
  readonly #carried = new Set<ImageDigest>();
  readonly #lostNames = new Set<string>();
  #live: LiveSet | undefined;
  /** When leases were last read, and the store time before which all leases are known. */
  #leasesReadAt: Moment | undefined;
  #leasesSinceMs = 0;

  constructor(parts: StoreParts, journal: Journal, options: GcOptions<PurgeProgress>) {
    this.#parts = parts;
    this.#journal = journal;
    this.#options = options;
  }

  async run(): Promise<PurgeReport> {
    const { objects, views, policy } = this.#parts;
    const dryRun = this.#options.dryRun ?? false;
    const purged: AreaPath[] = [];
    const held: HeldArea[] = [];
    const first = await views.newerThan(0);
    const reads = await readsOf(objects, first);
    const nowMs = await this.#journal.storeNowMs();
    for (const { area, held: heldAtFirst } of purgePlan(first, reads, policy, nowMs)) {
      if (purged.includes(area.path)) continue;
      const outcome = heldAtFirst ?? heldByOthers(area, held) ?? (await this.#purgeArea(area.path, reads));
      if (Array.isArray(outcome)) purged.push(...outcome);
      else held.push(outcome);
    }
    if (purged.length > 0 && !dryRun) await writeIndex(objects);
    await this.#deleteLitter();
    const areas = new Set((await views.newerThan(0)).areas.map(({ path }) => path));
    const forgottenObjects = await forgetHosts(objects, policy, { areas, nowMs, dryRun });
    const carriedImages = this.#carried.size;
    const lostNames = [...this.#lostNames].sort();
    return { purged, held, ...this.#counts, carriedImages, lostNames, forgottenObjects };
  }

  /**
   * Checks again, because deleting the areas before this one may have taken days; then deletes. Returns the deleted
   * areas (none if another purge was faster), or why this one stays.
   */
  async #purgeArea(path: AreaPath, reads: Map<AreaPath, LastRead>): Promise<AreaPath[] | HeldArea> {
    const { objects, views, policy } = this.#parts;
    const view = await views.newerThan(0);
    const found = view.areas.find((area) => area.path === path);
    if (!found) return [];
    const areas = withTrash(found, view);
    for (const area of areas) {
      const read = await lastRead(objects, area.path);
      if (read) reads.set(area.path, read);
    }
    const nowMs = await this.#journal.storeNowMs();
    const step = purgePlan(view, reads, policy, nowMs).find(({ area }) => area.path === path);
    if (step?.held) return step.held;
    const look: Look = { area: found, areas, view, nowMs };
    const held = path.startsWith('roots/') ? await this.#purgeRoot(look) : await this.#purgeTrash(look);
    return held ?? areas.map((area) => area.path);
  }

  /**
   * Copies attached images to the active root first. A host that attaches an image of this root by digest writes the
   * lease, and then checks for the `deleting` marker. So if the first look at leases misses a lease, either the look
   * after the marker sees it, or its host sees the marker.
   */
  async #purgeRoot(look: Look): Promise<HeldArea | undefined> {
    const { area: root, areas } = look;
    const unmoved = root.isDeleting ? undefined : await this.#heldByNames(root, look.view);
    if (unmoved) return unmoved;
    this.#leasesSinceMs = look.nowMs - leaseTermMs(this.#parts.policy);
    const stuck = await this.#readLeases(look);
    if (stuck) return stuck;
    await this.#mark(root, 'deleting');
    await this.#settle(2);
    this.#leasesReadAt = undefined;
    // Its trash first: once a root is gone, nothing else is deleted with it.
    for (const area of areas.toReversed()) {
      const held = await this.#deleteAll(area, () => this.#heldByNow(look));
      if (held) return held;
    }
    for (const area of areas.toReversed()) await this.#unmark(area);
    return undefined;
  }

  async #purgeTrash(look: Look): Promise<HeldArea | undefined> {
    const { area: trash, view, nowMs } = look;
    if (!this.#live) {
      this.#leasesSinceMs = this.#relianceMs(nowMs);
      this.#live = await mark(this.#parts, view, {
        nowMs,
        // A manifest that is still in the root must find its chunks there, or a name set to it would point to nothing.
        unnamedSinceMs: 0,
        ...(this.#options.signal && { signal: this.#options.signal }),
      });
      // A lease on an image that a sweep has just moved may not have been listed yet; after this wait it is.
      await this.#settle(2);
      this.#leasesReadAt = undefined;
    }
    const live = this.#live;
    const unknown = heldByUnknown(trash, live);
    if (unknown) return unknown;
    await this.#mark(trash, 'deleting');
    const held = await this.#deleteAll(trash, async (page) => {
      const heldByNow = (await this.#heldByNow(look)) ?? heldByUnknown(trash, live);
      if (heldByNow) return heldByNow;
      const { objects } = this.#parts;
      const restored = await restore(objects, page, view.active.path, live, this.#options.dryRun);
      this.#counts.restoredObjects += restored.length;
      // Restored objects free no space.
      for (const { sizeBytes } of restored) this.#counts.deletedBytes -= sizeBytes;
      return undefined;
    });
    if (!held) await this.#unmark(trash);
    return held;
  }

  /**
   * Checks whether the area has been read since: if so, the rest of it stays, and the next purge starts from the new
   * time. Also reads new leases, but no more often than listings can be relied on to show anything new.
   */
  async #heldByNow(look: Look): Promise<HeldArea | undefined> {
    const { objects, policy, clock } = this.#parts;
    const { area, areas, view, nowMs } = look;
    const reads = new Map<AreaPath, LastRead>();
    for (const { path } of areas) {
      const read = await lastRead(objects, path, nowMs - policy.retentionMs);
      if (read) reads.set(path, read);
    }
    const read = heldByRead(area, view, reads, policy, nowMs);
    if (read) return read;
    if (this.#leasesReadAt && clock.ageMs(this.#leasesReadAt) < policy.settleMs / 4) return undefined;
    return this.#readLeases(look);
  }

  /**
   * Reads the leases written since the last look. Leased images in a trash become live; those in a retired root are
   * copied to the active root, and one that cannot be copied holds the root.
   */
  async #readLeases({ area, view }: Look): Promise<HeldArea | undefined> {
    const { signal, dryRun } = this.#options;
    const sinceMs = this.#leasesSinceMs;
    this.#leasesReadAt = this.#parts.clock.now();
    this.#leasesSinceMs = this.#relianceMs(await this.#journal.storeNowMs());
    if (!area.path.startsWith('roots/')) {
      await addLeased(this.#parts, view, this.#live!, sinceMs, signal);
      return undefined;
    }
    const { carried, stuck } = await carryLeased(this.#parts, area, { sinceMs, dryRun, signal });
    for (const image of carried) this.#carried.add(image);
    const [first] = stuck;
    if (!first) return undefined;
    return {
      area: area.path,
      why: `image ${first.image}, attached on ${first.host}, is damaged and cannot leave it: ${first.why}`,
      until: null,
      isRead: false,
    };
  }

  /** Whatever was written before the returned time is in a listing made at `nowMs`, even if times are whole seconds. */
  #relianceMs(nowMs: number): number {
    return nowMs - this.#parts.policy.settleMs - 1000;
  }

  async #settle(times: number): Promise<void> {
    const { clock, policy } = this.#parts;
    if (!this.#options.dryRun) await clock.sleep(times * policy.settleMs, this.#options.signal);
  }

  async #deleteLitter(): Promise<void> {
    const { objects, views } = this.#parts;
    for await (const page of litterPages(this.#parts, await views.newerThan(0))) {
      this.#options.signal?.throwIfAborted();
      this.#counts.deletedObjects += page.length;
      for (const { sizeBytes } of page) this.#counts.deletedBytes += sizeBytes;
      if (!this.#options.dryRun) await objects.delete(page.map(({ key }) => key));
    }
  }

  /**
   * Returns why the names in `root` hold it. A later root must know every name of this one: moved, set anew or removed.
   * The exception is a name that a writer set after the next root was opened and did not live to set there; that name
   * is lost.
   */
  async #heldByNames(root: Area, view: View): Promise<HeldArea | undefined> {
    const { references, objects } = this.#parts;
    const next = rootPath(root.root + 1);
    const openedMs = view.areas.find(({ path }) => path === next)?.openedMs ?? 0;
    // Without compare-and-set, the next root's marker may have been rewritten since.
    const lastMs = Math.min(openedMs, root.retiredMs!);
    const there = new Set<string>();
    for (let number = root.root + 1; number <= view.active.root; number++)
      for (const name of (await references.listIn(rootPath(number))).keys()) there.add(name);
    const lost: string[] = [];
    for (const { name, digest, modifiedMs } of (await references.listIn(root.path)).values()) {
      if (digest === null || there.has(name)) continue;
      if (modifiedMs > lastMs) {
        lost.push(name);
        continue;
      }
      // Another purge may already be deleting the root, and half-deleted names prove nothing.
      if (await objects.head(stateKey(root.path, 'deleting'))) return undefined;
      const why = `has ${name}, image ${digest}, which no later root knows: \`lazydisk tag ${digest} ${name}\`, then \`rm\` it if nobody needs it`;
      return { area: root.path, why, until: null, isRead: false };
    }
    for (const name of lost) this.#lostNames.add(name);
    return undefined;
  }

  /**
   * Deletes all objects in `area`. Listings may lag, so it lists again until one is empty. `before` is called with each
   * page, and stops the deletion by returning a reason.
   */
  async #deleteAll(
    area: Area,
    before: (page: readonly ObjectInfo[]) => Promise<HeldArea | undefined>,
  ): Promise<HeldArea | undefined> {
    const { objects, clock, policy } = this.#parts;
    for (let found = true, pass = 0; found; pass++) {
      found = false;
      if (pass > 0) await clock.sleep(policy.settleMs, this.#options.signal);
      for await (const page of objects.list(`${area.path}/`, { pageMax: BATCH_MAX })) {
        this.#options.signal?.throwIfAborted();
        if (page.length === 0) continue;
        found = !this.#options.dryRun;
        const held = await before(page);
        if (held) return held;
        // Later passes see objects that the listing has not dropped yet.
        if (pass === 0) this.#counts.deletedObjects += page.length;
        for (const { sizeBytes } of pass === 0 ? page : []) this.#counts.deletedBytes += sizeBytes;
        if (!this.#options.dryRun) await objects.delete(page.map(({ key }) => key));
        const { deletedObjects, deletedBytes } = this.#counts;
        this.#options.onProgress?.({ area: area.path, objects: deletedObjects, bytes: deletedBytes });
      }
    }
    return undefined;
  }

  async #mark(area: Area, marker: AreaMarker): Promise<void> {
    if (!this.#options.dryRun) await this.#parts.objects.put(stateKey(area.path, marker), Buffer.alloc(0));
  }

  /**
   * Deletes the area's markers. The `opened` marker goes first, and must leave all listings; otherwise the area would
   * briefly seem to be in another state. The `deleting` marker goes last, so that another purge finishes the work if
   * this one is killed.
   */
  async #unmark(area: Area): Promise<void> {
    if (this.#options.dryRun) return;
    const { objects, clock, policy } = this.#parts;
    const opened = stateKey(area.path, 'opened');
    const deleting = stateKey(area.path, 'deleting');
    await objects.delete([opened]);
    await clock.sleep(policy.settleMs, this.#options.signal);
    for (const prefix of [readsPrefix(area.path), `${STATE_PREFIX}${area.path}/`])
      for await (const page of objects.list(prefix))
        await objects.delete(page.map(({ key }) => key).filter((key) => key !== deleting));
    await objects.delete([deleting]);
  }
}
