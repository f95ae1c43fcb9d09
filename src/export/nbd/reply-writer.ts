/**
 * Outgoing answers to one client. Small ones are copied one after another into one buffer, so that a batch of requests
 * costs one write; long data is sent from where it is, and released when it is sent. All answers of one pass over
 * received bytes leave with one system call.
 */
import type { BlockExtent, PinnedBytes } from '../../drive/block-device.ts';
import { SHORT_READ_BYTES } from '../byte-budget.ts';
import { type NbdChannel, PARTS_MAX } from './channel.ts';
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
/**
 * Data up to this length is copied into the batch: that is cheaper than a part of a gathering write, and pins nothing.
 */
const COPIED_BYTES_MAX = SHORT_READ_BYTES;

/**
 * Batch buffers that a pool keeps, for two of the longest answers; a buffer left to the garbage collector may stay for
 * minutes.
 */
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

  /** Appends `bytes`, which must fit. */
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
  readonly #channel: NbdChannel;
  readonly #structured: boolean;
  readonly #pool: BatchPool;
  /** What is collected: whole pieces, and after them the batch from `#batchFrom` to `#batchBytes`. */
  #parts: Uint8Array[] = [];
  #partsBytes = 0;
  #pinned: PinnedBytes[] = [];
  #batch: Buffer | undefined;
  #batchFrom = 0;
  #batchBytes = 0;
  #inPass = false;
  #isFlushPlanned = false;

  constructor(channel: NbdChannel, structured: boolean, pool: BatchPool) {
    this.#channel = channel;
    this.#structured = structured;
    this.#pool = pool;
  }

  /** Bytes that the kernel has not taken yet. */
  get unsentBytes(): number {
    return this.#channel.unsentBytes + this.#partsBytes + this.#batchBytes - this.#batchFrom;
  }

  /** Until `endPass`, only full batches are sent. */
  beginPass(): void {
    this.#inPass = true;
  }

  endPass(): void {
    this.#inPass = false;
    this.flush();
  }

  /** Answers a request that succeeded and has no data. */
  done(request: Request): void {
    putSimpleReply(this.#room(SIMPLE_REPLY_BYTES), this.#batchBytes, request, 0);
    this.#added(SIMPLE_REPLY_BYTES);
  }

  /** `error` is an NBD_ERROR; the text reaches only clients with structured replies. */
  error(request: Request, error: number, text: string): void {
    if (this.#structured) {
      this.#append(structuredError(request, error, text));
      return;
    }
    putSimpleReply(this.#room(SIMPLE_REPLY_BYTES), this.#batchBytes, request, error);
    this.#added(SIMPLE_REPLY_BYTES);
  }

  /** Data of a read, or of a part of one; `bytes` are released once they are copied or sent, or will never be sent. */
  data(request: Request, offset: number, lengthBytes: number, bytes: PinnedBytes, isLast: boolean): void {
    const isCopied = lengthBytes <= COPIED_BYTES_MAX;
    // Before the header, because a message must not be split: an answer of the native thread could come in between.
    if (!isCopied && this.#parts.length + bytes.parts.length + 2 > PARTS_MAX) this.flush();
    const headerBytes = this.#structured ? STRUCTURED_HEADER_BYTES + 8 : SIMPLE_REPLY_BYTES;
    const batch = this.#room(isCopied ? headerBytes + lengthBytes : headerBytes);
    let at = this.#batchBytes;
    if (this.#structured) {
      const flags = isLast ? CHUNK_DONE : 0;
      putStructuredHeader(batch, at, request, {
        type: CHUNK_TYPE.offsetData,
        flags,
        payloadBytes: 8 + lengthBytes,
      });
      batch.writeUInt32BE(Math.floor(offset / 2 ** 32), at + STRUCTURED_HEADER_BYTES);
      batch.writeUInt32BE(offset % 2 ** 32, at + STRUCTURED_HEADER_BYTES + 4);
    } else {
      putSimpleReply(batch, at, request, 0);
    }
    at += headerBytes;
    if (!isCopied) {
      this.#added(headerBytes);
      this.#addInPlace(bytes);
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
    const flags = isLast ? CHUNK_DONE : 0;
    putStructuredHeader(chunk, 0, request, { type: CHUNK_TYPE.offsetHole, flags, payloadBytes: 12 });
    chunk.writeBigUInt64BE(BigInt(offset), STRUCTURED_HEADER_BYTES);
    chunk.writeUInt32BE(lengthBytes, STRUCTURED_HEADER_BYTES + 8);
    this.#append(chunk);
  }

  /** The extents of base:allocation; structured only. */
  blockStatus(request: Request, extents: readonly BlockExtent[]): void {
    const payloadBytes = 4 + extents.length * 8;
    const chunk = Buffer.alloc(STRUCTURED_HEADER_BYTES + payloadBytes);
    putStructuredHeader(chunk, 0, request, { type: CHUNK_TYPE.blockStatus, flags: CHUNK_DONE, payloadBytes });
    chunk.writeUInt32BE(BASE_ALLOCATION_ID, STRUCTURED_HEADER_BYTES);
    let at = STRUCTURED_HEADER_BYTES + 4;
    for (const { lengthBytes, zero } of extents) {
      chunk.writeUInt32BE(lengthBytes, at);
      chunk.writeUInt32BE(zero ? EXTENT_HOLE_AND_ZERO : 0, at + 4);
      at += 8;
    }
    this.#append(chunk);
  }

  /** Sends what has been collected. */
  flush(): void {
    this.#endPart();
    if (this.#parts.length === 0) return;
    const [parts, pinned, batch] = [this.#parts, this.#pinned, this.#batch];
    this.#parts = [];
    this.#pinned = [];
    this.#batch = undefined;
    this.#partsBytes = this.#batchFrom = this.#batchBytes = 0;
    this.#channel.write(parts, () => {
      for (const bytes of pinned) bytes.release();
      if (batch) this.#pool.give(batch);
    });
  }

  #addInPlace(bytes: PinnedBytes): void {
    this.#endPart();
    for (const part of bytes.parts) {
      this.#parts.push(part);
      this.#partsBytes += part.length;
    }
    this.#pinned.push(bytes);
  }

  /** Ends the current part of the batch; what comes next in the batch starts a new one. */
  #endPart(): void {
    if (!this.#batch || this.#batchBytes === this.#batchFrom) return;
    this.#parts.push(this.#batch.subarray(this.#batchFrom, this.#batchBytes));
    this.#partsBytes += this.#batchBytes - this.#batchFrom;
    this.#batchFrom = this.#batchBytes;
  }

  /** Adds a complete message, no longer than a batch. */
  #append(message: Buffer): void {
    message.copy(this.#room(message.length), this.#batchBytes);
    this.#added(message.length);
  }

  /** Returns the batch, with room for `bytes` more at #batchBytes. */
  #room(bytes: number): Buffer {
    if (this.#batch && this.#batchBytes + bytes > BATCH_BYTES) this.flush();
    this.#batch ??= this.#pool.take();
    return this.#batch;
  }

  /** An answer outside a pass is sent at the end of this turn of the event loop. */
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
