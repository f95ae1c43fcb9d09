/**
 * What a store's garbage collection looks like from outside: each area's state, why it stays and until when, who still
 * reads what was put aside, and what the commands did last. Only reads.
 */

import { countLeases } from '../leases.ts';
import { storeTimeMs } from '../roots/clock-skew.ts';
import type { LastRead } from '../roots/host-reads.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { StorePolicy } from '../roots/policy.ts';
import type { Area, View } from '../roots/view.ts';
import { type JournalEntry, lastEntries } from './journal.ts';
import { type HeldArea, purgePlan, readsOf } from './purge-plan.ts';

const JOURNAL_ENTRIES = 10;

export type AreaState = 'active' | 'draining' | 'retired' | 'trash' | 'deleting';

/** Times are ISO 8601; null: never, or not known. */
export interface AreaStatus {
  readonly area: string;
  readonly state: AreaState;
  readonly openedAt: string | null;
  /** Since when a root is retired, or the sweep of a trash is over. */
  readonly putAsideAt: string | null;
  /** Who last read from it after it was put aside. */
  readonly lastReadAt: string | null;
  readonly lastReadHost: string | null;
  /** Why a purge now would leave it; null if it would delete it. */
  readonly heldBecause: string | null;
  /** When it may go if nobody reads it until then; null: not by time alone. */
  readonly heldUntil: string | null;
  /** The last read was within the store's retention: an image is in use that no name means any more. */
  readonly isRead: boolean;
}

export interface GcStatus {
  readonly store: string;
  readonly policy: StorePolicy;
  readonly areas: readonly AreaStatus[];
  /** Whether anything that was put aside is being read. */
  readonly alarm: boolean;
  /** Leases that count, each of one image on one host; those that were not renewed in time; and what is no lease. */
  readonly leases: { readonly current: number; readonly over: number; readonly strange: number };
  /** Newest first. */
  readonly journal: readonly JournalEntry[];
}

/** Throws UNSUPPORTED for a store that cannot be listed, UNAVAILABLE. */
export async function gcStatus(parts: StoreParts): Promise<GcStatus> {
  const view = await parts.views.newerThan(0);
  const nowMs = await storeTimeMs(parts.objects);
  const reads = await readsOf(parts.objects, view);
  const plan = new Map(purgePlan(view, reads, parts.policy, nowMs).map(({ area, held }) => [area, held]));
  const areas = view.areas.map((area) => {
    const read = reads.get(area.path);
    const isRead = read !== undefined && nowMs < read.atMs + parts.policy.retentionMs;
    return { ...areaStatus(area, view, plan.get(area), read), isRead };
  });
  return {
    store: parts.objects.url,
    policy: parts.policy,
    areas,
    alarm: areas.some(({ isRead }) => isRead),
    leases: await countLeases(parts.objects, parts.policy, nowMs),
    journal: await lastEntries(parts.objects, JOURNAL_ENTRIES),
  };
}

function areaStatus(
  area: Area,
  view: View,
  held: HeldArea | undefined,
  read: LastRead | undefined,
): Omit<AreaStatus, 'isRead'> {
  return {
    area: area.path,
    state: stateOf(area, view),
    openedAt: iso(area.openedMs || undefined),
    putAsideAt: iso(area.retiredMs ?? area.closedMs),
    lastReadAt: iso(read?.atMs),
    lastReadHost: read?.host ?? null,
    heldBecause: area === view.active ? 'active' : (held?.why ?? null),
    heldUntil: held?.until ?? null,
  };
}

function stateOf(area: Area, view: View): AreaState {
  if (area === view.active) return 'active';
  if (area.isDeleting) return 'deleting';
  if (area === view.draining) return 'draining';
  return area.path.startsWith('roots/') ? 'retired' : 'trash';
}

function iso(ms: number | undefined): string | null {
  return ms === undefined ? null : new Date(ms).toISOString();
}
