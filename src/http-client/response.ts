/**
 * Reads one HTTP/1.1 response (RFC 9112) as its bytes arrive. Strict where a lenient reader could be misled: a
 * malformed head, two lengths, or a length beside a transfer coding is an error, and so is everything over a bound.
 * Once the head has declared the length of the body, `room` lets the socket read the rest of it directly into its
 * buffer.
 */

/** Bound for the head, the lines of a chunked body, and its trailer; node:http has the same bound. */
export const HEAD_BYTES_MAX = 16 * 1024;
/** Bound for the body of an error response. */
const ERROR_BYTES_MAX = 64 * 1024;
/** 1xx responses before the final one. */
const INTERIM_MAX = 8;

const STATUS_LINE = /^HTTP\/1\.([01]) ([1-9]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?$/;
const HEADER_LINE = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)$/;
const LENGTH = /^\d{1,15}$/;
/** With extensions, which are ignored. */
const CHUNK_SIZE = /^([0-9A-Fa-f]{1,8})(?:;[\x21-\x7e]*)?$/;

/** What comes next: a body ends by its length, its last chunk, or the end of the connection. */
type Phase = 'head' | 'length' | 'close' | 'chunk-size' | 'chunk-data' | 'chunk-end' | 'trailer' | 'done';

export type HttpHeaders = Readonly<Record<string, string | undefined>>;

/** The server sends invalid HTTP, or exceeds a bound. */
export class HttpSyntaxError extends Error {}

/** Receives a body as it arrives. */
export interface BodySink {
  /** Where the next bytes go, at least one. */
  room(): Buffer;
  /** Called when `bytes` bytes have been put at the front of `room()`. */
  placed(bytes: number): void;
}

export interface HttpResponseOptions {
  /** There is no body, whatever the head says. */
  readonly isHead?: boolean;
  /** Of a longer successful body, this many bytes and one more are read. Default: no bound. */
  readonly bytesMax?: number;
  /** Buffer for a successful body if it fits; otherwise one is allocated. */
  readonly into?: Buffer | undefined;
  /** Receives any body instead, also that of an error; then `body` is empty. */
  readonly sink?: BodySink;
  /** Called once, when status and headers have arrived, before any of the body goes to the sink. */
  onHead?(): void;
}

export class HttpResponse {
  status = 0;
  headers: HttpHeaders = {};
  /** Whether the server keeps the connection for another request. */
  isKept = false;
  /** Bytes of the body so far, without framing. */
  received = 0;
  readonly #options: HttpResponseOptions;
  #phase: Phase = 'head';
  #interims = 0;
  /** As declared in the head. */
  #lengthBytes: number | undefined;
  /** The most bytes of the body that are wanted. */
  #wanted = 0;
  #filled = 0;
  /** Where a body of a known length goes. */
  #whole: Buffer | undefined;
  readonly #parts: Buffer[] = [];
  /** What is left of the chunk that is being read. */
  #chunkBytes = 0;
  #trailerBytes = 0;

  constructor(options: HttpResponseOptions) {
    this.#options = options;
  }

  get isDone(): boolean {
    return this.#phase === 'done';
  }

  /** Once it is done: the whole body, or as much of it as was wanted. */
  get body(): Buffer {
    return this.#whole ?? Buffer.concat(this.#parts);
  }

  /** How much has arrived, for an error message. */
  get text(): string {
    return `${this.received} of ${this.#lengthBytes ?? 'an unknown number of'} bytes`;
  }

  /** Where the rest of the body may be read directly, followed by `placed`; undefined if `take` must see it. */
  get room(): Buffer | undefined {
    if (this.#phase !== 'length') return undefined;
    const { sink } = this.#options;
    return sink ? sink.room().subarray(0, this.#wanted - this.#filled) : this.#whole?.subarray(this.#filled);
  }

  /** To be called when `bytes` bytes have been read into `room`. */
  placed(bytes: number): void {
    this.#options.sink?.placed(bytes);
    this.#filled += bytes;
    this.received += bytes;
    this.#endIfEnough();
  }

  /**
   * Consumes from the front of `bytes` what it can parse and returns how much that was; the caller must pass the rest
   * again, followed by new bytes. Throws HttpSyntaxError.
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

  /** To be called when the connection has ended. Returns false if the response is incomplete. */
  end(): boolean {
    if (this.#phase === 'close') this.#phase = 'done';
    return this.isDone;
  }

  /** One step in the current phase; returns the number of bytes consumed. */
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
    if (!match) throw new HttpSyntaxError('not an HTTP/1.1 response');
    const status = Number(match[2]);
    const headers = parseHeaders(lines);
    const isNew = match[1] === '1';
    if (status >= 200) {
      this.#begin(status, headers, isNew);
      this.#options.onHead?.();
    } else if (status === 101 || !isNew || ++this.#interims > INTERIM_MAX)
      throw new HttpSyntaxError(`an unexpected response of status ${status}`);
    return end + 4;
  }

  /** Determines what follows this head: RFC 9112, section 6.3. */
  #begin(status: number, headers: Record<string, string>, isNew: boolean): void {
    this.status = status;
    this.headers = headers;
    const connection = (headers.connection ?? '').toLowerCase().split(/[ \t]*,[ \t]*/);
    this.isKept = !connection.includes('close') && (isNew || connection.includes('keep-alive'));
    const { 'content-length': length, 'transfer-encoding': coding } = headers;
    if (length !== undefined && !LENGTH.test(length))
      throw new HttpSyntaxError('a length that is not a number');
    if (length !== undefined && coding !== undefined)
      throw new HttpSyntaxError('both a length and a transfer coding');
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
      if (line !== '') throw new HttpSyntaxError('a chunk longer than its declared size');
      this.#phase = 'chunk-size';
    } else if (this.#phase === 'chunk-size') {
      const size = CHUNK_SIZE.exec(line)?.[1];
      if (size === undefined) throw new HttpSyntaxError('a chunk without a valid size');
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

  /** A body that is longer than wanted ends here, and so does its connection. */
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

/** By name in lower case; repeated headers are joined, as RFC 9110 says, except a length, which must be unique. */
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
