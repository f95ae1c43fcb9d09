/**
 * Stored chunks to bring near, in the order in which they are wanted and a few at a time: what is asked for in one word (an
 * NBD CACHE of the whole disk) must not become a thousand reads at once, nor a list of a million.
 */

/** Lists that may wait; one more is dropped, since a prefetch is a hint. */
const LISTS_MAX = 64;
/** Chunks of one drive on their way at once. */
const CONCURRENCY = 4;
/** Looked at without a fetch before the event loop gets its turn: chunks that are near already. */
const SKIPS_MAX = 1024;
/** When the reader has too much in flight, it is asked again after this long. */
const PAUSE_MS = 50;

export interface PrefetchOptions {
  /** Undefined if the entry is near already; resolves to false when the reader is too busy to take it. */
  readonly fetch: (entry: number) => Promise<boolean> | undefined;
}

export class PrefetchQueue {
  readonly #fetch: PrefetchOptions['fetch'];
  readonly #lists: Iterator<number>[] = [];
  /** Those that the reader did not take; they go first. */
  readonly #refused: number[] = [];
  #active = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: PrefetchOptions) {
    this.#fetch = options.fetch;
  }

  /** Entries in order, which are asked for one by one as their turn comes. */
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
          // The next chunk of this drive that arrives makes room; if none is on its way, time has to.
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
