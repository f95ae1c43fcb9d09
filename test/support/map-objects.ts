/** Objects in a Map, for tests of stores with more objects than a disk can create in time. */
import { LazydiskError } from '../../src/errors.ts';
import { HashedBytes } from '../../src/store/objects/hashed-bytes.ts';
import {
  checkKey,
  type ListOptions,
  type ObjectBytes,
  type ObjectInfo,
  type ObjectStore,
  type PutOptions,
} from '../../src/store/objects/object-store.ts';

export class MapObjects implements ObjectStore {
  readonly url = 'map://test';
  readonly isWritable = true;
  readonly objects = new Map<string, { readonly bytes: Buffer; modifiedMs: number }>();
  /** The number of requests of each kind. */
  readonly asked = { get: 0, head: 0, put: 0, copy: 0, delete: 0, pages: 0 };

  readonly #known = new Map<string, string[]>();
  #knownSize = 0;

  async get(key: string, bytesMax: number): Promise<ObjectBytes | undefined> {
    checkKey(key);
    this.asked.get++;
    const found = this.objects.get(key);
    return found && new HashedBytes(found.bytes.subarray(0, bytesMax + 1));
  }

  async head(key: string): Promise<ObjectInfo | undefined> {
    checkKey(key);
    this.asked.head++;
    const found = this.objects.get(key);
    return found && { key, sizeBytes: found.bytes.length, modifiedMs: found.modifiedMs };
  }

  async put(key: string, bytes: Uint8Array, { ifVersion }: PutOptions = {}): Promise<void> {
    checkKey(key);
    this.asked.put++;
    const version = (await this.get(key, Number.MAX_SAFE_INTEGER - 1))?.version ?? null;
    if (ifVersion !== undefined && ifVersion !== version)
      throw new LazydiskError('BUSY', `${key} has changed`);
    this.#known.clear();
    this.objects.set(key, { bytes: Buffer.from(bytes), modifiedMs: Date.now() });
  }

  async copy(from: string, to: string): Promise<boolean> {
    this.asked.copy++;
    const found = this.objects.get(from);
    this.#known.clear();
    if (found) this.objects.set(to, { ...found, modifiedMs: Date.now() });
    return found !== undefined;
  }

  async delete(keys: readonly string[]): Promise<void> {
    this.asked.delete++;
    for (const key of keys) this.objects.delete(key);
  }

  async *list(
    prefix: string,
    { pageMax = 1000, shallow }: ListOptions = {},
  ): AsyncIterable<readonly ObjectInfo[]> {
    checkKey(prefix, 'prefix');
    let page: ObjectInfo[] = [];
    const folders = new Set<string>();
    for (const key of this.#keysIn(prefix)) {
      const found = this.objects.get(key);
      if (!found) continue;
      const end = shallow ? key.indexOf('/', prefix.length) + 1 : 0;
      if (end > 0) {
        const folder = key.slice(0, end);
        if (folders.has(folder)) continue;
        folders.add(folder);
        page.push({ key: folder, sizeBytes: 0, modifiedMs: 0 });
      } else page.push({ key, sizeBytes: found.bytes.length, modifiedMs: found.modifiedMs });
      if (page.length < pageMax) continue;
      this.asked.pages++;
      yield page;
      page = [];
    }
    this.asked.pages++;
    yield page;
  }

  /**
   * The keys of a top folder are collected once, until their number changes, because folders of chunks are listed one
   * by one.
   */
  *#keysIn(prefix: string): Iterable<string> {
    const top = prefix.slice(0, prefix.indexOf('/') + 1);
    if (this.#knownSize !== this.objects.size) this.#known.clear();
    this.#knownSize = this.objects.size;
    const known = this.#known.get(top) ?? [...this.objects.keys()].filter((key) => key.startsWith(top));
    this.#known.set(top, known);
    for (const key of known) if (key.startsWith(prefix)) yield key;
  }

  async nowMs(): Promise<number> {
    return Date.now();
  }

  async canCompareAndSet(): Promise<boolean> {
    return true;
  }

  async close(): Promise<void> {}
}
