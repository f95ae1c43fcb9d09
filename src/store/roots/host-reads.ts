/**
 * Records which hosts read trash and retired roots: one empty object for each area and host, whose time is that of the
 * last read. They are kept apart from the areas' markers, so that the listing that every process depends on stays
 * small, however many hosts there are, and whatever else their credentials write there.
 */
import { hostname } from 'node:os';
import type { ObjectStore } from '../objects/object-store.ts';
import { type AreaPath, meaningOf, readKey, readsPrefix } from './layout.ts';

export interface LastRead {
  /** By the store's clock, in milliseconds since 1970. */
  readonly atMs: number;
  readonly host: string;
}

/** This machine's name, made valid as part of a key. */
export function hostName(): string {
  const name = hostname().replace(/[^A-Za-z0-9._-]/g, '_');
  return name.replace(/^\./, '_').slice(0, 100) || 'unknown';
}

/** Records that this host has read from `area`. Rejects as `put` does. */
export async function recordRead(objects: ObjectStore, area: AreaPath): Promise<void> {
  await objects.put(readKey(area, hostName()), Buffer.alloc(0));
}

/**
 * The last read from `area`, or any read since `enoughMs` for a caller that needs to know no more: with a hundred
 * thousand hosts that takes one page instead of a hundred. Throws UNAVAILABLE, ABORTED.
 */
export async function lastRead(
  objects: ObjectStore,
  area: AreaPath,
  enoughMs = Number.POSITIVE_INFINITY,
): Promise<LastRead | undefined> {
  let last: LastRead | undefined;
  for await (const page of objects.list(readsPrefix(area))) {
    for (const { key, modifiedMs } of page) {
      const meaning = meaningOf(key);
      if (meaning?.kind === 'read' && modifiedMs > (last?.atMs ?? 0))
        last = { atMs: modifiedMs, host: meaning.host };
    }
    if (last && last.atMs >= enoughMs) return last;
  }
  return last;
}
