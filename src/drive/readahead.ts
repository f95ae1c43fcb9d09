/**
 * Detects sequential reads and asks for the chunks that come next. Two rules keep it from fetching what nobody reads.
 * First, a sequence continues only where its reads do: from the end of one chunk into the start of the next; reads
 * scattered over a neighbouring chunk do not count. Second, each chunk read ahead is a bet, and the share of a drive's
 * lost and open bets is limited in proportion to what its guest has really read. A guest that reads sequentially earns
 * a window that doubles with every chunk; one that seldom does soon has none. It counts in stored chunks, so zero
 * chunks neither break a sequence nor cost anything. Several sequences are followed at once, because a booting guest
 * reads several files.
 */

/** Sequences followed at once; a new one replaces the least recently read. */
const STREAMS = 16;
/** How far behind a read may be: a guest's own readahead sends several requests, which may arrive in another order. */
const BEHIND_MAX = 4;
/** The largest share of unread chunks among all chunks that were read ahead or read. */
const UNUSED_SHARE_MAX = 0.3;
/** This many bets are always allowed, or a drive that has just been attached could not begin. */
const UNUSED_FREE = 2;

interface Stream {
  /** The entry read last. */
  last: number;
  /** Entries before this one have been asked for. */
  ahead: number;
  /** How many entries after `last` are kept asked for. */
  window: number;
}

export interface ReadaheadOptions {
  /** Stored chunks of the drive. */
  readonly entries: number;
  /** Largest window, in chunks. */
  readonly windowMax: number;
  /**
   * Asks for one entry; must not throw. Returns undefined if it is near already; otherwise resolves when it is, or to
   * false when it was not taken.
   */
  readonly fetch: (entry: number) => Promise<boolean> | undefined;
}

export class Readahead {
  readonly #options: ReadaheadOptions;
  /** Most recently read first. */
  readonly #streams: Stream[] = [];
  /** A bit for each entry that was asked for and has not been read since. */
  readonly #unusedBits: Uint8Array;
  #unused = 0;
  #touched = 0;

  constructor(options: ReadaheadOptions) {
    this.#options = options;
    this.#unusedBits = new Uint8Array(Math.ceil(options.entries / 8));
  }

  /** Entries that were asked for and have not been read yet. */
  get unused(): number {
    return this.#unused;
  }

  /** Called when the guest reads `entry` for the first time. Returns whether it had been asked for. */
  touched(entry: number): boolean {
    this.#touched++;
    return this.#settle(entry);
  }

  /** Called when the guest read entries `first` to `last`; `fromStart`: `first` was read from its beginning. */
  observe(first: number, last: number, fromStart: boolean): void {
    const streams = this.#streams;
    // Nearly every read continues where the previous one was.
    if (streams[0]?.last === last) return;
    const place = streams.findIndex((stream) => goesOn(stream, first, fromStart));
    if (place < 0) {
      if (streams.length === STREAMS) streams.pop();
      streams.unshift({ last, ahead: last + 1, window: 0 });
      return;
    }
    const [stream] = streams.splice(place, 1) as [Stream];
    streams.unshift(stream);
    if (last > stream.last) this.#advance(stream, last);
  }

  #advance(stream: Stream, last: number): void {
    const { entries, windowMax } = this.#options;
    stream.last = last;
    stream.window = Math.min(Math.max(1, stream.window * 2), windowMax);
    stream.ahead = Math.max(stream.ahead, last + 1);
    const until = Math.min(last + 1 + stream.window, entries);
    while (stream.ahead < until && this.#mayBet()) this.#bet(stream.ahead++);
  }

  #mayBet(): boolean {
    const unused = this.#unused + 1;
    return unused <= UNUSED_FREE || unused <= (unused + this.#touched) * UNUSED_SHARE_MAX;
  }

  #bet(entry: number): void {
    const fetching = this.#options.fetch(entry);
    if (!fetching) return;
    const bit = 1 << (entry & 7);
    if ((this.#unusedBits[entry >> 3]! & bit) === 0) this.#unused++;
    this.#unusedBits[entry >> 3]! |= bit;
    void fetching.then((taken) => {
      if (!taken) this.#settle(entry);
    });
  }

  #settle(entry: number): boolean {
    const bit = 1 << (entry & 7);
    if ((this.#unusedBits[entry >> 3]! & bit) === 0) return false;
    this.#unusedBits[entry >> 3]! &= ~bit;
    this.#unused--;
    return true;
  }
}

/** Whether a read from `first` on continues the sequence. */
function goesOn({ last, window }: Stream, first: number, fromStart: boolean): boolean {
  if (first < last - BEHIND_MAX) return false;
  if (first <= last) return true;
  // Chunks that were asked for may be read out of order; one step further must come from the chunk before.
  return first <= last + window || (first <= last + 1 + window && fromStart);
}
