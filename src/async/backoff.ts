/**
 * Retries for calls that may succeed later: pauses that double up to a longest one, with jitter, because a thousand
 * workers must not come back in step. An answer is not retried, and neither is a refusal that would only repeat.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { errorText, isRetryable, LazydiskError, withMessage } from '../errors.ts';

/** The first pause, before it doubles, and the longest. */
export interface Pauses {
  readonly firstMs: number;
  readonly longestMs: number;
}

/** The pause after this many failures, in milliseconds. Jitter shortens it, by half at most. */
export function pauseAfterMs(failures: number, { firstMs, longestMs }: Pauses): number {
  return Math.min(firstMs * 2 ** (failures - 1), longestMs);
}

/** The sum of the pauses between this many tries, in milliseconds, at most. */
export function pausesTotalMs(tries: number, pauses: Pauses): number {
  let totalMs = 0;
  for (let failures = 1; failures < tries; failures++) totalMs += pauseAfterMs(failures, pauses);
  return totalMs;
}

export interface BackoffOptions {
  readonly pauses: Pauses;
  /** Tries in total, including the first. */
  readonly tries: number;
  /** For this long after the first failure, more tries than that are made. Default none. */
  readonly patienceMs?: number | undefined;
  /** No pause goes beyond it. On the clock of performance.now(); read after each failure. Default never. */
  readonly deadline?: () => number;
  /** Ends the wait. */
  readonly signal?: AbortSignal | undefined;
}

/** The failures of one call. */
export class Backoff {
  readonly #options: BackoffOptions;
  #failures = 0;
  #firstMs = 0;

  constructor(options: BackoffOptions) {
    this.#options = options;
  }

  /**
   * Resolves when it is time for the next try; calls `onPause` before the wait. If there is no further try, throws
   * `error` with the number of tries; throws ABORTED after `signal`.
   */
  async failed(error: unknown, onPause?: () => void): Promise<void> {
    const { pauses, tries, patienceMs = 0, deadline, signal } = this.#options;
    const nowMs = performance.now();
    if (this.#failures++ === 0) this.#firstMs = nowMs;
    if (!isRetryable(error)) throw this.#final(error);
    if (signal?.aborted) throw this.#aborted(error);
    const isPatient = nowMs - this.#firstMs < patienceMs;
    if (this.#failures >= tries && !isPatient) throw this.#final(error);
    const askedMs = (error instanceof LazydiskError && error.retryAfterMs) || 0;
    // If the server asks for a longer wait than we would grant, give up at once.
    if (askedMs > Math.max(pauses.longestMs, this.#firstMs + patienceMs - nowMs)) throw this.#final(error);
    const jitteredMs = pauseAfterMs(this.#failures, pauses) * (0.5 + Math.random() / 2);
    const pauseMs = Math.max(jitteredMs, askedMs);
    if (deadline !== undefined && nowMs + pauseMs >= deadline()) throw this.#final(error);
    onPause?.();
    await sleep(pauseMs, undefined, signal && { signal }).catch(() => {
      throw this.#aborted(error);
    });
  }

  #final(error: unknown): unknown {
    if (this.#failures === 1) return error;
    return withMessage(error, `${errorText(error)} (tried ${this.#failures} times)`, 'UNAVAILABLE');
  }

  #aborted(error: unknown): LazydiskError {
    const text = `${errorText(error)} (cancelled after ${this.#failures} tries)`;
    return new LazydiskError('ABORTED', text, { cause: error });
  }
}

/**
 * The result of `attempt`, which is retried as `options` allow while its error is retryable. Rejects as
 * `Backoff.failed`.
 */
export async function retrying<T>(options: BackoffOptions, attempt: () => Promise<T>): Promise<T> {
  let backoff: Backoff | undefined;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      backoff ??= new Backoff(options);
      await backoff.failed(error);
    }
  }
}
