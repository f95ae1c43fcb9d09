/**
 * Where a tar archive's bytes come from: a stream, read once from start to end, or a file, in which bodies are skipped
 * by seeking. Bytes are returned as views of the buffers they arrived in, which are reused; nothing is copied unless a
 * piece straddles two of them.
 */
import type { FileHandle } from 'node:fs/promises';
import { LazydiskError } from '../../errors.ts';

export interface TarInput {
  /** Bytes returned or skipped so far. */
  readonly position: number;
  /** Returns exactly `lengthBytes` bytes; fewer only at the end of the input. Valid until the next call. */
  take(lengthBytes: number): Promise<Buffer>;
  /** Returns the next available bytes, 1 to `maxBytes`; empty only at the end. Valid until the next call. */
  some(maxBytes: number): Promise<Buffer>;
  /** Skips bytes; resolves to their number, less than `lengthBytes` only at the end. */
  skip(lengthBytes: number): Promise<number>;
  /** Throws UNSUPPORTED, before any byte is read, if `lengthBytes` more exceed the limit. */
  claim(lengthBytes: number): void;
}

const EMPTY = Buffer.alloc(0);

/** A tar from a stream. It fails with UNSUPPORTED beyond a limit, which stops every decompression bomb. */
export class StreamInput implements TarInput {
  position = 0;
  readonly #chunks: AsyncIterator<Buffer>;
  readonly #limitBytes: number;
  readonly #onReceived: ((lengthBytes: number) => void) | undefined;
  #current: Buffer = EMPTY;
  /** Where pieces that straddle buffers are joined. */
  #joined: Buffer = EMPTY;

  /** A buffer of `chunks` is used until the next one is requested. `onReceived` is called for each. */
  constructor(chunks: AsyncIterable<Buffer>, limitBytes: number, onReceived?: (lengthBytes: number) => void) {
    this.#chunks = chunks[Symbol.asyncIterator]();
    this.#limitBytes = limitBytes;
    this.#onReceived = onReceived;
  }

  async take(lengthBytes: number): Promise<Buffer> {
    if (this.#current.length >= lengthBytes) return this.#cut(lengthBytes);
    if (this.#joined.length < lengthBytes) this.#joined = Buffer.allocUnsafeSlow(lengthBytes);
    let filled = 0;
    while (filled < lengthBytes) {
      const part = await this.some(lengthBytes - filled);
      if (part.length === 0) break;
      filled += part.copy(this.#joined, filled);
    }
    return this.#joined.subarray(0, filled);
  }

  async some(maxBytes: number): Promise<Buffer> {
    while (this.#current.length === 0) {
      const next = await this.#chunks.next();
      if (next.done) return EMPTY;
      this.#current = next.value;
      this.#onReceived?.(next.value.length);
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

  claim(lengthBytes: number): void {
    if (lengthBytes > this.#limitBytes - this.position) throw this.#tooMuch();
  }

  /** Reads to the end, so that the stream can verify the digest of all of it. */
  async drain(): Promise<void> {
    while ((await this.some(Number.MAX_SAFE_INTEGER)).length > 0);
  }

  /** Releases the stream, whether it was read to its end or not. */
  async close(): Promise<void> {
    await this.#chunks.return?.();
  }

  #tooMuch(): LazydiskError {
    const text = `the layers unpack to more than the limit (${this.#limitBytes} bytes were left for this layer`;
    return new LazydiskError('UNSUPPORTED', `${text}; --max-input allows more)`);
  }

  #cut(maxBytes: number): Buffer {
    const bytes = this.#current.subarray(0, maxBytes);
    this.#current = this.#current.subarray(bytes.length);
    this.position += bytes.length;
    if (this.position > this.#limitBytes) throw this.#tooMuch();
    return bytes;
  }
}

const FILE_READ_BYTES = 64 * 1024;

/** A tar in a file, for indexing: headers are read, bodies are skipped without reading them. */
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

  /** A file's size is its limit. */
  claim(): void {}

  some(maxBytes: number): Promise<Buffer> {
    return this.take(Math.min(maxBytes, FILE_READ_BYTES));
  }

  async skip(lengthBytes: number): Promise<number> {
    const skipped = Math.min(lengthBytes, this.#sizeBytes - this.position);
    this.position += skipped;
    return skipped;
  }
}
