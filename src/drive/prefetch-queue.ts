/**
 * Ranges of stored chunks to bring near, a few chunks at a time: what is asked for in one word (an NBD CACHE of the
 * whole disk, a recorded start) must not become a thousand reads at once, nor a list of a million.
 */

/** Ranges that may wait; one more is dropped, since a prefetch is a hint. */
const RANGES_MAX = 64;
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
  readonly #ranges: { next: number; end: number }[] = [];
  #active = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: PrefetchOptions) {
    this.#fetch = options.fetch;
  }

  /** Entries [first, end). */
  add(first: number, end: number): void {
    if (this.#closed || first >= end || this.#ranges.length >= RANGES_MAX) return;
    this.#ranges.push({ next: first, end });
    this.#pump();
  }

  close(): void {
    this.#closed = true;
    this.#ranges.length = 0;
    clearTimeout(this.#timer);
  }

  #pump(): void {
    for (let skips = 0; !this.#timer && this.#active < CONCURRENCY; ) {
      const range = this.#ranges[0];
      if (!range) return;
      const entry = range.next++;
      if (range.next === range.end) this.#ranges.shift();
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
          this.#ranges.unshift({ next: entry, end: entry + 1 });
          if (this.#active === 0) this.#pause(PAUSE_MS);
        }
      });
    }
  }

  #pause(durationMs: number): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#pump();
    }, durationMs).unref();
  }
}
