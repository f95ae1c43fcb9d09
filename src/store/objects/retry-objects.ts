/**
 * Asks a store again when it could not tell: pauses that double and are jittered, for a thousand workers must not come
 * back in step. An answer is not asked again, nor is a refusal that would only be repeated.
 *
 * A list is retried page by page where the store's pages can be asked for alone; else it starts over, so nothing is
 * lost and entries may come twice.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type ErrorCode, errorText, LazydiskError } from '../../errors.ts';
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
import { RefusedError } from './refused-error.ts';

/** What may be different the next time. Everything that is not a LazydiskError counts as UNAVAILABLE. */
const WORTH_RETRYING: ReadonlySet<ErrorCode> = new Set(['UNAVAILABLE', 'TIMEOUT', 'OVERLOAD']);

const PAUSE_MS_MAX = 3_000;

export interface RetryOptions {
  /** Tries together, the first one included. Default 5. */
  readonly tries?: number;
  /** The first pause, before jitter; each next one is twice as long, up to 3 s. Default 100. */
  readonly pauseMs?: number;
}

export class RetryObjects implements ObjectStore {
  readonly url: string;
  readonly isWritable: boolean;
  readonly #inner: ObjectStore;
  readonly #tries: number;
  readonly #pauseMs: number;

  constructor(inner: ObjectStore, { tries = 5, pauseMs = 100 }: RetryOptions = {}) {
    this.#inner = inner;
    this.url = inner.url;
    this.isWritable = inner.isWritable;
    this.#tries = tries;
    this.#pauseMs = pauseMs;
  }

  get credentialExpiry(): number | undefined {
    return this.#inner.credentialExpiry;
  }

  /** Rejects as the last try did, as all calls do; the message says how many there were. */
  get(key: string, bytesMax: number, options: GetOptions = {}): Promise<ObjectBytes | undefined> {
    return this.#retrying(options, () => this.#inner.get(key, bytesMax, options));
  }

  head(key: string, options: ObjectOptions = {}): Promise<ObjectInfo | undefined> {
    return this.#retrying(options, () => this.#inner.head(key, options));
  }

  /**
   * A try that failed may have been done all the same, and the next one then finds what it wrote itself: if that lies
   * there, the write is done. Who writes over versions makes each content unlike any other, or cannot tell either.
   */
  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<void> {
    let tries = 0;
    try {
      await this.#retrying(options, () => {
        tries++;
        return this.#inner.put(key, bytes, options);
      });
    } catch (error) {
      const isBusy = error instanceof LazydiskError && error.code === 'BUSY';
      if (!isBusy || tries === 1 || options.ifVersion === undefined) throw error;
      if (!(await this.get(key, bytes.length, options))?.bytes.equals(bytes)) throw error;
    }
  }

  copy(from: string, to: string, options: ObjectOptions = {}): Promise<boolean> {
    return this.#retrying(options, () => this.#inner.copy(from, to, options));
  }

  delete(keys: readonly string[], options: ObjectOptions = {}): Promise<void> {
    return this.#retrying(options, () => this.#inner.delete(keys, options));
  }

  list(prefix: string, options: ListOptions = {}): AsyncIterable<readonly ObjectInfo[]> {
    const pages = this.#inner.list(prefix, options);
    if (pages instanceof PagedList)
      return new PagedList((at) => this.#retrying(options, () => pages.page(at)));
    return this.#startingOver(prefix, options, pages);
  }

  canCompareAndSet(): Promise<boolean> {
    return this.#retrying({}, () => this.#inner.canCompareAndSet());
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
    for (let tried = 1; ; tried++) {
      try {
        return yield* pages;
      } catch (error) {
        await this.#pauseAfter(error, tried, options);
        pages = this.#inner.list(prefix, options);
      }
    }
  }

  async #retrying<T>(options: ObjectOptions, attempt: () => Promise<T>): Promise<T> {
    for (let tried = 1; ; tried++) {
      try {
        return await attempt();
      } catch (error) {
        await this.#pauseAfter(error, tried, options);
      }
    }
  }

  /** Before the next try; throws if there is to be none. */
  async #pauseAfter(
    error: unknown,
    tried: number,
    { tries = this.#tries, signal }: ObjectOptions,
  ): Promise<void> {
    const code = error instanceof LazydiskError ? error.code : 'UNAVAILABLE';
    if (tried >= tries || !WORTH_RETRYING.has(code) || error instanceof RefusedError)
      throw tried === 1 ? error : afterTries(error, code, tried);
    const pauseMs = Math.min(this.#pauseMs * 2 ** (tried - 1), PAUSE_MS_MAX) * (0.5 + Math.random() / 2);
    await sleep(pauseMs, undefined, signal && { signal }).catch((cause) => {
      throw new LazydiskError('ABORTED', `${errorText(error)} (cancelled after ${tried} tries)`, { cause });
    });
  }
}

function afterTries(error: unknown, code: ErrorCode, tries: number): LazydiskError {
  const text = `${errorText(error)} (tried ${tries} times)`;
  return error instanceof RefusedError
    ? new RefusedError(text, { cause: error })
    : new LazydiskError(code, text, { cause: error });
}
