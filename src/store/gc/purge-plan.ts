/**
 * What a purge does with which area and when: by the areas' markers, by who read from them last, and by the store's time.
 * Only `purge` deletes, and it asks again before each area.
 */
import type { ObjectStore } from '../objects/object-store.ts';
import { type LastRead, lastRead } from '../roots/host-reads.ts';
import { type AreaPath, rootPath } from '../roots/layout.ts';
import type { StorePolicy } from '../roots/policy.ts';
import type { Area, View } from '../roots/view.ts';

/** Who read last from which area. */
export type Reads = ReadonlyMap<AreaPath, LastRead>;

/** An area that stays for now. */
export interface HeldArea {
  readonly area: string;
  readonly why: string;
  /** When it may go if nobody reads it until then, ISO 8601; null: not by time alone. */
  readonly until: string | null;
  /** Somebody has read it since it was put aside: an image is used that nothing means any more. */
  readonly isRead: boolean;
}

/** What a purge does with an area: it goes, or is held. */
export interface PurgeStep {
  readonly area: Area;
  readonly held: HeldArea | undefined;
}

/** What a purge at `nowMs` of the store's clock does with all areas but the active root, in its order. */
export function purgePlan(view: View, reads: Reads, policy: StorePolicy, nowMs: number): PurgeStep[] {
  const steps: PurgeStep[] = [];
  // Roots go in the order of their age: the next one proves that all is moved.
  let older: HeldArea | undefined;
  for (const area of [...view.retired.toReversed(), ...(view.draining ? [view.draining] : [])]) {
    const held = heldBecause(area, view, reads, policy, nowMs) ?? heldWith(area, older, 'after');
    older ??= held;
    steps.push({ area, held });
  }
  // A root takes the trash of its sweeps along; trash that has no root any more goes by its own time.
  const roots = new Map(steps.map((step) => [step.area.root, step]));
  for (const area of view.trash) {
    const root = area.isDeleting ? undefined : roots.get(area.root);
    const held = root ? heldWith(area, root.held, 'with') : heldBecause(area, view, reads, policy, nowMs);
    steps.push({ area, held });
  }
  return steps;
}

function heldWith(area: Area, other: HeldArea | undefined, how: 'after' | 'with'): HeldArea | undefined {
  return other && { area: area.path, why: `goes ${how} ${other.area}`, until: other.until, isRead: false };
}

/** A root that turns out to stay keeps the trash of its sweeps, and all roots after it. */
export function heldByOthers(area: Area, held: readonly HeldArea[]): HeldArea | undefined {
  if (area.path.startsWith('roots/'))
    return heldWith(
      area,
      held.find((other) => other.area.startsWith('roots/')),
      'after',
    );
  if (area.isDeleting) return undefined;
  return heldWith(
    area,
    held.find((other) => other.area === rootPath(area.root)),
    'with',
  );
}

/** Why `area` by itself must stay, or undefined if it may go. */
function heldBecause(
  area: Area,
  view: View,
  reads: Reads,
  policy: StorePolicy,
  nowMs: number,
): HeldArea | undefined {
  const held = (why: string, untilMs: number | null): HeldArea => ({
    area: area.path,
    why,
    until: untilMs === null ? null : new Date(untilMs).toISOString(),
    isRead: false,
  });
  const isRoot = area.path.startsWith('roots/');
  // What is alive is not known then, not even to finish a deletion that has begun.
  if (!isRoot && view.draining) return held('a rotation is under way', null);
  // Even of one whose deletion has begun the rest is kept for whoever reads it.
  const read = heldByRead(area, view, reads, policy, nowMs);
  if (read || area.isDeleting) return read;
  if (isRoot && area.retiredMs === undefined) return held('images still move out of it', null);
  // Nobody can tell a sweep that was killed from one that is stopped, and will go on to take away from the root what has
  // come to be needed by then, with no other copy of it than here.
  if (!isRoot && area.closedMs === undefined && area.root === view.active.root)
    return held(`its sweep has not ended: goes with ${view.active.path}, after \`gc rotate\``, null);
  const quietMs = isRoot ? area.retiredMs! : (area.closedMs ?? area.openedMs);
  const untilMs = quietMs + policy.settleMs + policy.retentionMs;
  return nowMs >= untilMs ? undefined : held('kept for its retention', untilMs);
}

/** Somebody has read from it, or from what goes with it, within the retention. */
export function heldByRead(
  area: Area,
  view: View,
  reads: Reads,
  policy: StorePolicy,
  nowMs: number,
): HeldArea | undefined {
  let last: LastRead | undefined;
  for (const { path } of withTrash(area, view)) {
    const read = reads.get(path);
    if (read && read.atMs > (last?.atMs ?? 0)) last = read;
  }
  const untilMs = (last?.atMs ?? 0) + policy.retentionMs;
  if (!last || nowMs >= untilMs) return undefined;
  return {
    area: area.path,
    why: `read by ${last.host} at ${new Date(last.atMs).toISOString()}`,
    until: new Date(untilMs).toISOString(),
    isRead: true,
  };
}

/** What goes when `area` goes. */
export function withTrash(area: Area, { trash }: View): Area[] {
  if (!area.path.startsWith('roots/')) return [area];
  return [area, ...trash.filter(({ root }) => root === area.root)];
}

/** Who read last from each area of `view` but the active root. */
export async function readsOf(objects: ObjectStore, view: View): Promise<Map<AreaPath, LastRead>> {
  const reads = new Map<AreaPath, LastRead>();
  for (const { path } of view.areas) {
    if (path === view.active.path) continue;
    const read = await lastRead(objects, path);
    if (read) reads.set(path, read);
  }
  return reads;
}
