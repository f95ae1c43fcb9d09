/** Wraps any object store so that a test can make something happen, or fail, at a certain request. */
import { LazydiskError } from '../../src/errors.ts';
import type {
  ListOptions,
  ObjectBytes,
  ObjectInfo,
  ObjectOptions,
  ObjectStore,
  PutOptions,
} from '../../src/store/objects/object-store.ts';

/** Called before each request; the keys are those of the request, or the prefix that is listed, or none. May reject. */
export type RequestHook = (
  request: 'get' | 'head' | 'put' | 'copy' | 'delete' | 'list' | 'now',
  keys: readonly string[],
) => Promise<void> | void;

/** For a process that dies: all requests after the first `askedMax` fail. */
export function dyingAfter(askedMax: number): RequestHook {
  let asked = 0;
  return () => {
    if (++asked > askedMax) throw new LazydiskError('UNAVAILABLE', 'the process is dead');
  };
}

export class HookedObjects implements ObjectStore {
  readonly url: string;
  readonly isWritable: boolean;
  readonly #inner: ObjectStore;
  readonly #before: RequestHook;

  constructor(inner: ObjectStore, before: RequestHook = () => {}) {
    this.#inner = inner;
    this.#before = before;
    this.url = inner.url;
    this.isWritable = inner.isWritable;
  }

  async get(key: string, bytesMax: number, options?: ObjectOptions): Promise<ObjectBytes | undefined> {
    await this.#before('get', [key]);
    return this.#inner.get(key, bytesMax, options);
  }

  async head(key: string, options?: ObjectOptions): Promise<ObjectInfo | undefined> {
    await this.#before('head', [key]);
    return this.#inner.head(key, options);
  }

  async put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<void> {
    await this.#before('put', [key]);
    return this.#inner.put(key, bytes, options);
  }

  async copy(from: string, to: string, options?: ObjectOptions): Promise<boolean> {
    await this.#before('copy', [from, to]);
    return this.#inner.copy(from, to, options);
  }

  async delete(keys: readonly string[], options?: ObjectOptions): Promise<void> {
    await this.#before('delete', keys);
    return this.#inner.delete(keys, options);
  }

  async *list(prefix: string, options?: ListOptions): AsyncIterable<readonly ObjectInfo[]> {
    await this.#before('list', [prefix]);
    yield* this.#inner.list(prefix, options);
  }

  async nowMs(options?: ObjectOptions): Promise<number> {
    await this.#before('now', []);
    return this.#inner.nowMs(options);
  }

  canCompareAndSet(): Promise<boolean> {
    return this.#inner.canCompareAndSet();
  }

  close(): Promise<void> {
    return this.#inner.close();
  }
}
