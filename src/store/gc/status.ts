/**
 * Reports the state of a store's garbage collection: each area's state, why it stays and until when, who still reads
 * from trash and retired roots, and what the last commands did. Read-only.
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

/** Times are ISO 8601; null means never or unknown. */
export interface AreaStatus {
  readonly area: string;
  readonly state: AreaState;
  readonly openedAt: string | null;
  /** When the root was retired, or the trash closed. */
  readonly putAsideAt: string | null;
  /** When it was last read after it was retired or swept. */
  readonly lastReadAt: string | null;
  readonly lastReadHost: string | null;
  /** Why a purge would keep it now; null if a purge would delete it. */
  readonly heldBecause: string | null;
  /** When it may go if nobody reads it until then; null if time alone does not free it. */
  readonly heldUntil: string | null;
  /** The last read was within the store's retention: an image that no name points to is in use. */
  readonly isRead: boolean;
}

export interface GcStatus {
  readonly store: string;
  readonly policy: StorePolicy;
  readonly areas: readonly AreaStatus[];
  /** Whether any trash or retired root is being read. */
  readonly alarm: boolean;
  /** Current leases, one for each image on a host; expired leases; and objects that are not valid leases. */
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
