/**
 * Retries calls that failed with the store's state unknown (async/patience.ts). Results are not retried, nor are
 * refusals that would only be repeated.
 *
 * A list is retried page by page if the store can fetch single pages; otherwise it starts over, so nothing is lost but
 * entries may repeat.
 *
 * Callers that do their own retries use `withoutRetries`.
 */
import type { Backoff } from '../../async/backoff.ts';
import { PatientRetries, type RetryOptions } from '../../async/patience.ts';
import { codeOf } from '../../errors.ts';
import type {
  GetOptions,
  ListOptions,
  ObjectBytes,
  ObjectInfo,
  ObjectOptions,
  ObjectStore,
  PutOptions,
} from './object-store.ts';
import { PagedList } from './paged-list.ts';

export class RetryObjects implements ObjectStore {
  readonly url: string;
  readonly isWritable: boolean;
  readonly #inner: ObjectStore;
  readonly #retries: PatientRetries;

  constructor(inner: ObjectStore, options: Omit<RetryOptions, 'peer'> = {}) {
    this.#inner = inner;
    this.url = inner.url;
    this.isWritable = inner.isWritable;
    this.#retries = new PatientRetries({ ...options, peer: 'store' });
  }

  get retryForMs(): number | undefined {
    return this.#retries.forMs;
  }

  get withoutRetries(): ObjectStore {
    return this.#inner;
  }

  get credentialExpiry(): number | undefined {
    return this.#inner.credentialExpiry;
  }

  /** Rejects as the last try did, like all calls; the message says how many tries there were. */
  get(key: string, bytesMax: number, options: GetOptions = {}): Promise<ObjectBytes | undefined> {
    return this.#retries.run(options.signal, () => this.#inner.get(key, bytesMax, options));
  }

  head(key: string, options: ObjectOptions = {}): Promise<ObjectInfo | undefined> {
    return this.#retries.run(options.signal, () => this.#inner.head(key, options));
  }

  /**
   * A failed try may have succeeded in the store, and the next try then conflicts with the object that the first one
   * wrote. If the object has these bytes, the write is done. A caller of `ifVersion` must make each content unique, or
   * it cannot tell its own write from another's.
   */
  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<void> {
    let tries = 0;
    try {
      await this.#retries.run(options.signal, () => {
        tries++;
        return this.#inner.put(key, bytes, options);
      });
    } catch (error) {
      if (codeOf(error) !== 'BUSY' || tries === 1 || options.ifVersion === undefined) throw error;
      if (!(await this.get(key, bytes.length, options))?.bytes.equals(bytes)) throw error;
    }
  }

  copy(from: string, to: string, options: ObjectOptions = {}): Promise<boolean> {
    return this.#retries.run(options.signal, () => this.#inner.copy(from, to, options));
  }

  delete(keys: readonly string[], options: ObjectOptions = {}): Promise<void> {
    return this.#retries.run(options.signal, () => this.#inner.delete(keys, options));
  }

  list(prefix: string, options: ListOptions = {}): AsyncIterable<readonly ObjectInfo[]> {
    const pages = this.#inner.list(prefix, options);
    if (pages instanceof PagedList)
      return new PagedList((at) => this.#retries.run(options.signal, () => pages.page(at)));
    return this.#startingOver(prefix, options, pages);
  }

  nowMs(options: ObjectOptions = {}): Promise<number> {
    return this.#retries.run(options.signal, () => this.#inner.nowMs(options));
  }

  canCompareAndSet(): Promise<boolean> {
    return this.#retries.run(undefined, () => this.#inner.canCompareAndSet());
  }

  close(): Promise<void> {
    return this.#inner.close();
  }

  async *#startingOver(
    prefix: string,
    options: ListOptions,
    first: AsyncIterable<readonly ObjectInfo[]>,
  ): AsyncGenerator<readonly ObjectInfo[]> {
    let pages = first;
    let backoff: Backoff | undefined;
    for (;;) {
      try {
        return yield* pages;
      } catch (error) {
        backoff ??= this.#retries.backoff(options.signal);
        await this.#retries.failed(error, backoff);
        pages = this.#inner.list(prefix, options);
      }
    }
  }
}
