/**
 * Time as the store's rules need it: ages on this machine, and waits. A rule such as "commit within a day of the first
 * look" must hold despite a suspended laptop and a stepped clock, so an age is the larger of what the monotonic clock
 * and the wall clock say. It may be too large, which only rejects needlessly, and never too small.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { LazydiskError } from '../../errors.ts';
import { formatDuration } from '../../units.ts';

/** A moment on this machine; only meaningful to `Clock.ageMs`. */
export interface Moment {
  readonly monotonicMs: number;
  readonly wallMs: number;
}

export interface Clock {
  now(): Moment;
  /** Milliseconds since `moment`; may be too large, never too small. */
  ageMs(moment: Moment): number;
  /**
   * A signal that aborts after `ms`: for a request that must be abandoned, retries included, while it is still in time.
   */
  timeout(ms: number): AbortSignal;
  /** Rejects with ABORTED. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

/**
 * Returns what `work` returns, or abandons it, retries included, after `ms`, because it must not take effect later.
 * Then rejects with TIMEOUT naming `what`.
 */
export async function withinTime<T>(
  clock: Clock,
  ms: number,
  what: string,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const signal = clock.timeout(ms);
  try {
    return await work(signal);
  } catch (cause) {
    if (!signal.aborted) throw cause;
    throw new LazydiskError('TIMEOUT', `${what} was not done within ${formatDuration(ms)}: run it again`, {
      cause,
    });
  }
}

/** Maximum delay of a timer. */
const TIMER_MS_MAX = 2 ** 31 - 1;

export const systemClock: Clock = {
  now: () => ({ monotonicMs: performance.now(), wallMs: Date.now() }),
  ageMs: ({ monotonicMs, wallMs }) => Math.max(performance.now() - monotonicMs, Date.now() - wallMs),
  timeout: (ms) => AbortSignal.timeout(Math.min(Math.ceil(ms), TIMER_MS_MAX)),
  async sleep(ms, signal) {
    await delay(ms, undefined, signal && { signal }).catch((cause) => {
      throw new LazydiskError('ABORTED', 'cancelled while waiting', { cause });
    });
  },
};
