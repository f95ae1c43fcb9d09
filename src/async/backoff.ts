/**
 * Asking again what could not be told: pauses that double, up to a longest one, and are jittered, for a thousand workers
 * must not come back in step. An answer is not asked again, nor is a refusal that would only be repeated.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { errorText, isRetryable, LazydiskError, withMessage } from '../errors.ts';

/** The first pause, before it doubles, and the longest. */
export interface Pauses {
  readonly firstMs: number;
  readonly longestMs: number;
}

/** The pause after so many failures, in milliseconds. Jitter makes it shorter, by half at most. */
export function pauseAfterMs(failures: number, { firstMs, longestMs }: Pauses): number {
  return Math.min(firstMs * 2 ** (failures - 1), longestMs);
}

/** What the pauses between so many tries come to, in milliseconds, at most. */
export function pausesTotalMs(tries: number, pauses: Pauses): number {
  let totalMs = 0;
  for (let failures = 1; failures < tries; failures++) totalMs += pauseAfterMs(failures, pauses);
  return totalMs;
}

export interface BackoffOptions {
  readonly pauses: Pauses;
  /** Tries together, the first one included. */
  readonly tries: number;
  /** For so long after the first failure there are more tries than that. Default none. */
  readonly patienceMs?: number | undefined;
  /** No pause goes beyond it. On the clock of performance.now(); looked at after each failure. Default never. */
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
   * Resolves when it is time for the next try; `onPause` is called before the wait. Throws `error` if there is to be none,
   * with how many there were, and ABORTED after `signal`.
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
    // Whoever is to wait for longer than they would anyway is told so at once.
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

/** What `attempt` gives; as often as `options` allow while it fails with what may pass. Rejects as `Backoff.failed`. */
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
