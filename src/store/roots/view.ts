/**
 * What a process knows of a store's areas, made of one listing of `state/`: which root is active, which one its images
 * are still moving out of, what is retired, what was swept. It has an age, and who must not go by an old one asks for a
 * newer: that, and not a lock, is what keeps writers, sweeps and rotations of many machines out of each other's way.
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

/** An area by its markers; times are the store's own, in milliseconds since 1970. */
export interface Area {
  readonly path: AreaPath;
  /** Its number; of a trash, that of the root that was swept. */
  readonly root: number;
  /** 0 for the first root, which needs no marker. */
  readonly openedMs: number;
  /** Of a root: since when all its images are in the next one. */
  readonly retiredMs?: number;
  /** Of a trash: since when its sweep is over. */
  readonly closedMs?: number;
  /** Its deletion has begun. */
  readonly isDeleting: boolean;
}

export interface View {
  readonly active: Area;
  /** The root before the active one, while images are still moving out of it. */
  readonly draining?: Area;
  /** Roots that are not read any more, but by drives attached long ago; newest first. */
  readonly retired: readonly Area[];
  readonly trash: readonly Area[];
  /** All of them in the order in which something is looked for. */
  readonly areas: readonly Area[];
}

interface Dated {
  readonly view: View;
  readonly at: Moment;
}

const INDEX_BYTES_MAX = 1024 * 1024;
const AREAS_MAX = 10_000;
const MARKERS_MAX = 4 * AREAS_MAX;

/** The view that the markers of a store make. */
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
  // A marker that was written late, of an area that was deleted meanwhile, makes none.
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
  // Roots follow one another when the one before is retired. One that is older and is not was opened once more, when it was
  // gone, by a rotation that had been stopped.
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

  /** The last view, however old, without asking. */
  get known(): View | undefined {
    return this.#known?.view;
  }

  /**
   * For readers: a view of at most `viewMs`, renewed in the background in time. While the store does not answer an older
   * one serves: what it names is there still, for much longer than a view may be old.
   */
  async forReading(): Promise<View> {
    const known = this.#known;
    if (!known) return (await this.#refresh()).view;
    const ageMs = this.#clock.ageMs(known.at);
    if (ageMs <= this.#policy.viewMs / 2) return known.view;
    const refreshed = this.#refresh().catch(() => known);
    return ageMs <= this.#policy.viewMs ? known.view : (await refreshed).view;
  }

  /** One that was listed after this call, or `ageMsMax` before it. Rejects when the store does not answer. */
  async newerThan(ageMsMax: number): Promise<View> {
    if (this.#known && this.#clock.ageMs(this.#known.at) <= ageMsMax) return this.#known.view;
    // A listing that is under way began before this call.
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
    // What is no marker counts for nothing, however much of it there is.
    for (const info of page) if (meaningOf(info.key)?.kind === 'marker') markers.push(info);
    if (markers.length > MARKERS_MAX)
      throw new LazydiskError('CORRUPT', `${objects.url}: over ${MARKERS_MAX} markers in ${STATE_PREFIX}`);
  }
  return viewOf(markers);
}

/** Times that the index is looked at and written when others write it, or areas change, at the same moment. */
const INDEX_TRIES_MAX = 10;

/**
 * Writes the areas down for readers who cannot list, until the index is found to say what a listing after that says: so who
 * has listed areas before another has changed them does not have the last word, however late it writes.
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
