/**
 * Sees that a guest reads in sequence and asks for what comes next. Two things keep it from fetching what nobody reads.
 * A sequence goes on only where its reads do: from the end of one chunk into the start of the next, while reads all
 * about a neighbouring chunk are none. And each chunk that is asked for is a bet, of which a drive may have lost or
 * left open so many in proportion to what its guest really read: a guest that reads in sequence earns a window that
 * doubles with every chunk, one that seldom does soon has none. It counts in stored chunks, so zero chunks neither break
 * a sequence nor cost anything. Several sequences are followed at once, because a booting guest reads several files.
 */

/** Sequences followed at once; the one not read for longest gives way. */
const STREAMS = 16;
/** A guest's own readahead sends several requests, which may arrive in another order. */
const BEHIND_MAX = 4;
/** Chunks that were asked for and not read, at most, of all that were asked for or read. */
const UNUSED_SHARE_MAX = 0.3;
/** So many are free, or a drive that has just been attached could not begin. */
const UNUSED_FREE = 2;

interface Stream {
  /** The entry read last. */
  last: number;
  /** Entries before this one have been asked for. */
  ahead: number;
  /** How many entries behind `last` are kept asked for. */
  window: number;
}

export interface ReadaheadOptions {
  /** Stored chunks of the drive. */
  readonly entries: number;
  /** Largest window, in chunks. */
  readonly windowMax: number;
  /**
   * Asks for one entry; must not throw. Undefined if it is near already, else it resolves when it is, to false when it
   * was not taken.
   */
  readonly fetch: (entry: number) => Promise<boolean> | undefined;
}

export class Readahead {
  readonly #options: ReadaheadOptions;
  /** Most recently read first. */
  readonly #streams: Stream[] = [];
  /** A bit for each entry that was asked for and not read since. */
  readonly #unusedBits: Uint8Array;
  #unused = 0;
  #touched = 0;

  constructor(options: ReadaheadOptions) {
    this.#options = options;
    this.#unusedBits = new Uint8Array(Math.ceil(options.entries / 8));
  }

  /** Entries that were asked for and not read yet. */
  get unused(): number {
    return this.#unused;
  }

  /** The guest read something of `entry` for the first time. True if it had been asked for. */
  touched(entry: number): boolean {
    this.#touched++;
    return this.#settle(entry);
  }

  /** The guest read entries `first` to `last`, of `first` its start or only what lies behind that. */
  observe(first: number, last: number, fromStart: boolean): void {
    const streams = this.#streams;
    // Nearly every read goes on where the one before it was.
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
  // What was asked for may be read out of order; one step further must come from the chunk before.
  return first <= last + window || (first <= last + 1 + window && fromStart);
}
