/**
 * Stored chunks to prefetch, in the order in which they are wanted and a few at a time. A single request (an NBD CACHE
 * of the whole disk) must not become a thousand reads at once, or a list of a million entries.
 */

/** Lists that may wait; one more is dropped, because a prefetch is only a hint. */
const LISTS_MAX = 64;
/** The most chunks of one drive being fetched at once. */
const CONCURRENCY = 4;
/** The most chunks that are skipped (they are near already) before the event loop gets a turn. */
const SKIPS_MAX = 1024;
/** The pause before the reader is asked again when it had too much in flight. */
const PAUSE_MS = 50;

export interface PrefetchOptions {
  /** Returns undefined if the entry is near already; resolves to false when the reader is too busy to take it. */
  readonly fetch: (entry: number) => Promise<boolean> | undefined;
}

export class PrefetchQueue {
  readonly #fetch: PrefetchOptions['fetch'];
  readonly #lists: Iterator<number>[] = [];
  /** Entries that the reader did not take; they go first. */
  readonly #refused: number[] = [];
  #active = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: PrefetchOptions) {
    this.#fetch = options.fetch;
  }

  /** Adds entries in order; each is asked for when its turn comes. */
  add(entries: Iterable<number>): void {
    if (this.#closed || this.#lists.length >= LISTS_MAX) return;
    this.#lists.push(entries[Symbol.iterator]());
    this.#pump();
  }

  close(): void {
    this.#closed = true;
    this.#lists.length = 0;
    this.#refused.length = 0;
    clearTimeout(this.#timer);
  }

  #pump(): void {
    for (let skips = 0; !this.#timer && this.#active < CONCURRENCY; ) {
      const entry = this.#next();
      if (entry === undefined) return;
      const fetching = this.#fetch(entry);
      if (!fetching) {
        if (++skips === SKIPS_MAX) this.#pause(0);
        continue;
      }
      this.#active++;
      fetching.then((taken) => {
        this.#active--;
        if (this.#closed) return;
        if (taken) this.#pump();
        else {
          // The next chunk of this drive that arrives makes room; if none is in flight, try again after a pause.
          this.#refused.push(entry);
          if (this.#active === 0) this.#pause(PAUSE_MS);
        }
      });
    }
  }

  #next(): number | undefined {
    if (this.#refused.length > 0) return this.#refused.shift();
    for (let list = this.#lists[0]; list; list = this.#lists[0]) {
      const next = list.next();
      if (!next.done) return next.value;
      this.#lists.shift();
    }
    return undefined;
  }

  #pause(durationMs: number): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#pump();
    }, durationMs).unref();
  }
}
