/**
 * Deletes what nobody has needed for the store's retention: the trash of sweeps, and retired roots. The only thing here
 * that destroys, and so the only one that looks twice: at the time, which starts anew with each read from the area; and at
 * what is alive by now, of which whatever is found nowhere else goes back to where it belongs, before anything is deleted.
 */
import { LazydiskError } from '../../errors.ts';
import { type AreaMarker, rootPath, STATE_PREFIX, stateKey } from '../layout.ts';
import type { ObjectInfo } from '../objects/object-store.ts';
import type { StoreParts } from '../parts.ts';
import type { StorePolicy } from '../policy.ts';
import { type Area, type View, writeIndex } from '../view.ts';
import { type Journal, journaled } from './journal.ts';
import { type LiveSet, mark } from './mark.ts';
import { restore } from './restore.ts';
import type { GcOptions } from './sweep.ts';

const BATCH_MAX = 1000;

export interface PurgeProgress {
  readonly area: string;
  readonly objects: number;
  readonly bytes: number;
}

/** An area that stays for now. */
export interface HeldArea {
  readonly area: string;
  readonly why: string;
  /** When it may go if nobody reads it until then, ISO 8601; null: not by time alone. */
  readonly until: string | null;
  /** Somebody has read it since it was put aside: an image is used that nothing means any more. */
  readonly isRead: boolean;
}

export interface PurgeReport {
  readonly purged: readonly string[];
  readonly held: readonly HeldArea[];
  readonly deletedObjects: number;
  /** Freed: without what went back. */
  readonly deletedBytes: number;
  /** Objects that were alive after all, and went back. */
  readonly restoredObjects: number;
}

/** Throws what `mark` throws, UNAVAILABLE, ABORTED. */
export async function purge(parts: StoreParts, options: GcOptions<PurgeProgress> = {}): Promise<PurgeReport> {
  return journaled(parts.objects, options.dryRun ? 'purge --dry-run' : 'purge', async (journal) => {
    const view = await parts.views.newerThan(0);
    return new Purge(parts, view, journal, options).run();
  });
}

/** What a purge does with an area: it goes, or is held. */
export interface PurgeStep {
  readonly area: Area;
  readonly held: HeldArea | undefined;
}

/** What a purge at `nowMs` of the store's clock does with all areas but the active root, in its order. */
export function purgePlan(view: View, policy: StorePolicy, nowMs: number): PurgeStep[] {
  const steps: PurgeStep[] = [];
  // Roots go in the order of their age: the next one proves that all is moved.
  let older: HeldArea | undefined;
  for (const area of [...view.retired.toReversed(), ...(view.draining ? [view.draining] : [])]) {
    const held = heldBecause(area, view, policy, nowMs) ?? heldWith(area, older, 'after');
    older ??= held;
    steps.push({ area, held });
  }
  // A root takes the trash of its sweeps along; trash that has no root any more goes by its own time.
  const roots = new Map(steps.map((step) => [step.area.root, step]));
  for (const area of view.trash) {
    const root = area.isDeleting ? undefined : roots.get(area.root);
    const held = root ? heldWith(area, root.held, 'with') : heldBecause(area, view, policy, nowMs);
    steps.push({ area, held });
  }
  return steps;
}

function heldWith(area: Area, other: HeldArea | undefined, how: 'after' | 'with'): HeldArea | undefined {
  return other && { area: area.path, why: `goes ${how} ${other.area}`, until: other.until, isRead: false };
}

/** Why `area` by itself must stay, or undefined if it may go. */
function heldBecause(area: Area, view: View, policy: StorePolicy, nowMs: number): HeldArea | undefined {
  const held = (why: string, untilMs: number | null, isRead = false): HeldArea => ({
    area: area.path,
    why,
    until: untilMs === null ? null : new Date(untilMs).toISOString(),
    isRead,
  });
  const isRoot = area.path.startsWith('roots/');
  // What is alive is not known then, not even to finish a deletion that has begun.
  if (!isRoot && view.draining) return held('a rotation is under way', null);
  if (area.isDeleting) return undefined;
  if (isRoot && area.retiredMs === undefined) return held('images still move out of it', null);
  // Nobody can tell a sweep that was killed from one that is stopped, and will go on to take away from the root what has
  // come to be needed by then, with no other copy of it than here.
  if (!isRoot && area.closedMs === undefined && area.root === view.active.root)
    return held(`its sweep has not ended: goes with ${view.active.path}, after \`gc rotate\``, null);
  const quietMs = isRoot ? area.retiredMs! : (area.closedMs ?? area.openedMs);
  const read = area.lastRead && area.lastRead.atMs > quietMs ? area.lastRead : undefined;
  const untilMs = Math.max(read?.atMs ?? 0, quietMs + policy.settleMs) + policy.retentionMs;
  if (nowMs >= untilMs) return undefined;
  return read
    ? held(`read by ${read.host} at ${new Date(read.atMs).toISOString()}`, untilMs, true)
    : held('kept for its retention', untilMs);
}

class Purge {
  readonly #parts: StoreParts;
  readonly #view: View;
  readonly #journal: Journal;
  readonly #options: GcOptions<PurgeProgress>;
  readonly #counts = { deletedObjects: 0, deletedBytes: 0, restoredObjects: 0 };
  #live: LiveSet | undefined;

  constructor(parts: StoreParts, view: View, journal: Journal, options: GcOptions<PurgeProgress>) {
    this.#parts = parts;
    this.#view = view;
    this.#journal = journal;
    this.#options = options;
  }

  async run(): Promise<PurgeReport> {
    const nowMs = await this.#journal.storeNowMs();
    const purged: string[] = [];
    const held: HeldArea[] = [];
    for (const step of purgePlan(this.#view, this.#parts.policy, nowMs)) {
      if (step.held) {
        held.push(step.held);
        continue;
      }
      const { path, root } = step.area;
      if (path.startsWith('roots/')) await this.#purgeRoot(step.area);
      else if (!purged.includes(rootPath(root))) await this.#purgeTrash(step.area, nowMs);
      purged.push(path);
    }
    if (purged.length > 0 && !this.#options.dryRun) await writeIndex(this.#parts.objects);
    return { purged, held, ...this.#counts };
  }

  async #purgeRoot(root: Area): Promise<void> {
    if (!root.isDeleting) await this.#checkMoved(root);
    await this.#mark(root, 'deleting');
    const trash = this.#view.trash.filter((area) => area.root === root.root);
    for (const area of [...trash, root]) await this.#deleteAll(area, async () => undefined);
    for (const area of [...trash, root]) await this.#unmark(area);
  }

  async #purgeTrash(trash: Area, nowMs: number): Promise<void> {
    this.#live ??= await mark(this.#parts, this.#view, {
      nowMs,
      // A manifest that is still in the root must find its chunks there, or a name given to it would mean nothing.
      unnamedSinceMs: 0,
      ...(this.#options.signal && { signal: this.#options.signal }),
    });
    const live = this.#live;
    await this.#mark(trash, 'deleting');
    await this.#deleteAll(trash, async (page) => {
      const { objects } = this.#parts;
      const restored = await restore(objects, page, this.#view.active.path, live, this.#options.dryRun);
      this.#counts.restoredObjects += restored.length;
      // Deleted here and written there, they free nothing.
      for (const { sizeBytes } of restored) this.#counts.deletedBytes -= sizeBytes;
    });
    await this.#unmark(trash);
  }

  /** Every name that the root has must be known to the next one: moved, set anew or removed. */
  async #checkMoved(root: Area): Promise<void> {
    const { references, objects } = this.#parts;
    const next = rootPath(root.root + 1);
    const there = await references.listIn(next);
    for (const { name, digest } of (await references.listIn(root.path)).values()) {
      if (digest === null || there.has(name)) continue;
      // Another purge may be at it already, and its half-deleted names say nothing.
      if (await objects.head(stateKey(root.path, 'deleting'))) return;
      throw new LazydiskError(
        'CORRUPT',
        `${objects.url}: ${root.path} has ${name}, which ${next} does not know: it stays`,
      );
    }
  }

  /** A listing may lag: it is asked again until it shows nothing. */
  async #deleteAll(area: Area, before: (page: readonly ObjectInfo[]) => Promise<void>): Promise<void> {
    const { objects, clock, policy } = this.#parts;
    for (let found = true, pass = 0; found; pass++) {
      found = false;
      if (pass > 0) await clock.sleep(policy.settleMs, this.#options.signal);
      for await (const page of objects.list(`${area.path}/`, { pageMax: BATCH_MAX })) {
        this.#options.signal?.throwIfAborted();
        if (page.length === 0) continue;
        found = !this.#options.dryRun;
        await before(page);
        // Later passes meet what the listing has not yet forgotten.
        if (pass === 0) this.#counts.deletedObjects += page.length;
        for (const { sizeBytes } of pass === 0 ? page : []) this.#counts.deletedBytes += sizeBytes;
        if (!this.#options.dryRun) await objects.delete(page.map(({ key }) => key));
        const { deletedObjects, deletedBytes } = this.#counts;
        this.#options.onProgress?.({ area: area.path, objects: deletedObjects, bytes: deletedBytes });
      }
    }
  }

  async #mark(area: Area, marker: AreaMarker): Promise<void> {
    if (!this.#options.dryRun) await this.#parts.objects.put(stateKey(area.path, marker), Buffer.alloc(0));
  }

  /**
   * What makes it an area goes first, and out of all listings, or it would look like one in another state for a moment;
   * the marker that says that it is going goes last, so that who is killed before is followed by somebody.
   */
  async #unmark(area: Area): Promise<void> {
    if (this.#options.dryRun) return;
    const { objects, clock, policy } = this.#parts;
    const opened = stateKey(area.path, 'opened');
    const deleting = stateKey(area.path, 'deleting');
    await objects.delete([opened]);
    await clock.sleep(policy.settleMs, this.#options.signal);
    const others: string[] = [];
    for await (const page of objects.list(`${STATE_PREFIX}${area.path}/`))
      others.push(...page.map(({ key }) => key));
    await objects.delete(others.filter((key) => key !== deleting));
    await objects.delete([deleting]);
  }
}
