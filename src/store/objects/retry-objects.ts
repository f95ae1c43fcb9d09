/**
 * Asks a store again when it could not tell: pauses that double and are jittered, for a thousand workers must not come
 * back in step. An answer is not asked again, nor is a refusal that would only be repeated.
 *
 * A list is retried page by page where the store's pages can be asked for alone; else it starts over, so nothing is
 * lost and entries may come twice.
 *
 * Work that takes long has patience: its calls are tried for minutes, so that a server's restart does not end it. Who asks
 * for a number of tries gets that and no more.
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
  readonly #pauseMs: number;
  readonly #patience: Patience | undefined;
  #outageSinceMs: number | undefined;

  constructor(inner: ObjectStore, { tries = 5, pauseMs = 100, patience }: RetryOptions = {}) {
    this.#inner = inner;
    this.url = inner.url;
    this.isWritable = inner.isWritable;
    this.#tries = tries;
    this.#pauseMs = pauseMs;
    this.#patience = patience;
  }

  get retryForMs(): number | undefined {
    return this.#patience?.forMs;
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
    const failures = new Failures();
    for (;;) {
      try {
        return yield* pages;
      } catch (error) {
        await this.#pauseAfter(error, failures, options);
        pages = this.#inner.list(prefix, options);
      }
    }
  }

  async #retrying<T>(options: ObjectOptions, attempt: () => Promise<T>): Promise<T> {
    const failures = new Failures();
    for (;;) {
      try {
        const result = await attempt();
        this.#answered();
        return result;
      } catch (error) {
        await this.#pauseAfter(error, failures, options);
      }
    }
  }

  /** Before the next try; throws if there is to be none. */
  async #pauseAfter(error: unknown, failures: Failures, { tries, signal }: ObjectOptions): Promise<void> {
    const code = error instanceof LazydiskError ? error.code : 'UNAVAILABLE';
    const isWorthIt = WORTH_RETRYING.has(code) && !(error instanceof RefusedError);
    if (!isWorthIt) this.#answered();
    const { count: tried, ageMs } = failures.add();
    const isPatient = tries === undefined && ageMs < (this.#patience?.forMs ?? 0);
    if (!isWorthIt || (tried >= (tries ?? this.#tries) && !isPatient))
      throw tried === 1 ? error : afterTries(error, code, tried);
    if (tries === undefined) this.#failed(error);
    const pauseMs = Math.min(this.#pauseMs * 2 ** (tried - 1), PAUSE_MS_MAX) * (0.5 + Math.random() / 2);
    const signals = [signal, this.#patience?.signal].filter((one) => one !== undefined);
    await sleep(pauseMs, undefined, { signal: AbortSignal.any(signals) }).catch((cause) => {
      throw new LazydiskError('ABORTED', `${errorText(error)} (cancelled after ${tried} tries)`, { cause });
    });
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

/** Those of one call. */
class Failures {
  #count = 0;
  #firstMs = 0;

  /** One more: how many that makes, and how long ago the first was. */
  add(): { count: number; ageMs: number } {
    const nowMs = performance.now();
    if (this.#count++ === 0) this.#firstMs = nowMs;
    return { count: this.#count, ageMs: nowMs - this.#firstMs };
  }
}

function afterTries(error: unknown, code: ErrorCode, tries: number): LazydiskError {
  const text = `${errorText(error)} (tried ${tries} times)`;
  return error instanceof RefusedError
    ? new RefusedError(text, { cause: error })
    : new LazydiskError(code, text, { cause: error });
}
