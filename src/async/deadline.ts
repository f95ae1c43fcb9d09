/**
 * Ends a wait at its deadline or when its signal aborts. A read's deadline may move while it waits (a later caller with
 * more time joins the flight), so the deadline is read again when the timer fires.
 */
import { LazydiskError } from '../errors.ts';
import type { ReadContext } from './read-context.ts';

/** The longest delay that setTimeout accepts. */
const TIMER_MS_MAX = 2 ** 31 - 1;

export type Ended = 'deadline' | 'signal';

/**
 * Calls `ended` once when the deadline of `ctx` has passed or its signal has aborted, and never before this function
 * has returned. Returns a function that stops the watch; after that, `ended` is not called.
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
    // Not synchronously: the caller does not have the stop function yet.
    queueMicrotask(aborted);
    return stop;
  }
  signal?.addEventListener('abort', aborted, { once: true });
  arm();
  return stop;
}

/** TIMEOUT or ABORTED; `what` says what did not happen in time. */
export function deadlineError(why: Ended, what: string): LazydiskError {
  return why === 'deadline'
    ? new LazydiskError('TIMEOUT', `${what} before the deadline`)
    : new LazydiskError('ABORTED', `${what} before the read was cancelled`);
}

/**
 * Settles as `promise` does, or rejects with TIMEOUT or ABORTED (`what` says what did not happen) when `ctx` ends
 * first. If the value arrives later, it is passed to `late`, which gives it back.
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
