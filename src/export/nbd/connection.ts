/**
 * One client after its handshake. Every request in what a read brought is taken in one go; what memory has is
 * answered on the spot, small replies copied behind one another into one buffer, so that a batch costs one write.
 * What has to be fetched is answered whenever it comes, in any order. A client that asks without reading its
 * answers is not read from until it does, so memory per connection is bounded.
 */
import type net from 'node:net';
import type { PinnedBytes } from '../../drive/block-device.ts';
import { errorText, LazydiskError } from '../../errors.ts';
import type { Session } from './handshake.ts';
import { type NbdCounters, opOf } from './ops.ts';
import {
  BASE_ALLOCATION_ID,
  CHUNK_DONE,
  CHUNK_TYPE,
  COMMAND,
  COMMAND_FLAG,
  EXTENT_HOLE_AND_ZERO,
  NBD_ERROR,
  putSimpleReply,
  putStructuredHeader,
  REQUEST_BYTES,
  type Request,
  readRequest,
  SIMPLE_REPLY_BYTES,
  STRUCTURED_HEADER_BYTES,
  structuredError,
} from './protocol.ts';
import { refusalOf } from './refusal.ts';

const BATCH_BYTES = 256 * 1024;
/** Replies up to this long are copied into the batch; longer ones are sent from where they lie. */
const COPIED_BYTES_MAX = 32 * 1024;
/** Reads longer than this are answered piece by piece, so that one request cannot pin all of memory. */
const PIECE_BYTES = 2 * 1024 * 1024;
/** A run of zeroes at least this long is sent as a hole. */
const HOLE_BYTES_MIN = 64 * 1024;
const REQUESTS_MAX = 128;
const REQUESTED_BYTES_MAX = 64 * 1024 * 1024;
const UNSENT_BYTES_MAX = 16 * 1024 * 1024;
const EXTENTS_MAX = 4096;

/** A part of a read that is sent on its own. */
interface Piece {
  readonly offset: number;
  lengthBytes: number;
  readonly hole: boolean;
}

export class NbdConnection {
  readonly #socket: net.Socket;
  readonly #session: Session;
  readonly #counters: NbdCounters;
  readonly #abort = new AbortController();
  /** The start of a request whose end has not arrived. */
  #partial: Buffer = Buffer.alloc(0);
  /** Bytes of a refused write's payload that are still to be thrown away. */
  #skipBytes = 0;
  readonly #queue: Request[] = [];
  #running = 0;
  #runningBytes = 0;
  #batch: Buffer | undefined;
  #batchBytes = 0;
  #spare: Buffer | undefined;
  #flushPlanned = false;
  /** While a read's requests are taken: they are sent together at its end. */
  #inPass = false;
  #paused = false;
  #ending = false;
  #closed = false;

  constructor(socket: net.Socket, session: Session, counters: NbdCounters) {
    this.#socket = socket;
    this.#session = session;
    this.#counters = counters;
    socket.on('drain', () => this.#continue());
  }

  get device() {
    return this.#session.device;
  }

  /** Takes what a read brought; `bytes` may be reused afterwards. False: read no more until told (`resume`). */
  received(bytes: Buffer): boolean {
    let at = 0;
    this.#inPass = true;
    while (at < bytes.length && !this.#closed && !this.#ending) {
      if (this.#skipBytes > 0) {
        const skip = Math.min(this.#skipBytes, bytes.length - at);
        this.#skipBytes -= skip;
        at += skip;
      } else if (this.#partial.length > 0 || bytes.length - at < REQUEST_BYTES) {
        const take = Math.min(REQUEST_BYTES - this.#partial.length, bytes.length - at);
        this.#partial = Buffer.concat([this.#partial, bytes.subarray(at, at + take)]);
        at += take;
        if (this.#partial.length < REQUEST_BYTES) break;
        const whole = this.#partial;
        this.#partial = Buffer.alloc(0);
        this.#accept(readRequest(whole, 0));
      } else {
        this.#accept(readRequest(bytes, at));
        at += REQUEST_BYTES;
      }
    }
    this.#inPass = false;
    this.#flush();
    this.#paused = this.#isFull();
    return !this.#paused;
  }

  /** Ends when what was taken is answered; nothing new is taken. */
  end(): void {
    this.#ending = true;
    this.#endIfIdle();
  }

  /** The socket is gone: what is in flight is cancelled. */
  closed(): void {
    this.#closed = true;
    this.#queue.length = 0;
    this.#abort.abort();
  }

  #isFull(): boolean {
    return this.#queue.length > 0 || this.#socket.writableLength > UNSENT_BYTES_MAX;
  }

  /** Whether one more request may start now. */
  get #hasRoom(): boolean {
    return (
      this.#running < REQUESTS_MAX &&
      this.#runningBytes < REQUESTED_BYTES_MAX &&
      this.#socket.writableLength <= UNSENT_BYTES_MAX
    );
  }

  #continue(): void {
    while (this.#queue.length > 0 && this.#hasRoom) this.#serve(this.#queue.shift()!);
    this.#flush();
    if (this.#paused && !this.#isFull() && !this.#closed) {
      this.#paused = false;
      this.#socket.resume();
    }
  }

  #accept(request: Request | undefined): void {
    if (!request) {
      // Out of step: nothing that follows can be understood.
      this.#socket.destroy();
      this.#closed = true;
      return;
    }
    if (request.type === COMMAND.disconnect) {
      this.end();
      return;
    }
    if (request.type === COMMAND.write) this.#skipBytes = request.lengthBytes;
    if (this.#queue.length > 0 || !this.#hasRoom) this.#queue.push(request);
    else this.#serve(request);
  }

  #serve(request: Request): void {
    const { device } = this.#session;
    this.#counters.ops[opOf(request)]++;
    const refusal = refusalOf(request, this.#session);
    if (refusal) {
      this.#fail(request, refusal.error, refusal.text);
    } else if (request.type === COMMAND.read) {
      this.#read(request);
    } else if (request.type === COMMAND.blockStatus) {
      this.#blockStatus(request);
    } else {
      // What is left takes no answer but that it is done: a cache request is a wish, a flush has nothing to write.
      if (request.type === COMMAND.cache) device.prefetch(request.offset, request.lengthBytes);
      this.#done(request);
    }
  }

  #read(request: Request): void {
    const { flags, offset, lengthBytes } = request;
    const mayBeCut = this.#session.structured && (flags & COMMAND_FLAG.df) === 0;
    if (mayBeCut && lengthBytes >= HOLE_BYTES_MIN) {
      const pieces = this.#pieces(offset, lengthBytes);
      if (pieces.length > 1 || pieces[0]!.hole) {
        this.#wait(request, this.#sendPieces(request, pieces));
        return;
      }
    } else if (lengthBytes > PIECE_BYTES) {
      this.#wait(request, this.#sendWhole(request));
      return;
    }
    const pinned = this.#session.device.tryRead(offset, lengthBytes);
    if (pinned) {
      this.#sendData(request, offset, lengthBytes, pinned, true);
      return;
    }
    const fetched = this.#fetch(offset, lengthBytes);
    this.#wait(
      request,
      fetched.then((bytes) => this.#sendData(request, offset, lengthBytes, bytes, true)),
    );
  }

  /** The range in order: holes, and data of at most PIECE_BYTES each. */
  #pieces(offset: number, lengthBytes: number): Piece[] {
    const pieces: Piece[] = [];
    const end = offset + lengthBytes;
    let at = offset;
    for (const run of this.#session.device.extents(offset, lengthBytes, EXTENTS_MAX)) {
      const hole = run.zero && run.lengthBytes >= HOLE_BYTES_MIN;
      const runEnd = Math.min(end, at + run.lengthBytes);
      while (at < runEnd) {
        const last = pieces.at(-1);
        const joins = !hole && last && !last.hole && last.lengthBytes < PIECE_BYTES;
        const take = hole ? runEnd - at : Math.min(runEnd - at, PIECE_BYTES - (joins ? last.lengthBytes : 0));
        if (joins) last.lengthBytes += take;
        else pieces.push({ offset: at, lengthBytes: take, hole });
        at += take;
      }
    }
    // More extents than are looked at: the rest is sent as data.
    for (; at < end; at += PIECE_BYTES) {
      pieces.push({ offset: at, lengthBytes: Math.min(PIECE_BYTES, end - at), hole: false });
    }
    return pieces;
  }

  /** Bytes of the device, pinned; if the connection has gone meanwhile they are let go and it throws. */
  async #fetch(offset: number, lengthBytes: number): Promise<PinnedBytes> {
    const { device } = this.#session;
    const bytes =
      device.tryRead(offset, lengthBytes) ?? (await device.read(offset, lengthBytes, this.#abort.signal));
    if (!this.#closed) return bytes;
    bytes.release();
    throw new LazydiskError('ABORTED', 'the client has gone');
  }

  /** A structured reply, one piece pinned at a time. */
  async #sendPieces(request: Request, pieces: readonly Piece[]): Promise<void> {
    for (const [n, { offset, lengthBytes, hole }] of pieces.entries()) {
      const isLast = n === pieces.length - 1;
      if (hole) this.#sendHole(request, offset, lengthBytes, isLast);
      else this.#sendData(request, offset, lengthBytes, await this.#fetch(offset, lengthBytes), isLast);
      if (!isLast && this.#socket.writableLength > UNSENT_BYTES_MAX) await this.#drained();
    }
  }

  /** A long reply that must be one: copied together first, since an error cannot be told after its header. */
  async #sendWhole(request: Request): Promise<void> {
    const { offset, lengthBytes } = request;
    const whole = Buffer.allocUnsafeSlow(lengthBytes);
    for (let at = 0; at < lengthBytes; at += PIECE_BYTES) {
      const bytes = await this.#fetch(offset + at, Math.min(PIECE_BYTES, lengthBytes - at));
      let to = at;
      for (const part of bytes.parts) {
        whole.set(part, to);
        to += part.length;
      }
      bytes.release();
    }
    this.#sendData(request, offset, lengthBytes, { parts: [whole], release() {} }, true);
  }

  #drained(): Promise<void> {
    return new Promise((resolve) => {
      const go = () => {
        this.#socket.off('drain', go);
        this.#socket.off('close', go);
        resolve();
      };
      this.#socket.on('drain', go);
      this.#socket.on('close', go);
    });
  }

  #blockStatus(request: Request): void {
    const { flags, offset, lengthBytes } = request;
    const extents = this.#session.device.extents(
      offset,
      lengthBytes,
      (flags & COMMAND_FLAG.reqOne) !== 0 ? 1 : EXTENTS_MAX,
    );
    const payloadBytes = 4 + extents.length * 8;
    const chunk = Buffer.alloc(STRUCTURED_HEADER_BYTES + payloadBytes);
    putStructuredHeader(chunk, 0, request, CHUNK_TYPE.blockStatus, CHUNK_DONE, payloadBytes);
    chunk.writeUInt32BE(BASE_ALLOCATION_ID, STRUCTURED_HEADER_BYTES);
    extents.forEach((extent, n) => {
      const at = STRUCTURED_HEADER_BYTES + 4 + n * 8;
      // An extent's length has 32 bits; the last 4 KiB of them are left out so that borders stay aligned.
      chunk.writeUInt32BE(Math.min(extent.lengthBytes, 2 ** 32 - 4096), at);
      chunk.writeUInt32BE(extent.zero ? EXTENT_HOLE_AND_ZERO : 0, at + 4);
    });
    this.#append(chunk);
  }

  /** Counts a request as in flight until `work` ends; what it throws is the client's answer. */
  #wait(request: Request, work: Promise<void>): void {
    const mark = { startedMs: performance.now() };
    this.#counters.waiting.add(mark);
    this.#running++;
    this.#runningBytes += request.lengthBytes;
    work
      .catch((error: unknown) => {
        if (!this.#closed) this.#fail(request, NBD_ERROR.EIO, errorText(error));
      })
      .finally(() => {
        this.#counters.waiting.delete(mark);
        this.#running--;
        this.#runningBytes -= request.lengthBytes;
        if (this.#closed) return;
        if (this.#queue.length > 0 || this.#paused) this.#continue();
        this.#planFlush();
        this.#endIfIdle();
      });
  }

  #done(request: Request): void {
    const reply = Buffer.alloc(SIMPLE_REPLY_BYTES);
    putSimpleReply(reply, 0, request, 0);
    this.#append(reply);
  }

  #fail(request: Request, error: number, text: string): void {
    this.#counters.errors++;
    if (this.#session.structured) {
      this.#append(structuredError(request, error, text));
      return;
    }
    const reply = Buffer.alloc(SIMPLE_REPLY_BYTES);
    putSimpleReply(reply, 0, request, error);
    this.#append(reply);
  }

  #sendHole(request: Request, offset: number, lengthBytes: number, isLast: boolean): void {
    const chunk = Buffer.alloc(STRUCTURED_HEADER_BYTES + 12);
    putStructuredHeader(chunk, 0, request, CHUNK_TYPE.offsetHole, isLast ? CHUNK_DONE : 0, 12);
    chunk.writeBigUInt64BE(BigInt(offset), STRUCTURED_HEADER_BYTES);
    chunk.writeUInt32BE(lengthBytes, STRUCTURED_HEADER_BYTES + 8);
    this.#counters.readBytes += lengthBytes;
    this.#append(chunk);
  }

  /** A reply's header and data; the bytes are let go once they are copied or sent. */
  #sendData(
    request: Request,
    offset: number,
    lengthBytes: number,
    bytes: PinnedBytes,
    isLast: boolean,
  ): void {
    this.#counters.readBytes += lengthBytes;
    const { structured } = this.#session;
    const headerBytes = structured ? STRUCTURED_HEADER_BYTES + 8 : SIMPLE_REPLY_BYTES;
    const copies = lengthBytes <= COPIED_BYTES_MAX;
    const batch = this.#room(copies ? headerBytes + lengthBytes : headerBytes);
    let at = this.#batchBytes;
    if (structured) {
      const flags = isLast ? CHUNK_DONE : 0;
      putStructuredHeader(batch, at, request, CHUNK_TYPE.offsetData, flags, 8 + lengthBytes);
      batch.writeUInt32BE(Math.floor(offset / 2 ** 32), at + STRUCTURED_HEADER_BYTES);
      batch.writeUInt32BE(offset % 2 ** 32, at + STRUCTURED_HEADER_BYTES + 4);
    } else {
      putSimpleReply(batch, at, request, 0);
    }
    at += headerBytes;
    if (copies) {
      for (const part of bytes.parts) {
        batch.set(part, at);
        at += part.length;
      }
      bytes.release();
      this.#batchBytes = at;
      this.#planFlush();
      return;
    }
    this.#batchBytes = at;
    this.#socket.cork();
    this.#flush();
    bytes.parts.forEach((part, n) => {
      const isEnd = n === bytes.parts.length - 1;
      this.#socket.write(part, isEnd ? () => bytes.release() : undefined);
    });
    this.#socket.uncork();
  }

  /** Puts a small, complete message behind what is to be sent. */
  #append(message: Buffer): void {
    message.copy(this.#room(message.length), this.#batchBytes);
    this.#batchBytes += message.length;
    this.#planFlush();
  }

  /** The batch, with room for `bytes` more. */
  #room(bytes: number): Buffer {
    if (this.#batch && this.#batchBytes + bytes > this.#batch.length) this.#flush();
    if (!this.#batch) {
      this.#batch = this.#spare ?? Buffer.allocUnsafeSlow(BATCH_BYTES);
      this.#spare = undefined;
      this.#batchBytes = 0;
    }
    return this.#batch;
  }

  /** What is answered outside a read's own pass is sent at the end of this turn of the event loop. */
  #planFlush(): void {
    if (this.#flushPlanned || this.#inPass) return;
    this.#flushPlanned = true;
    process.nextTick(() => {
      this.#flushPlanned = false;
      this.#flush();
    });
  }

  #flush(): void {
    const batch = this.#batch;
    if (!batch || this.#batchBytes === 0 || this.#closed) return;
    const bytes = this.#batchBytes;
    this.#batch = undefined;
    this.#batchBytes = 0;
    // Mostly the kernel takes it at once, and the buffer is back before the next batch.
    this.#socket.write(batch.subarray(0, bytes), () => {
      this.#spare = batch;
    });
  }

  #endIfIdle(): void {
    if (!this.#ending || this.#running > 0 || this.#queue.length > 0 || this.#closed) return;
    this.#flush();
    this.#socket.end();
  }
}
