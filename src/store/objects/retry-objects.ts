/**
 * Asks a store again when it could not tell (async/backoff.ts). An answer is not asked again, nor is a refusal that would
 * only be repeated.
 *
 * A list is retried page by page where the store's pages can be asked for alone; else it starts over, so nothing is
 * lost and entries may come twice.
 *
 * Work that takes long has patience: its calls are tried for minutes, so that a server's restart does not end it. Whoever
 * asks again themselves reads `withoutRetries`.
 */
import { Backoff, type Pauses } from '../../async/backoff.ts';
import { codeOf, errorText, isRetryable } from '../../errors.ts';
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

const PAUSES: Pauses = { firstMs: 100, longestMs: 3_000 };

export interface RetryOptions {
  /** Tries together, the first one included. Default 5. */
  readonly tries?: number;
  /** Default from 100 ms to 3 s. */
  readonly pauses?: Pauses;
  /** Default none: `tries` and no more. */
  readonly patience?: Patience | undefined;
}

export interface Patience {
  /** How long a call is tried, in milliseconds from its first failure; `tries` at least. */
  readonly forMs: number;
  /** Ends all waits; their calls reject with ABORTED. */
  readonly signal?: AbortSignal;
  /** Told of each failure while no call succeeds, and with undefined when one does. */
  onOutage?(outage: Outage | undefined): void;
}

/** A time in which every call to a store has failed; on the clock of performance.now(). */
export interface Outage {
  /** When the first call failed. */
  readonly sinceMs: number;
  /** When calls that failed first then are given up. */
  readonly untilMs: number;
  /** What the last one failed with. */
  readonly reason: string;
}

export class RetryObjects implements ObjectStore {
  readonly url: string;
  readonly isWritable: boolean;
  readonly #inner: ObjectStore;
  readonly #tries: number;
  readonly #pauses: Pauses;
  readonly #patience: Patience | undefined;
  #outageSinceMs: number | undefined;

  constructor(inner: ObjectStore, { tries = 5, pauses = PAUSES, patience }: RetryOptions = {}) {
    this.#inner = inner;
    this.url = inner.url;
    this.isWritable = inner.isWritable;
    this.#tries = tries;
    this.#pauses = pauses;
    this.#patience = patience;
  }

  get retryForMs(): number | undefined {
    return this.#patience?.forMs;
  }

  get withoutRetries(): ObjectStore {
    return this.#inner;
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
      if (codeOf(error) !== 'BUSY' || tries === 1 || options.ifVersion === undefined) throw error;
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

  nowMs(options: ObjectOptions = {}): Promise<number> {
    return this.#retrying(options, () => this.#inner.nowMs(options));
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
    let backoff: Backoff | undefined;
    for (;;) {
      try {
        return yield* pages;
      } catch (error) {
        backoff ??= this.#backoff(options);
        await this.#pauseAfter(error, backoff);
        pages = this.#inner.list(prefix, options);
      }
    }
  }

  async #retrying<T>(options: ObjectOptions, attempt: () => Promise<T>): Promise<T> {
    let backoff: Backoff | undefined;
    for (;;) {
      try {
        const result = await attempt();
        this.#answered();
        return result;
      } catch (error) {
        backoff ??= this.#backoff(options);
        await this.#pauseAfter(error, backoff);
      }
    }
  }

  /** For the failures of one call. */
  #backoff({ signal }: ObjectOptions): Backoff {
    const signals = [signal, this.#patience?.signal].filter((one) => one !== undefined);
    return new Backoff({
      tries: this.#tries,
      pauses: this.#pauses,
      patienceMs: this.#patience?.forMs,
      signal: AbortSignal.any(signals),
    });
  }

  /** Before the next try; throws if there is to be none. */
  #pauseAfter(error: unknown, backoff: Backoff): Promise<void> {
    if (!isRetryable(error)) this.#answered();
    return backoff.failed(error, () => this.#failed(error));
  }

  #failed(error: unknown): void {
    if (!this.#patience) return;
    this.#outageSinceMs ??= performance.now();
    const sinceMs = this.#outageSinceMs;
    const untilMs = sinceMs + this.#patience.forMs;
    this.#patience.onOutage?.({ sinceMs, untilMs, reason: errorText(error) });
  }

  #answered(): void {
    if (this.#outageSinceMs === undefined) return;
    this.#outageSinceMs = undefined;
    this.#patience?.onOutage?.(undefined);
  }
}
