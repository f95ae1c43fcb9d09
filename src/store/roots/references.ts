/**
 * Names in a root: those written there, and those inherited from the previous root. They are separate objects, so that
 * a rotation can never overwrite a name that was written meanwhile. Removing a name leaves a tombstone, which hides the
 * name in the previous root.
 */
import { randomBytes } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { pooled } from '../../async/pooled.ts';
import { codeOf, LazydiskError } from '../../errors.ts';
import { type ImageDigest, isDigest } from '../../format/image-digest.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import type { Reference } from '../store.ts';
import {
  type AreaPath,
  HISTORY_PREFIX,
  type HistoryRecord,
  historyKey,
  historyPrefix,
  meaningOf,
  parseHistoryKey,
  type ReferenceKind,
  referenceKey,
  referencesPrefix,
} from './layout.ts';
import type { View } from './view.ts';

const REFERENCE_BYTES_MAX = 64 * 1024;
const READS_MAX = 16;

/** The content of a name's object; digest null: the name was removed. */
export interface NamedDigest {
  readonly name: string;
  readonly digest: ImageDigest | null;
  readonly updated: string;
  /** The store's time when its writer began, ISO 8601, which shows how late the name was written. */
  readonly begun: string;
}

/** A name as stored in a root. */
export interface ListedName extends NamedDigest {
  /** When it was written there, by the store's clock, in milliseconds since 1970. */
  readonly modifiedMs: number;
}

export interface PutNameOptions {
  readonly begunMs: number;
  readonly ifVersion?: string | null;
}

/** A name in a root, with the version of its own object there (null: none) for compare-and-set. */
export interface FoundName {
  readonly current: NamedDigest | undefined;
  readonly ownVersion: string | null;
}

/** A history record, with the time that the store stamped on it. */
export interface DatedRecord extends HistoryRecord {
  readonly key: string;
  readonly modifiedMs: number;
}

export class References {
  readonly #objects: ObjectStore;

  constructor(objects: ObjectStore) {
    this.#objects = objects;
  }

  /** Finds what `fullName` points to; `ownVersion` is that in the active root. Throws CORRUPT, UNAVAILABLE. */
  async find(view: View, fullName: string): Promise<FoundName> {
    const inActive = await this.#findIn(view.active.path, fullName);
    if (inActive.current || !view.draining) return inActive;
    const before = await this.#findIn(view.draining.path, fullName);
    return { current: before.current, ownVersion: null };
  }

  /** All names and what they point to, sorted by name, without removed ones. */
  async list(view: View): Promise<Reference[]> {
    const found = await this.listIn(view.active.path);
    if (view.draining)
      for (const [name, reference] of await this.listIn(view.draining.path))
        if (!found.has(name)) found.set(name, reference);
    const named = [...found.values()].flatMap(({ name, digest, updated }) =>
      digest === null ? [] : [{ name, digest, updated }],
    );
    return named.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** The names of one root alone, tombstones included, by name. */
  async listIn(area: AreaPath): Promise<Map<string, ListedName>> {
    const found = new Map<string, ListedName>();
    for (const kind of ['inherited', 'references'] as const) {
      const names = new Map<string, number>();
      for await (const page of this.#objects.list(referencesPrefix(area, kind))) {
        for (const { key, modifiedMs } of page) {
          const meaning = meaningOf(key);
          if (meaning?.kind === 'reference') names.set(meaning.name, modifiedMs);
        }
      }
      await pooled(READS_MAX, names, async ([name, modifiedMs]) => {
        // A name that was listed and is gone now went with its root.
        const got = await this.#get(area, kind, name);
        if (got) found.set(name, { ...got.reference, modifiedMs });
      });
    }
    return found;
  }

  /**
   * Writes a history record, then the name itself, which it returns. Rejects with BUSY as an object store's `put` does.
   */
  async put(
    area: AreaPath,
    fullName: string,
    digest: ImageDigest | null,
    { begunMs, ...options }: PutNameOptions,
  ): Promise<NamedDigest> {
    const now = Date.now();
    const record = historyKey(fullName, now, randomBytes(4).toString('hex'), digest);
    await this.#objects.put(record, Buffer.alloc(0));
    const [updated, begun] = [new Date(now).toISOString(), new Date(begunMs).toISOString()];
    const reference: NamedDigest = { name: fullName, digest, updated, begun };
    await this.#put(area, 'references', reference, options);
    return reference;
  }

  /**
   * Restores what a name pointed to before `put` returned `written`. Needs compare-and-set. False if others have set
   * the name since; then it stays.
   */
  async takeBack(area: AreaPath, written: NamedDigest, before: ImageDigest | null): Promise<boolean> {
    const { name, begun } = written;
    const found = await this.#get(area, 'references', name);
    if (!found || !isDeepStrictEqual(found.reference, written)) return false;
    try {
      await this.put(area, name, before, { begunMs: Date.parse(begun), ifVersion: found.version });
      return true;
    } catch (error) {
      if (codeOf(error) === 'BUSY') return false;
      throw error;
    }
  }

  /**
   * Whether `fullName` was written to `area` more than `buildMs` after its writer began. A writer that stalled for so
   * long may have named an image that was deleted meanwhile, and died before it noticed.
   */
  async isLate(area: AreaPath, fullName: string, buildMs: number): Promise<boolean> {
    const found = await this.#get(area, 'references', fullName);
    const info = found && (await this.#objects.head(referenceKey(area, 'references', fullName)));
    return info !== undefined && info.modifiedMs - Date.parse(found!.reference.begun) > buildMs;
  }

  /** Copies a name into `area` as inherited, unless another process has done so. */
  async inherit(area: AreaPath, reference: NamedDigest): Promise<void> {
    const { name, digest, updated, begun } = reference;
    try {
      await this.#put(area, 'inherited', { name, digest, updated, begun }, { ifVersion: null });
    } catch (error) {
      if (codeOf(error) !== 'BUSY') throw error;
    }
  }

  /** All records, or those of one name, oldest first by the writers' clocks. */
  async history(fullName?: string): Promise<DatedRecord[]> {
    const records: DatedRecord[] = [];
    const prefix = fullName === undefined ? HISTORY_PREFIX : historyPrefix(fullName);
    for await (const page of this.#objects.list(prefix)) {
      for (const { key, modifiedMs } of page) {
        const record = parseHistoryKey(key);
        if (record) records.push({ ...record, key, modifiedMs });
      }
    }
    return records.sort((a, b) => a.timeMs - b.timeMs);
  }

  async #findIn(area: AreaPath, fullName: string): Promise<FoundName> {
    const [own, inherited] = await Promise.all([
      this.#get(area, 'references', fullName),
      this.#get(area, 'inherited', fullName),
    ]);
    return { current: own?.reference ?? inherited?.reference, ownVersion: own?.version ?? null };
  }

  async #get(
    area: AreaPath,
    kind: ReferenceKind,
    fullName: string,
  ): Promise<{ reference: NamedDigest; version: string } | undefined> {
    const key = referenceKey(area, kind, fullName);
    const found = await this.#objects.get(key, REFERENCE_BYTES_MAX);
    return (
      found && {
        reference: parseReference(`${this.#objects.url}/${key}`, fullName, found.bytes),
        version: found.version,
      }
    );
  }

  async #put(
    area: AreaPath,
    kind: ReferenceKind,
    reference: NamedDigest,
    options: { readonly ifVersion?: string | null },
  ): Promise<void> {
    const text = `${JSON.stringify({ version: 1, ...reference })}\n`;
    await this.#objects.put(referenceKey(area, kind, reference.name), Buffer.from(text), options);
  }
}

function parseReference(where: string, fullName: string, bytes: Buffer): NamedDigest {
  let fields: Partial<NamedDigest & { version: number }> | null;
  try {
    fields = JSON.parse(bytes.toString()) as typeof fields;
  } catch (cause) {
    throw new LazydiskError('CORRUPT', `broken reference ${where}: not JSON`, { cause });
  }
  const { version, name, digest, updated, begun } = fields ?? {};
  const isDigestOrNull = digest === null || (typeof digest === 'string' && isDigest(digest));
  const areTimes =
    typeof updated === 'string' && typeof begun === 'string' && !Number.isNaN(Date.parse(begun));
  if (version !== 1 || name !== fullName || !isDigestOrNull || !areTimes)
    throw new LazydiskError('CORRUPT', `broken reference ${where}: not what a reference holds`);
  return { name, digest, updated, begun };
}
