/**
 * A process's view of a store's areas, from one listing of `state/`: which root is active, which root its images are
 * still moving out of, which roots are retired, and the trash. A view has an age, and callers that must not use an old
 * one ask for a newer. Instead of a lock, this keeps the writers, sweeps and rotations of many machines out of each
 * other's way.
 */
import { codeOf, errorText, LazydiskError } from '../../errors.ts';
import type { ObjectInfo, ObjectStore } from '../objects/object-store.ts';
import type { Clock, Moment } from './clock.ts';
import {
  type AreaPath,
  INDEX_KEY,
  isAreaPath,
  meaningOf,
  rootNumberOf,
  rootPath,
  STATE_PREFIX,
} from './layout.ts';
import type { StorePolicy } from './policy.ts';

/** An area, as its markers describe it; times are the store's own, in milliseconds since 1970. */
export interface Area {
  readonly path: AreaPath;
  /** The root's number; for a trash, the number of the swept root. */
  readonly root: number;
  /** 0 for the first root, which needs no marker. */
  readonly openedMs: number;
  /** For a root: when all its images were in the next one. */
  readonly retiredMs?: number;
  /** For a trash: when its sweep was over. */
  readonly closedMs?: number;
  /** Whether its deletion has begun. */
  readonly isDeleting: boolean;
}

export interface View {
  readonly active: Area;
  /** The previous root, while images are still moving out of it. */
  readonly draining?: Area;
  /** Roots that only drives attached long ago still read; newest first. */
  readonly retired: readonly Area[];
  readonly trash: readonly Area[];
  /** All areas, in lookup order. */
  readonly areas: readonly Area[];
}

interface Dated {
  readonly view: View;
  readonly at: Moment;
}

const INDEX_BYTES_MAX = 1024 * 1024;
const AREAS_MAX = 10_000;
const MARKERS_MAX = 4 * AREAS_MAX;

/** Derives the view from the markers of a store. */
export function viewOf(markers: Iterable<ObjectInfo>): View {
  const opened = new Set<AreaPath>();
  const found = new Map<AreaPath, { -readonly [Field in keyof Area]: Area[Field] }>();
  const areaOf = (path: AreaPath) => {
    let area = found.get(path);
    if (!area) {
      area = { path, root: rootNumberOf(path), openedMs: 0, isDeleting: false };
      found.set(path, area);
    }
    return area;
  };
  for (const { key, modifiedMs } of markers) {
    const meaning = meaningOf(key);
    if (meaning?.kind !== 'marker') continue;
    const area = areaOf(meaning.area);
    const { marker } = meaning;
    if (marker === 'opened') {
      area.openedMs = modifiedMs;
      opened.add(meaning.area);
    }
    if (marker === 'retired') area.retiredMs = modifiedMs;
    else if (marker === 'closed') area.closedMs = modifiedMs;
    else if (marker === 'deleting') area.isDeleting = true;
  }
  // A marker that was written late, after its area was deleted, does not make an area.
  const areas = [...found.values()].filter(({ path, isDeleting }) => isDeleting || opened.has(path));
  const roots = areas.filter(({ path }) => path.startsWith('roots/'));
  // The marker of a new store's root may not be listed yet.
  if (roots.length === 0) roots.push(areaOf(rootPath(1)));
  roots.sort((a, b) => b.root - a.root);
  const trash = areas.filter(({ path }) => path.startsWith('trash/'));
  return arrange(roots, trash);
}

/** `roots`: newest first, at least one. */
function arrange(roots: readonly Area[], trash: readonly Area[]): View {
  const [active, ...before] = roots as [Area, ...Area[]];
  // A root is opened only when the one before its predecessor is retired. So an older root that is not retired was
  // reopened, after it was gone, by a rotation that had stalled.
  const older = before.map((area) =>
    area.root < active.root - 1 && area.retiredMs === undefined
      ? { ...area, retiredMs: Math.max(area.openedMs, active.openedMs) }
      : area,
  );
  const isDraining = ({ root, retiredMs, isDeleting }: Area) =>
    root === active.root - 1 && retiredMs === undefined && !isDeleting;
  const draining = older.find(isDraining);
  const retired = older.filter((area) => area !== draining);
  const areas = [active, ...(draining ? [draining] : []), ...retired, ...trash];
  return { active, ...(draining && { draining }), retired, trash, areas };
}

export class Views {
  readonly #objects: ObjectStore;
  readonly #policy: StorePolicy;
  readonly #clock: Clock;
  #known: Dated | undefined;
  #refreshing: Promise<Dated> | undefined;

  constructor(objects: ObjectStore, policy: StorePolicy, clock: Clock) {
    this.#objects = objects;
    this.#policy = policy;
    this.#clock = clock;
  }

  /** The last view, however old, without asking the store. */
  get known(): View | undefined {
    return this.#known?.view;
  }

  /**
   * For readers: a view at most `viewMs` old, refreshed in the background in time. While the store does not answer, an
   * older one serves: the areas that it names outlast it by far.
   */
  async forReading(): Promise<View> {
    const known = this.#known;
    if (!known) return (await this.#refresh()).view;
    const ageMs = this.#clock.ageMs(known.at);
    if (ageMs <= this.#policy.viewMs / 2) return known.view;
    const refreshed = this.#refresh().catch(() => known);
    return ageMs <= this.#policy.viewMs ? known.view : (await refreshed).view;
  }

  /** A view that was listed after this call, or at most `ageMsMax` before it. Rejects if the store does not answer. */
  async newerThan(ageMsMax: number): Promise<View> {
    if (this.#known && this.#clock.ageMs(this.#known.at) <= ageMsMax) return this.#known.view;
    // A listing in progress began before this call.
    if (this.#refreshing && ageMsMax === 0) await this.#refreshing.catch(() => undefined);
    return (await this.#refresh()).view;
  }

  #refresh(): Promise<Dated> {
    this.#refreshing ??= this.#list().finally(() => {
      this.#refreshing = undefined;
    });
    return this.#refreshing;
  }

  async #list(): Promise<Dated> {
    const at = this.#clock.now();
    const view = this.#objects.isWritable ? await listView(this.#objects) : await readIndex(this.#objects);
    this.#known = { view, at };
    return this.#known;
  }
}

async function listView(objects: ObjectStore): Promise<View> {
  const markers: ObjectInfo[] = [];
  for await (const page of objects.list(STATE_PREFIX)) {
    // Other objects are ignored, however many there are.
    for (const info of page) if (meaningOf(info.key)?.kind === 'marker') markers.push(info);
    if (markers.length > MARKERS_MAX)
      throw new LazydiskError('CORRUPT', `${objects.url}: over ${MARKERS_MAX} markers in ${STATE_PREFIX}`);
  }
  return viewOf(markers);
}

/** Maximum attempts to read and write the index while others write it, or areas change, at the same time. */
const INDEX_TRIES_MAX = 10;

/**
 * Writes the index of the areas, for readers that cannot list, until the index agrees with a listing made after it was
 * read. So a process that listed the areas before another changed them does not have the last word, however late it
 * writes.
 */
export async function writeIndex(objects: ObjectStore): Promise<void> {
  for (let tries = 1; tries <= INDEX_TRIES_MAX; tries++) {
    const found = await objects.get(INDEX_KEY, INDEX_BYTES_MAX);
    const bytes = indexOf(await listView(objects));
    if (found?.bytes.equals(bytes)) return;
    try {
      await objects.put(INDEX_KEY, bytes, { ifVersion: found?.version ?? null });
    } catch (error) {
      if (codeOf(error) !== 'BUSY') throw error;
    }
  }
}

function indexOf({ areas, draining }: View): Buffer {
  const paths = areas.filter(({ isDeleting }) => !isDeleting).map(({ path }) => path);
  const index = { version: 1, areas: paths, draining: draining?.path ?? null };
  return Buffer.from(`${JSON.stringify(index)}\n`);
}

async function readIndex(objects: ObjectStore): Promise<View> {
  const found = await objects.get(INDEX_KEY, INDEX_BYTES_MAX);
  if (!found) return viewOf([]);
  const where = `${objects.url}/${INDEX_KEY}`;
  let index: { version?: unknown; areas?: unknown; draining?: unknown } | null;
  try {
    index = JSON.parse(found.bytes.toString()) as typeof index;
  } catch (cause) {
    throw new LazydiskError('CORRUPT', `${where}: ${errorText(cause)}`, { cause });
  }
  const { version, areas, draining } = index ?? {};
  const isList = Array.isArray(areas) && areas.length <= AREAS_MAX;
  if (version !== 1 || !isList || !areas.every((path) => typeof path === 'string' && isAreaPath(path)))
    throw new LazydiskError('CORRUPT', `${where} is not what an index holds`);
  const all = (areas as AreaPath[]).map((path): Area => {
    const isRetired = path.startsWith('roots/') && path !== draining;
    return {
      path,
      root: rootNumberOf(path),
      openedMs: 0,
      isDeleting: false,
      ...(isRetired && { retiredMs: 0 }),
    };
  });
  const roots = all.filter(({ path }) => path.startsWith('roots/')).sort((a, b) => b.root - a.root);
  if (roots.length === 0) throw new LazydiskError('CORRUPT', `${where} names no root`);
  return arrange(
    roots,
    all.filter(({ path }) => path.startsWith('trash/')),
  );
}
