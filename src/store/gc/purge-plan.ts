/**
 * Decides what a purge does with each area and when, from the areas' markers, the last reads from them, and the store's
 * time. Only `purge` deletes, and it checks again before each area.
 */
import type { ObjectStore } from '../objects/object-store.ts';
import { type LastRead, lastRead } from '../roots/host-reads.ts';
import { type AreaPath, rootPath } from '../roots/layout.ts';
import type { StorePolicy } from '../roots/policy.ts';
import type { Area, View } from '../roots/view.ts';

/** The last read from each area. */
export type Reads = ReadonlyMap<AreaPath, LastRead>;

/** An area that stays for now. */
export interface HeldArea {
  readonly area: string;
  readonly why: string;
  /** When it may go if nobody reads it until then, ISO 8601; null if time alone does not free it. */
  readonly until: string | null;
  /** It was read within the retention: an image that no name points to is in use. */
  readonly isRead: boolean;
}

/** What a purge does with an area: deletes it, or holds it. */
export interface PurgeStep {
  readonly area: Area;
  readonly held: HeldArea | undefined;
}

/** What a purge at store time `nowMs` does with each area except the active root, in the purge's order. */
export function purgePlan(view: View, reads: Reads, policy: StorePolicy, nowMs: number): PurgeStep[] {
  const steps: PurgeStep[] = [];
  // Roots go oldest first, because the next root proves that everything has moved.
  let older: HeldArea | undefined;
  for (const area of [...view.retired.toReversed(), ...(view.draining ? [view.draining] : [])]) {
    const held = heldBecause(area, view, reads, policy, nowMs) ?? heldWith(area, older, 'after');
    older ??= held;
    steps.push({ area, held });
  }
  // The trash of a root's sweeps goes with the root; trash whose root is gone goes by its own time.
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

/** A root that is held also holds its trash, and all later roots. */
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

/** Why `area` must stay for its own sake, or undefined if it may go. */
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
  // During a rotation it is unknown what is live, so not even a deletion that has begun may continue.
  if (!isRoot && view.draining) return held('a rotation is under way', null);
  // Even if its deletion has begun, what is left of it is kept for its readers.
  const read = heldByRead(area, view, reads, policy, nowMs);
  if (read || area.isDeleting) return read;
  if (isRoot && area.retiredMs === undefined) return held('images still move out of it', null);
  // A killed sweep looks the same as a stalled one. A stalled one may yet delete objects from the root that are needed
  // by then, and whose only copy is here.
  if (!isRoot && area.closedMs === undefined && area.root === view.active.root)
    return held(`its sweep has not ended: goes with ${view.active.path}, after \`gc rotate\``, null);
  const quietMs = isRoot ? area.retiredMs! : (area.closedMs ?? area.openedMs);
  const untilMs = quietMs + policy.settleMs + policy.retentionMs;
  return nowMs >= untilMs ? undefined : held('kept for its retention', untilMs);
}

/** Why a read within the retention, from `area` or what goes with it, holds the area; undefined if there was none. */
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

/** `area` and the trash that goes with it. */
export function withTrash(area: Area, { trash }: View): Area[] {
  if (!area.path.startsWith('roots/')) return [area];
  return [area, ...trash.filter(({ root }) => root === area.root)];
}

/** The last read from each area of `view` except the active root. */
export async function readsOf(objects: ObjectStore, view: View): Promise<Map<AreaPath, LastRead>> {
  const reads = new Map<AreaPath, LastRead>();
  for (const { path } of view.areas) {
    if (path === view.active.path) continue;
    const read = await lastRead(objects, path);
    if (read) reads.set(path, read);
  }
  return reads;
}
