/**
 * Sees that a guest reads in sequence and asks for what comes next: the window doubles with every chunk that was read
 * in order, and is gone as soon as it is not. It counts in stored chunks, so zero chunks neither break a sequence nor
 * cost anything. Several sequences are followed at once, because a booting guest reads several files.
 */

/** Sequences followed at once; the one not read for longest gives way. */
const STREAMS = 8;
/** A guest's own readahead sends several requests, which may arrive in another order. */
const BEHIND_MAX = 4;

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
  /** Asks for one entry; must not throw. */
  readonly fetch: (entry: number) => void;
}

export class Readahead {
  readonly #options: ReadaheadOptions;
  /** Most recently read first. */
  readonly #streams: Stream[] = [];

  constructor(options: ReadaheadOptions) {
    this.#options = options;
  }

  /** The guest read entries `first` to `last`. */
  observe(first: number, last: number): void {
    const streams = this.#streams;
    // Nearly every read goes on where the one before it was.
    if (streams[0]?.last === last) return;
    const place = streams.findIndex(
      (stream) => first >= stream.last - BEHIND_MAX && first <= stream.last + 1 + stream.window,
    );
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
    const { entries, windowMax, fetch } = this.#options;
    stream.last = last;
    stream.window = Math.min(Math.max(1, stream.window * 2), windowMax);
    const until = Math.min(last + 1 + stream.window, entries);
    for (let entry = Math.max(stream.ahead, last + 1); entry < until; entry++) fetch(entry);
    stream.ahead = Math.max(stream.ahead, until);
  }
}
