/** Any object store for a process that dies at a certain request: that one and all after it fail. */
import { LazydiskError } from '../../src/errors.ts';
import type {
  ListOptions,
  ObjectBytes,
  ObjectInfo,
  ObjectOptions,
  ObjectStore,
  PutOptions,
} from '../../src/store/objects/object-store.ts';

export class DyingObjects implements ObjectStore {
  readonly url: string;
  readonly isWritable: boolean;
  /** Requests so far. */
  asked = 0;
  readonly #inner: ObjectStore;
  readonly #askedMax: number;

  constructor(inner: ObjectStore, askedMax: number) {
    this.#inner = inner;
    this.#askedMax = askedMax;
    this.url = inner.url;
    this.isWritable = inner.isWritable;
  }

  async get(key: string, bytesMax: number, options?: ObjectOptions): Promise<ObjectBytes | undefined> {
    this.#ask();
    return this.#inner.get(key, bytesMax, options);
  }

  async head(key: string, options?: ObjectOptions): Promise<ObjectInfo | undefined> {
    this.#ask();
    return this.#inner.head(key, options);
  }

  async put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<void> {
    this.#ask();
    return this.#inner.put(key, bytes, options);
  }

  async copy(from: string, to: string, options?: ObjectOptions): Promise<boolean> {
    this.#ask();
    return this.#inner.copy(from, to, options);
  }

  async delete(keys: readonly string[], options?: ObjectOptions): Promise<void> {
    this.#ask();
    return this.#inner.delete(keys, options);
  }

  async *list(prefix: string, options?: ListOptions): AsyncIterable<readonly ObjectInfo[]> {
    this.#ask();
    yield* this.#inner.list(prefix, options);
  }

  async nowMs(options?: ObjectOptions): Promise<number> {
    this.#ask();
    return this.#inner.nowMs(options);
  }

  canCompareAndSet(): Promise<boolean> {
    return this.#inner.canCompareAndSet();
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  #ask(): void {
    if (++this.asked > this.#askedMax) throw new LazydiskError('UNAVAILABLE', 'the process is dead');
  }
}
