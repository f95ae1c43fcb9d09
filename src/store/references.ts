/**
 * Names in a root: what was written there as such, and what was brought over from the root before. They are objects
 * apart, so that bringing over can never overwrite what somebody wrote meanwhile. A name that is removed leaves a
 * tombstone, which hides what the root before still has of it.
 */
import { randomBytes } from 'node:crypto';
import { LazydiskError } from '../errors.ts';
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
import type { ObjectOptions, ObjectStore } from './objects/object-store.ts';
import { pooled } from './pooled.ts';
import { isDigest } from './reference-name.ts';
import type { ImageDigest, Reference } from './store.ts';
import type { View } from './view.ts';

const REFERENCE_BYTES_MAX = 64 * 1024;
const READS_MAX = 16;

/** What a name's object says; digest null: it was removed. */
export interface NamedDigest {
  readonly name: string;
  readonly digest: ImageDigest | null;
  readonly updated: string;
}

/** A name as a root has it, with the version of its own object there (null: none) for compare-and-set. */
export interface FoundName {
  readonly current: NamedDigest | undefined;
  readonly ownVersion: string | null;
}

/** A record of the history with the time that the store gave it. */
export interface DatedRecord extends HistoryRecord {
  readonly key: string;
  readonly modifiedMs: number;
}

export class References {
  readonly #objects: ObjectStore;

  constructor(objects: ObjectStore) {
    this.#objects = objects;
  }

  /** What `fullName` means; `ownVersion` is that of the active root. Throws CORRUPT, UNAVAILABLE. */
  async find(view: View, fullName: string): Promise<FoundName> {
    const inActive = await this.#findIn(view.active.path, fullName);
    if (inActive.current || !view.draining) return inActive;
    const before = await this.#findIn(view.draining.path, fullName);
    return { current: before.current, ownVersion: null };
  }

  /** What all names mean, sorted; removed ones are not there. */
  async list(view: View): Promise<Reference[]> {
    const found = new Map(await this.#listIn(view.active.path));
    if (view.draining)
      for (const [name, reference] of await this.#listIn(view.draining.path))
        if (!found.has(name)) found.set(name, reference);
    const named = [...found.values()].filter(
      (reference): reference is Reference => reference.digest !== null,
    );
    return named.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Names of one root alone, by name, tombstones too. */
  async listIn(area: AreaPath): Promise<ReadonlyMap<string, NamedDigest>> {
    return new Map(await this.#listIn(area));
  }

  /** Writes down what a name is about to mean, then the name itself. Rejects with BUSY as `put` does. */
  async put(
    area: AreaPath,
    fullName: string,
    digest: ImageDigest | null,
    options: ObjectOptions & { readonly ifVersion?: string | null },
  ): Promise<void> {
    const now = Date.now();
    const record = historyKey(fullName, now, randomBytes(4).toString('hex'), digest);
    await this.#objects.put(record, Buffer.alloc(0), options.signal && { signal: options.signal });
    await this.#put(
      area,
      'references',
      { name: fullName, digest, updated: new Date(now).toISOString() },
      options,
    );
  }

  /** Brings a name over into `area` as it was. */
  async inherit(area: AreaPath, reference: NamedDigest, options: ObjectOptions): Promise<void> {
    await this.#put(area, 'inherited', reference, options);
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

  async #listIn(area: AreaPath): Promise<[string, NamedDigest][]> {
    const found = new Map<string, NamedDigest>();
    for (const kind of ['inherited', 'references'] as const) {
      const names: string[] = [];
      for await (const page of this.#objects.list(referencesPrefix(area, kind))) {
        for (const { key } of page) {
          const meaning = meaningOf(key);
          if (meaning?.kind === 'reference') names.push(meaning.name);
        }
      }
      await pooled(READS_MAX, names, async (name) => {
        // One that was there a moment ago and is gone now went with its root.
        const got = await this.#get(area, kind, name);
        if (got) found.set(name, got.reference);
      });
    }
    return [...found];
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
    options: ObjectOptions & { readonly ifVersion?: string | null },
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
  const { version, name, digest, updated } = fields ?? {};
  const isDigestOrNull = digest === null || (typeof digest === 'string' && isDigest(digest));
  if (version !== 1 || name !== fullName || !isDigestOrNull || typeof updated !== 'string')
    throw new LazydiskError('CORRUPT', `broken reference ${where}: not what a reference holds`);
  return { name, digest, updated };
}
