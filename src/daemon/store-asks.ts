/**
 * The control API's operations on the store: attaches and lists. A store can hang (a directory on a network file system
 * whose server is gone, an endpoint that accepts connections and says nothing), and an operation cannot always be
 * cancelled. So the caller is released at a deadline, or when its client disconnects, while the operation keeps its
 * place until it ends. There are few places: a store that hangs uses up those, and no more of the thread pool.
 */
import { deadlineError, withDeadline } from '../async/deadline.ts';

/** How long a caller waits for an answer. */
export interface Patience {
  /** On the clock of performance.now(). */
  readonly deadline: number;
  /** Aborted when nobody needs the answer any more. */
  readonly signal: AbortSignal;
}

interface Waiter {
  enter(): void;
}

export class StoreAsks {
  readonly #placesMax: number;
  readonly #waiting = new Set<Waiter>();
  #taken = 0;

  constructor(placesMax: number) {
    this.#placesMax = placesMax;
  }

  /**
   * Returns what `work` returns. `what` is for errors: "the store does not answer". Rejects with TIMEOUT or ABORTED
   * when patience runs out, and with the error of `work`.
   */
  async ask<T>(patience: Patience, what: string, work: () => Promise<T>): Promise<T> {
    await this.#place(patience, `${what} (${this.#placesMax} others ask it already)`);
    const working = work().finally(() => this.#leave());
    return withDeadline(working, patience, what);
  }

  async #place(patience: Patience, what: string): Promise<void> {
    if (patience.signal.aborted) throw deadlineError('signal', what);
    if (this.#taken < this.#placesMax) {
      this.#taken++;
      return;
    }
    const { promise, resolve: enter } = Promise.withResolvers<void>();
    const waiter = { enter };
    this.#waiting.add(waiter);
    try {
      // A place that comes too late is passed on.
      await withDeadline(promise, patience, what, () => this.#leave());
    } finally {
      this.#waiting.delete(waiter);
    }
  }

  #leave(): void {
    const [next] = this.#waiting;
    if (!next) {
      this.#taken--;
      return;
    }
    this.#waiting.delete(next);
    next.enter();
  }
}
