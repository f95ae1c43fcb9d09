/**
 * Retries calls to a server for as long as the caller is patient, and reports the outage meanwhile. Long-running work
 * has patience: its calls are retried for minutes, so that a restart of the server does not end it.
 */
import { errorText, isRetryable } from '../errors.ts';
import { Backoff, type Pauses } from './backoff.ts';

const PAUSES: Pauses = { firstMs: 100, longestMs: 3_000 };

export interface Patience {
  /** How long a call is retried, in milliseconds from its first failure; it gets at least `tries`. */
  readonly forMs: number;
  /** Ends all waits; their calls reject with ABORTED. */
  readonly signal?: AbortSignal;
  /** Called at each failure while no call succeeds, and with undefined when one does. */
  onOutage?(outage: Outage | undefined): void;
}

/** A period in which every call to a server has failed; times are on the clock of performance.now(). */
export interface Outage {
  /** What the server is, for messages: `store`, `registry`. */
  readonly peer: string;
  /** When the first call failed. */
  readonly sinceMs: number;
  /** When calls that first failed at `sinceMs` are given up. */
  readonly untilMs: number;
  /** The error text of the last call. */
  readonly reason: string;
}

export interface RetryOptions {
  /** As in Outage. */
  readonly peer: string;
  /** Tries in total, including the first. Default 5. */
  readonly tries?: number;
  /** Default 100 ms to 3 s. */
  readonly pauses?: Pauses;
  /** Default none: only `tries`. */
  readonly patience?: Patience | undefined;
}

/** The calls to one server. */
export class PatientRetries {
  readonly #peer: string;
  readonly #tries: number;
  readonly #pauses: Pauses;
  readonly #patience: Patience | undefined;
  #outageSinceMs: number | undefined;

  constructor({ peer, tries = 5, pauses = PAUSES, patience }: RetryOptions) {
    this.#peer = peer;
    this.#tries = tries;
    this.#pauses = pauses;
    this.#patience = patience;
  }

  get forMs(): number | undefined {
    return this.#patience?.forMs;
  }

  /** The result of `attempt`. Rejects as the last try did; the message says how many there were. */
  async run<T>(signal: AbortSignal | undefined, attempt: () => Promise<T>): Promise<T> {
    let backoff: Backoff | undefined;
    for (;;) {
      try {
        const result = await attempt();
        this.#answered();
        return result;
      } catch (error) {
        backoff ??= this.backoff(signal);
        await this.failed(error, backoff);
      }
    }
  }

  /** For the failures of one call that does not go through `run`. */
  backoff(signal: AbortSignal | undefined): Backoff {
    const signals = [signal, this.#patience?.signal].filter((one) => one !== undefined);
    return new Backoff({
      tries: this.#tries,
      pauses: this.#pauses,
      patienceMs: this.#patience?.forMs,
      signal: AbortSignal.any(signals),
    });
  }

  /** Resolves when it is time for the next try; throws if there is no further try. */
  failed(error: unknown, backoff: Backoff): Promise<void> {
    if (!isRetryable(error)) this.#answered();
    return backoff.failed(error, () => this.#tell(error));
  }

  #tell(error: unknown): void {
    if (!this.#patience) return;
    this.#outageSinceMs ??= performance.now();
    const sinceMs = this.#outageSinceMs;
    const untilMs = sinceMs + this.#patience.forMs;
    this.#patience.onOutage?.({ peer: this.#peer, sinceMs, untilMs, reason: errorText(error) });
  }

  #answered(): void {
    if (this.#outageSinceMs === undefined) return;
    this.#outageSinceMs = undefined;
    this.#patience?.onOutage?.(undefined);
  }
}
