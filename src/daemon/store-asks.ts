/**
 * What the control API asks of the store: attaches and lists. A store can hang (a directory on a network file system
 * whose server is gone, an endpoint that takes connections and says nothing), and what was asked of it cannot always be
 * taken back. So whoever asked is let go at a deadline, or when the client goes, while the question itself keeps its
 * place until it ends. There are few places: a store that hangs costs those, and no more of the thread pool.
 */
import { deadlineError, withDeadline } from '../async/deadline.ts';

/** How long somebody waits for an answer. */
export interface Patience {
  /** On the clock of performance.now(). */
  readonly deadline: number;
  /** Aborted when the answer is of no use to anybody any more. */
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
   * What `work` gives. `what` is for errors: "the store does not answer". Rejects with TIMEOUT or ABORTED when patience is
   * over, and with what `work` does.
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
