/**
 * memcached's meta commands as bytes: writes requests and parses replies. The parser is a state machine fed with
 * whatever a read returned; it copies a value's bytes straight into the buffers that the request named and never holds
 * more than one reply line. Source: memcached's doc/protocol.txt, "Meta Commands".
 */
import { LazydiskError } from '../../errors.ts';

/** A reply line longer than this is garbage. */
const LINE_BYTES_MAX = 2048;
/** memcached accepts keys of up to 250 bytes, without spaces or control bytes. */
const KEY = /^[\x21-\x7e]{1,250}$/;
const CR = 0x0d;
const LF = 0x0a;

/** Where a value goes: first into `head` until that is full, then into `body`. */
export interface ValueSink {
  readonly head: Uint8Array;
  readonly body: Uint8Array;
}

/** One reply. `flags` are the words after the code (and the size), e.g. `W`, `c123`. */
export interface MetaReply {
  /** `VA` value, `HD` done, `EN` miss, `NS` not stored, `EX` other cas, `NF` not found, `MN` no-op. */
  readonly code: 'VA' | 'HD' | 'EN' | 'NS' | 'EX' | 'NF' | 'MN';
  readonly flags: readonly string[];
  /** For a `VA`: the value's length; if it does not fit its sink, the connection is dropped. */
  readonly valueBytes: number;
}

/** What the parser calls on the connection. */
export interface ReplyHandler {
  /** Where the value of the oldest request goes: a sink, 'discard', or undefined if it expects no value. */
  sink(valueBytes: number): ValueSink | 'discard' | undefined;
  reply(reply: MetaReply): void;
  /** The server refused the oldest request with a reason; the connection is still in step. */
  refused(text: string): void;
}

function checkKey(key: string): void {
  if (!KEY.test(key)) throw new LazydiskError('INTERNAL', 'not a memcached key');
}

/** `mg`: get. `flags` such as `v`, `t`, `N30`, `R60`. */
export function metaGet(key: string, flags: readonly string[]): Buffer {
  checkKey(key);
  return Buffer.from(`mg ${key} ${flags.join(' ')}\r\n`, 'latin1');
}

/** `ms`: the line before a value of `valueBytes`; the value and CR LF follow. */
export function metaSet(key: string, valueBytes: number, flags: readonly string[]): Buffer {
  checkKey(key);
  return Buffer.from(`ms ${key} ${valueBytes}${flags.map((flag) => ` ${flag}`).join('')}\r\n`, 'latin1');
}

/** `md`: delete. */
export function metaDelete(key: string, flags: readonly string[]): Buffer {
  checkKey(key);
  return Buffer.from(`md ${key}${flags.map((flag) => ` ${flag}`).join('')}\r\n`, 'latin1');
}

/** `mn`: answered with `MN`; a probe. */
export const META_NOOP: Buffer = Buffer.from('mn\r\n', 'latin1');

export class ReplyParser {
  readonly #handler: ReplyHandler;
  #line = Buffer.alloc(LINE_BYTES_MAX);
  #lineBytes = 0;
  /** Set while a value is being received. */
  #pending: MetaReply | undefined;
  #sink: ValueSink | 'discard' = 'discard';
  #received = 0;

  constructor(handler: ReplyHandler) {
    this.#handler = handler;
  }

  /** The receiver of the value being read is gone: its buffers are not touched any more. */
  abandonValue(): void {
    this.#sink = 'discard';
  }

  /**
   * Parses what a read returned. Throws CORRUPT when the server is out of step; the connection must then be dropped.
   */
  feed(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) at = this.#pending ? this.#takeValue(bytes, at) : this.#takeLine(bytes, at);
  }

  #takeLine(bytes: Uint8Array, from: number): number {
    const end = bytes.indexOf(LF, from);
    const upTo = end < 0 ? bytes.length : end + 1;
    if (this.#lineBytes + upTo - from > LINE_BYTES_MAX) throw corrupt('an unterminated reply line');
    this.#line.set(bytes.subarray(from, upTo), this.#lineBytes);
    this.#lineBytes += upTo - from;
    if (end < 0) return upTo;
    if (this.#lineBytes < 2 || this.#line[this.#lineBytes - 2] !== CR)
      throw corrupt('a reply line without CR');
    const line = this.#line.toString('latin1', 0, this.#lineBytes - 2);
    this.#lineBytes = 0;
    this.#takeReply(line);
    return upTo;
  }

  #takeReply(line: string): void {
    const words = line.split(' ');
    switch (words[0]) {
      case 'VA': {
        const valueBytes = /^\d{1,10}$/.test(words[1] ?? '') ? Number(words[1]) : -1;
        if (valueBytes < 0) throw corrupt('a value without a length');
        const sink = this.#handler.sink(valueBytes);
        if (!sink) throw corrupt('a value that was not requested or is too long');
        this.#sink = sink;
        this.#received = 0;
        this.#pending = { code: 'VA', flags: words.slice(2), valueBytes };
        return;
      }
      case 'HD':
      case 'EN':
      case 'NS':
      case 'EX':
      case 'NF':
      case 'MN':
        this.#handler.reply({ code: words[0], flags: words.slice(1), valueBytes: 0 });
        return;
      // Only the login gets this reply, because memcached takes it as a classic `set`.
      case 'STORED':
        this.#handler.reply({ code: 'HD', flags: [], valueBytes: 0 });
        return;
      case 'SERVER_ERROR':
      case 'CLIENT_ERROR':
        this.#handler.refused(line.slice(0, 200));
        return;
      default:
        throw corrupt('an unknown reply');
    }
  }

  #takeValue(bytes: Uint8Array, from: number): number {
    const { valueBytes } = this.#pending!;
    const take = Math.min(bytes.length - from, valueBytes + 2 - this.#received);
    const valuePart = Math.min(take, Math.max(0, valueBytes - this.#received));
    if (this.#sink !== 'discard' && valuePart > 0) {
      this.#scatter(this.#sink, bytes.subarray(from, from + valuePart));
    }
    for (let n = valuePart; n < take; n++) {
      const want = this.#received + n === valueBytes ? CR : LF;
      if (bytes[from + n] !== want) throw corrupt('a value longer than announced');
    }
    this.#received += take;
    if (this.#received === valueBytes + 2) {
      const reply = this.#pending!;
      this.#pending = undefined;
      this.#sink = 'discard';
      this.#handler.reply(reply);
    }
    return from + take;
  }

  #scatter(sink: ValueSink, part: Uint8Array): void {
    const { head, body } = sink;
    let rest = part;
    let at = this.#received;
    if (at < head.length) {
      const toHead = Math.min(rest.length, head.length - at);
      head.set(rest.subarray(0, toHead), at);
      rest = rest.subarray(toHead);
      at += toHead;
    }
    if (rest.length > 0) body.set(rest, at - head.length);
  }
}

function corrupt(what: string): LazydiskError {
  return new LazydiskError('CORRUPT', `memcached answered ${what}`);
}
