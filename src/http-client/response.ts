/**
 * Reads one HTTP/1.1 response (RFC 9112) as its bytes arrive. Strict where a lenient reader could be misled: a malformed
 * head, two lengths, or a length beside a transfer coding is an error, and so is everything over a bound. The trick is
 * `room`: once the head has told how long the body is, the rest of it is read from the socket straight into its place.
 */

/** Of the head, of the lines of a chunked body, and of its trailer; node:http has the same bound. */
export const HEAD_BYTES_MAX = 16 * 1024;
/** Of a response that is an error. */
const ERROR_BYTES_MAX = 64 * 1024;
/** 1xx responses before the one that counts. */
const INTERIM_MAX = 8;

const STATUS_LINE = /^HTTP\/1\.([01]) ([1-9]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?$/;
const HEADER_LINE = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)$/;
const LENGTH = /^\d{1,15}$/;
/** With extensions, which mean nothing to us. */
const CHUNK_SIZE = /^([0-9A-Fa-f]{1,8})(?:;[\x21-\x7e]*)?$/;

/** What follows next: the end of a body is told by its length, its last chunk, or the end of the connection. */
type Phase = 'head' | 'length' | 'close' | 'chunk-size' | 'chunk-data' | 'chunk-end' | 'trailer' | 'done';

export type HttpHeaders = Readonly<Record<string, string | undefined>>;

/** The server does not speak HTTP as it should, or says more than it may. */
export class HttpSyntaxError extends Error {}

/** Takes a body as it comes. */
export interface BodySink {
  /** Where the next bytes go, one at least. */
  room(): Buffer;
  /** That many were put to the front of `room()`. */
  placed(bytes: number): void;
}

export interface HttpResponseOptions {
  /** There is no body, whatever the head says. */
  readonly isHead?: boolean;
  /** Of a good body over it, that much and one byte more is read. Default: no bound. */
  readonly bytesMax?: number;
  /** Where a good body goes if it fits; else into memory of its own. */
  readonly into?: Buffer | undefined;
  /** Takes any body instead, that of an error too; then `body` has nothing of it. */
  readonly sink?: BodySink;
  /** Status and headers are there; called once, before any of the body goes to the sink. */
  onHead?(): void;
}

export class HttpResponse {
  status = 0;
  headers: HttpHeaders = {};
  /** Whether the server keeps the connection for another request. */
  isKept = false;
  /** Bytes of the body so far, of what they are framed in nothing. */
  received = 0;
  readonly #options: HttpResponseOptions;
  #phase: Phase = 'head';
  #interims = 0;
  /** As the head tells it. */
  #lengthBytes: number | undefined;
  /** How much of the body is wanted, at most. */
  #wanted = 0;
  #filled = 0;
  /** Where a body of a known length goes. */
  #whole: Buffer | undefined;
  readonly #parts: Buffer[] = [];
  /** Of the chunk that is being read. */
  #chunkBytes = 0;
  #trailerBytes = 0;

  constructor(options: HttpResponseOptions) {
    this.#options = options;
  }

  get isDone(): boolean {
    return this.#phase === 'done';
  }

  /** Once it is done: all of the body, or as much of it as was wanted. */
  get body(): Buffer {
    return this.#whole ?? Buffer.concat(this.#parts);
  }

  /** How much came, for an error. */
  get text(): string {
    return `${this.received} of ${this.#lengthBytes ?? 'unknown many'} bytes`;
  }

  /** Where the body that is still to come may be read into directly, then told by `placed`; undefined if `take` must see it. */
  get room(): Buffer | undefined {
    if (this.#phase !== 'length') return undefined;
    const { sink } = this.#options;
    return sink ? sink.room().subarray(0, this.#wanted - this.#filled) : this.#whole?.subarray(this.#filled);
  }

  /** That many bytes were read into `room`. */
  placed(bytes: number): void {
    this.#options.sink?.placed(bytes);
    this.#filled += bytes;
    this.received += bytes;
    this.#endIfEnough();
  }

  /**
   * Takes from the front of `bytes` what it can use and returns how much that was; what it did not use, it wants to see again
   * with what comes after. Throws HttpSyntaxError.
   */
  take(bytes: Buffer): number {
    let at = 0;
    for (;;) {
      const phase = this.#phase;
      const used = phase === 'done' ? 0 : this.#step(bytes.subarray(at));
      at += used;
      if (used === 0 && phase === this.#phase) break;
    }
    if (this.#phase !== 'done' && bytes.length - at >= HEAD_BYTES_MAX)
      throw new HttpSyntaxError(`a head or line over ${HEAD_BYTES_MAX} bytes`);
    return at;
  }

  /** The connection has ended. False if the response has not. */
  end(): boolean {
    if (this.#phase === 'close') this.#phase = 'done';
    return this.isDone;
  }

  /** One step in the present phase; gives the bytes that it used. */
  #step(bytes: Buffer): number {
    switch (this.#phase) {
      case 'head':
        return this.#takeHead(bytes);
      case 'length':
      case 'close':
        return this.#takeBody(bytes);
      case 'chunk-data':
        return this.#takeChunk(bytes);
      default:
        return this.#takeLine(bytes);
    }
  }

  #takeHead(bytes: Buffer): number {
    const end = bytes.indexOf('\r\n\r\n');
    if (end >= HEAD_BYTES_MAX) throw new HttpSyntaxError(`a head over ${HEAD_BYTES_MAX} bytes`);
    if (end === -1) return 0;
    const [first, ...lines] = bytes.toString('latin1', 0, end).split('\r\n');
    const match = STATUS_LINE.exec(first!);
    if (!match) throw new HttpSyntaxError('not a response of HTTP/1.1');
    const status = Number(match[2]);
    const headers = parseHeaders(lines);
    const isNew = match[1] === '1';
    if (status >= 200) {
      this.#begin(status, headers, isNew);
      this.#options.onHead?.();
    } else if (status === 101 || !isNew || ++this.#interims > INTERIM_MAX)
      throw new HttpSyntaxError(`a response of ${status}`);
    return end + 4;
  }

  /** What is to follow this head: RFC 9112, section 6.3. */
  #begin(status: number, headers: Record<string, string>, isNew: boolean): void {
    this.status = status;
    this.headers = headers;
    const connection = (headers.connection ?? '').toLowerCase().split(/[ \t]*,[ \t]*/);
    this.isKept = !connection.includes('close') && (isNew || connection.includes('keep-alive'));
    const { 'content-length': length, 'transfer-encoding': coding } = headers;
    if (length !== undefined && !LENGTH.test(length))
      throw new HttpSyntaxError('a length that is not a number');
    if (length !== undefined && coding !== undefined) throw new HttpSyntaxError('two kinds of length');
    if (this.#options.isHead || status === 204 || status === 304) {
      this.#whole = Buffer.alloc(0);
      this.#phase = 'done';
      return;
    }
    const isGood = status < 300;
    const { sink, into, bytesMax = Number.POSITIVE_INFINITY } = this.#options;
    this.#wanted = isGood || sink ? bytesMax + 1 : ERROR_BYTES_MAX + 1;
    if (coding !== undefined) {
      if (coding.toLowerCase() !== 'chunked') throw new HttpSyntaxError('an unknown transfer coding');
      this.#phase = 'chunk-size';
      return;
    }
    if (length === undefined) {
      this.isKept = false;
      this.#phase = 'close';
      return;
    }
    this.#lengthBytes = Number(length);
    this.#wanted = Math.min(this.#wanted, this.#lengthBytes);
    if (!sink) this.#whole = isGood ? memoryFor(this.#wanted, into) : Buffer.allocUnsafe(this.#wanted);
    this.#phase = 'length';
    this.#endIfEnough();
  }

  #takeBody(bytes: Buffer): number {
    const wanted = bytes.subarray(0, this.#wanted - this.#filled);
    this.received += wanted.length;
    const { sink } = this.#options;
    if (sink) copyTo(sink, wanted);
    else if (this.#whole) wanted.copy(this.#whole, this.#filled);
    else if (wanted.length > 0) this.#parts.push(Buffer.from(wanted));
    this.#filled += wanted.length;
    this.#endIfEnough();
    return wanted.length;
  }

  #takeChunk(bytes: Buffer): number {
    const used = this.#takeBody(bytes.subarray(0, this.#chunkBytes));
    this.#chunkBytes -= used;
    if (this.#chunkBytes === 0 && !this.isDone) this.#phase = 'chunk-end';
    return used;
  }

  /** The lines around chunks. */
  #takeLine(bytes: Buffer): number {
    const end = bytes.indexOf('\r\n');
    if (end === -1) return 0;
    const line = bytes.toString('latin1', 0, end);
    if (this.#phase === 'chunk-end') {
      if (line !== '') throw new HttpSyntaxError('a chunk longer than it says');
      this.#phase = 'chunk-size';
    } else if (this.#phase === 'chunk-size') {
      const size = CHUNK_SIZE.exec(line)?.[1];
      if (size === undefined) throw new HttpSyntaxError('a chunk without a size');
      this.#chunkBytes = Number.parseInt(size, 16);
      this.#phase = this.#chunkBytes === 0 ? 'trailer' : 'chunk-data';
    } else {
      this.#trailerBytes += line.length;
      if (this.#trailerBytes > HEAD_BYTES_MAX || (line !== '' && !HEADER_LINE.test(line)))
        throw new HttpSyntaxError('a malformed trailer');
      if (line === '') this.#phase = 'done';
    }
    return end + 2;
  }

  /** A body of which there is more than anybody wants ends here, and its connection with it. */
  #endIfEnough(): void {
    if (this.#filled < this.#wanted) return;
    if (this.#filled !== this.#lengthBytes) this.isKept = false;
    this.#phase = 'done';
  }
}

function memoryFor(bytes: number, into: Buffer | undefined): Buffer {
  return into && into.length >= bytes ? into.subarray(0, bytes) : Buffer.allocUnsafe(bytes);
}

function copyTo(sink: BodySink, bytes: Buffer): void {
  for (let at = 0; at < bytes.length; ) {
    const copied = bytes.copy(sink.room(), 0, at);
    at += copied;
    sink.placed(copied);
  }
}

/** By name in lower case; what comes twice is joined, as RFC 9110 says, but for a length, which must be one. */
function parseHeaders(lines: readonly string[]): Record<string, string> {
  const headers: Record<string, string> = Object.create(null);
  for (const line of lines) {
    const match = HEADER_LINE.exec(line);
    if (!match) throw new HttpSyntaxError('a malformed header');
    const name = match[1]!.toLowerCase();
    const value = match[2]!.trimEnd();
    const before = headers[name];
    if (before !== undefined && name === 'content-length') {
      if (before !== value) throw new HttpSyntaxError('two lengths');
    } else headers[name] = before === undefined ? value : `${before}, ${value}`;
  }
  return headers;
}
