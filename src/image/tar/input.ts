/**
 * Where a tar archive's bytes come from: a stream, read once from front to end, or a file, in which bodies are
 * skipped by seeking. Bytes are handed out as views of the buffers they arrived in; nothing is copied unless a
 * piece straddles two of them.
 */
import type { FileHandle } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { LazydiskError } from '../../errors.ts';

export interface TarInput {
  /** Bytes handed out or skipped so far. */
  readonly position: number;
  /** Exactly `lengthBytes` bytes; fewer only where the input ends. Valid as long as the caller likes. */
  take(lengthBytes: number): Promise<Buffer>;
  /** What lies ready, 1 to `maxBytes` bytes; empty only at the end. */
  some(maxBytes: number): Promise<Buffer>;
  /** Passes over bytes; resolves to how many there were, less than `lengthBytes` only at the end. */
  skip(lengthBytes: number): Promise<number>;
}

const EMPTY = Buffer.alloc(0);

/** A tar that streams past. Throws UNSUPPORTED when it grows beyond `limitBytes`: the stop of every bomb. */
export class StreamInput implements TarInput {
  position = 0;
  readonly #chunks: AsyncIterator<Buffer>;
  readonly #limitBytes: number;
  #received = 0;
  #current: Buffer = EMPTY;

  constructor(stream: Readable, limitBytes: number) {
    this.#chunks = stream[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
    this.#limitBytes = limitBytes;
  }

  async take(lengthBytes: number): Promise<Buffer> {
    if (this.#current.length >= lengthBytes) return this.#cut(lengthBytes);
    const parts: Buffer[] = [];
    let missing = lengthBytes;
    while (missing > 0) {
      const part = await this.some(missing);
      if (part.length === 0) break;
      parts.push(part);
      missing -= part.length;
    }
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  }

  async some(maxBytes: number): Promise<Buffer> {
    while (this.#current.length === 0) {
      const next = await this.#chunks.next();
      if (next.done) return EMPTY;
      this.#current = next.value;
      this.#received += next.value.length;
      if (this.#received > this.#limitBytes) {
        throw new LazydiskError(
          'UNSUPPORTED',
          `the layers unpack to more than the limit (${this.#limitBytes} bytes left for this one)`,
        );
      }
    }
    return this.#cut(maxBytes);
  }

  async skip(lengthBytes: number): Promise<number> {
    let missing = lengthBytes;
    while (missing > 0) {
      const part = await this.some(missing);
      if (part.length === 0) break;
      missing -= part.length;
    }
    return lengthBytes - missing;
  }

  /** Reads to the end, so that whoever checks the stream's digest sees all of it. */
  async drain(): Promise<void> {
    while ((await this.some(Number.MAX_SAFE_INTEGER)).length > 0);
  }

  #cut(maxBytes: number): Buffer {
    const current = this.#current;
    if (current.length <= maxBytes) {
      this.#current = EMPTY;
      this.position += current.length;
      return current;
    }
    this.#current = current.subarray(maxBytes);
    this.position += maxBytes;
    return current.subarray(0, maxBytes);
  }
}

const FILE_READ_BYTES = 64 * 1024;

/** A tar in a file, for indexing: headers are read, bodies are passed over without being read. */
export class FileInput implements TarInput {
  position = 0;
  readonly #file: FileHandle;
  readonly #sizeBytes: number;
  #window: Buffer = EMPTY;
  #windowAt = 0;

  constructor(file: FileHandle, sizeBytes: number) {
    this.#file = file;
    this.#sizeBytes = sizeBytes;
  }

  async take(lengthBytes: number): Promise<Buffer> {
    const wanted = Math.min(lengthBytes, this.#sizeBytes - this.position);
    if (this.position < this.#windowAt || this.position + wanted > this.#windowAt + this.#window.length) {
      const window = Buffer.allocUnsafe(Math.max(wanted, FILE_READ_BYTES));
      let filled = 0;
      while (filled < window.length) {
        const { bytesRead } = await this.#file.read(
          window,
          filled,
          window.length - filled,
          this.position + filled,
        );
        if (bytesRead === 0) break;
        filled += bytesRead;
      }
      this.#window = window.subarray(0, filled);
      this.#windowAt = this.position;
    }
    const from = this.position - this.#windowAt;
    const bytes = this.#window.subarray(from, from + wanted);
    this.position += bytes.length;
    return bytes;
  }

  some(maxBytes: number): Promise<Buffer> {
    return this.take(Math.min(maxBytes, FILE_READ_BYTES));
  }

  async skip(lengthBytes: number): Promise<number> {
    const skipped = Math.min(lengthBytes, this.#sizeBytes - this.position);
    this.position += skipped;
    return skipped;
  }
}
