/**
 * Answers on their way to one client. Small ones are copied behind one another into one buffer, so that a batch of
 * requests costs one write; long data is sent from where it lies, and let go when it is sent. All that is answered
 * within one pass over what a read brought leaves with one system call, past net.Socket while it has nothing queued.
 */
import type net from 'node:net';
import { socketSend } from '../../../native/index.ts';
import type { BlockExtent, PinnedBytes } from '../../drive/block-device.ts';
import { SHORT_READ_BYTES } from '../byte-budget.ts';
import {
  BASE_ALLOCATION_ID,
  CHUNK_DONE,
  CHUNK_TYPE,
  EXTENT_HOLE_AND_ZERO,
  putSimpleReply,
  putStructuredHeader,
  type Request,
  SIMPLE_REPLY_BYTES,
  STRUCTURED_HEADER_BYTES,
  structuredError,
} from './protocol.ts';

const BATCH_BYTES = 256 * 1024;
/** Data up to this long is copied into the batch: cheaper than a piece of a gathering write, and it pins nothing. */
const COPIED_BYTES_MAX = SHORT_READ_BYTES;

/** Batch buffers that a pool keeps: for two of the longest answers. What is left to the collector may stay for minutes. */
const SPARE_BATCHES_MAX = 256;

/** Batch buffers, shared by all connections of a server. */
export class BatchPool {
  readonly #spare: Buffer[] = [];

  take(): Buffer {
    return this.#spare.pop() ?? Buffer.allocUnsafeSlow(BATCH_BYTES);
  }

  give(batch: Buffer): void {
    if (this.#spare.length < SPARE_BATCHES_MAX) this.#spare.push(batch);
  }
}

/** Bytes in batch buffers, filled from the front. */
export class PooledCopy implements PinnedBytes {
  readonly parts: readonly Buffer[];
  readonly #pool: BatchPool;
  readonly #batches: readonly Buffer[];
  #filledBytes = 0;

  constructor(pool: BatchPool, lengthBytes: number) {
    this.#pool = pool;
    this.#batches = Array.from({ length: Math.ceil(lengthBytes / BATCH_BYTES) }, () => pool.take());
    this.parts = this.#batches.map((batch, n) => batch.subarray(0, lengthBytes - n * BATCH_BYTES));
  }

  /** Adds `bytes`, of which there must not be more than fit. */
  append(bytes: Uint8Array): void {
    for (let from = 0; from < bytes.length; ) {
      const part = this.parts[Math.floor(this.#filledBytes / BATCH_BYTES)]!;
      const at = this.#filledBytes % BATCH_BYTES;
      const to = Math.min(bytes.length, from + part.length - at);
      part.set(bytes.subarray(from, to), at);
      this.#filledBytes += to - from;
      from = to;
    }
  }

  release(): void {
    for (const batch of this.#batches) this.#pool.give(batch);
  }
}

export class ReplyWriter {
  readonly #socket: net.Socket;
  readonly #fd: number;
  readonly #structured: boolean;
  readonly #pool: BatchPool;
  readonly #onSent: () => void;
  #batch: Buffer | undefined;
  #batchBytes = 0;
  #inPass = false;
  #isCorked = false;
  #isFlushPlanned = false;

  /**
   * `fd` is the socket's descriptor. `onSent` is called whenever the kernel has taken something, with `unsentBytes`
   * already lower; it may be called in the middle of a pass.
   */
  constructor(socket: net.Socket, fd: number, structured: boolean, pool: BatchPool, onSent: () => void) {
    this.#socket = socket;
    this.#fd = fd;
    this.#structured = structured;
    this.#pool = pool;
    this.#onSent = onSent;
  }

  /** What the kernel has not taken yet. */
  get unsentBytes(): number {
    return this.#socket.writableLength + this.#batchBytes;
  }

  /** Until `endPass` nothing is sent but full batches. */
  beginPass(): void {
    this.#inPass = true;
  }

  endPass(): void {
    this.#inPass = false;
    this.flush();
    if (!this.#isCorked) return;
    this.#isCorked = false;
    this.#socket.uncork();
  }

  /** The request is done, and has no data. */
  done(request: Request): void {
    putSimpleReply(this.#room(SIMPLE_REPLY_BYTES), this.#batchBytes, request, 0);
    this.#added(SIMPLE_REPLY_BYTES);
  }

  /** `error` is an NBD_ERROR; the text reaches only clients that have structured replies. */
  error(request: Request, error: number, text: string): void {
    if (this.#structured) {
      this.#append(structuredError(request, error, text));
      return;
    }
    putSimpleReply(this.#room(SIMPLE_REPLY_BYTES), this.#batchBytes, request, error);
    this.#added(SIMPLE_REPLY_BYTES);
  }

  /** Data of a read, or of a part of one; `bytes` are released once they are copied or sent, or never will be. */
  data(request: Request, offset: number, lengthBytes: number, bytes: PinnedBytes, isLast: boolean): void {
    const isCopied = lengthBytes <= COPIED_BYTES_MAX;
    const headerBytes = this.#structured ? STRUCTURED_HEADER_BYTES + 8 : SIMPLE_REPLY_BYTES;
    const batch = this.#room(isCopied ? headerBytes + lengthBytes : headerBytes);
    let at = this.#batchBytes;
    if (this.#structured) {
      const flags = isLast ? CHUNK_DONE : 0;
      putStructuredHeader(batch, at, request, CHUNK_TYPE.offsetData, flags, 8 + lengthBytes);
      batch.writeUInt32BE(Math.floor(offset / 2 ** 32), at + STRUCTURED_HEADER_BYTES);
      batch.writeUInt32BE(offset % 2 ** 32, at + STRUCTURED_HEADER_BYTES + 4);
    } else {
      putSimpleReply(batch, at, request, 0);
    }
    at += headerBytes;
    if (!isCopied) {
      this.#batchBytes = at;
      this.#sendInPlace(bytes);
      return;
    }
    for (const part of bytes.parts) {
      batch.set(part, at);
      at += part.length;
    }
    bytes.release();
    this.#added(at - this.#batchBytes);
  }

  /** A part of a read that is zeroes; structured only. */
  hole(request: Request, offset: number, lengthBytes: number, isLast: boolean): void {
    const chunk = Buffer.alloc(STRUCTURED_HEADER_BYTES + 12);
    putStructuredHeader(chunk, 0, request, CHUNK_TYPE.offsetHole, isLast ? CHUNK_DONE : 0, 12);
    chunk.writeBigUInt64BE(BigInt(offset), STRUCTURED_HEADER_BYTES);
    chunk.writeUInt32BE(lengthBytes, STRUCTURED_HEADER_BYTES + 8);
    this.#append(chunk);
  }

  /** The extents of base:allocation; structured only. */
  blockStatus(request: Request, extents: readonly BlockExtent[]): void {
    const payloadBytes = 4 + extents.length * 8;
    const chunk = Buffer.alloc(STRUCTURED_HEADER_BYTES + payloadBytes);
    putStructuredHeader(chunk, 0, request, CHUNK_TYPE.blockStatus, CHUNK_DONE, payloadBytes);
    chunk.writeUInt32BE(BASE_ALLOCATION_ID, STRUCTURED_HEADER_BYTES);
    let at = STRUCTURED_HEADER_BYTES + 4;
    for (const { lengthBytes, zero } of extents) {
      chunk.writeUInt32BE(lengthBytes, at);
      chunk.writeUInt32BE(zero ? EXTENT_HOLE_AND_ZERO : 0, at + 4);
      at += 8;
    }
    this.#append(chunk);
  }

  /** Sends what is collected, or gives it to the socket. */
  flush(): void {
    const sentBytes = this.#batch ? this.#sendNow(this.#batch) : 0;
    if (sentBytes < this.#batchBytes) {
      this.#enqueue(sentBytes);
    } else if (this.#batch) {
      this.#pool.give(this.#batch);
      this.#batch = undefined;
      this.#batchBytes = 0;
      this.#onSent();
    }
  }

  /** How much of the batch the kernel took at once; an error is left to the socket's own write to meet. */
  #sendNow(batch: Buffer): number {
    const { destroyed, writableEnded, writableLength } = this.#socket;
    // SAFETY: the descriptor is the socket's until it is destroyed, and nothing of the socket's may be overtaken.
    if (destroyed || writableEnded || writableLength > 0) return 0;
    // net.Socket's bookkeeping for a write was about a tenth of the CPU time of a 4 KiB read, at depth 1 and 16.
    return Math.max(0, socketSend(this.#fd, batch, this.#batchBytes));
  }

  /** Gives the batch from `from` on to the socket, behind what it has. */
  #enqueue(from: number): void {
    const batch = this.#batch;
    if (!batch) return;
    const bytes = batch.subarray(from, this.#batchBytes);
    this.#batch = undefined;
    this.#batchBytes = 0;
    this.#socket.write(bytes, () => {
      this.#pool.give(batch);
      this.#onSent();
    });
  }

  #sendInPlace(bytes: PinnedBytes): void {
    if (!this.#isCorked) this.#socket.cork();
    if (this.#inPass) this.#isCorked = true;
    // Header and data in one gathering write.
    this.#enqueue(0);
    const last = bytes.parts.length - 1;
    bytes.parts.forEach((part, n) => {
      if (n < last) this.#socket.write(part);
      else this.#socket.write(part, () => this.#sent(bytes));
    });
    if (!this.#isCorked) this.#socket.uncork();
  }

  #sent(bytes: PinnedBytes): void {
    bytes.release();
    this.#onSent();
  }

  /** A complete message of any length up to a batch's. */
  #append(message: Buffer): void {
    message.copy(this.#room(message.length), this.#batchBytes);
    this.#added(message.length);
  }

  /** The batch, with room for `bytes` more at #batchBytes. */
  #room(bytes: number): Buffer {
    if (this.#batch && this.#batchBytes + bytes > BATCH_BYTES) this.flush();
    this.#batch ??= this.#pool.take();
    return this.#batch;
  }

  /** What is answered outside a pass is sent at the end of this turn of the event loop. */
  #added(bytes: number): void {
    this.#batchBytes += bytes;
    if (this.#inPass || this.#isFlushPlanned) return;
    this.#isFlushPlanned = true;
    process.nextTick(() => {
      this.#isFlushPlanned = false;
      this.flush();
    });
  }
}
