/**
 * One way to hold a wait to its deadline and its abort signal. A read's deadline may move while it waits (a later
 * caller with more time joins the flight), so when the timer fires the deadline is looked at again.
 */
import { LazydiskError } from '../errors.ts';
import type { ReadContext } from './read-context.ts';

/** setTimeout takes no more. */
const TIMER_MS_MAX = 2 ** 31 - 1;

export type Ended = 'deadline' | 'signal';

/**
 * Calls `ended` once, when `ctx` says that the wait is over; never before this has returned. Returns what stops
 * the watch; after it `ended` is not called.
 */
export function onDeadline(
  ctx: Pick<ReadContext, 'deadline' | 'signal'>,
  ended: (why: Ended) => void,
): () => void {
  const { signal } = ctx;
  let timer: NodeJS.Timeout | undefined;
  let stopped = false;
  const stop = () => {
    stopped = true;
    clearTimeout(timer);
    signal?.removeEventListener('abort', aborted);
  };
  const aborted = () => {
    if (stopped) return;
    stop();
    ended('signal');
  };
  const arm = () => {
    const leftMs = Math.max(0, Math.min(Math.ceil(ctx.deadline - performance.now()), TIMER_MS_MAX));
    timer = setTimeout(() => {
      if (performance.now() < ctx.deadline) arm();
      else {
        stop();
        ended('deadline');
      }
    }, leftMs);
  };
  if (signal?.aborted) {
    // Not synchronously: the caller has not got the stop function yet.
    queueMicrotask(aborted);
    return stop;
  }
  signal?.addEventListener('abort', aborted, { once: true });
  arm();
  return stop;
}

/** TIMEOUT or ABORTED, with what was waited for. */
export function deadlineError(why: Ended, what: string): LazydiskError {
  return why === 'deadline'
    ? new LazydiskError('TIMEOUT', `${what} before the deadline`)
    : new LazydiskError('ABORTED', `${what} before the read was cancelled`);
}

/**
 * Settles as `promise` does, or rejects with TIMEOUT or ABORTED (`what` says what did not happen) when `ctx` is over
 * first; then `late` gets the value if it comes after all, to give it back.
 */
export function withDeadline<T>(
  promise: Promise<T>,
  ctx: Pick<ReadContext, 'deadline' | 'signal'>,
  what: string,
  late?: (value: T) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    let over = false;
    const stop = onDeadline(ctx, (why) => {
      over = true;
      reject(deadlineError(why, what));
    });
    promise.then(
      (value) => {
        stop();
        if (over) late?.(value);
        else resolve(value);
      },
      (error) => {
        stop();
        reject(error);
      },
    );
  });
}
