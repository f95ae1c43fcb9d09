/** The body of a response with a blob or a range of one: its bytes in order, from wherever it begins. */
import { LazydiskError } from '../../../errors.ts';
import type { Answer } from './client.ts';

export class BlobBody {
  /** Where in the blob its next byte is. */
  at: number;
  readonly #body: Answer['body'];
  readonly #pieces: AsyncIterator<Buffer>;
  #left: Buffer = Buffer.alloc(0);

  /**
   * `offset` is the requested one. Throws CORRUPT if the size of the blob is not `sizeBytes`, UNAVAILABLE for another
   * range.
   */
  constructor({ status, headers, body }: Answer, offset: number, sizeBytes: number) {
    this.#body = body;
    this.#pieces = body[Symbol.asyncIterator]();
    this.at = status === 206 ? offset : 0;
    const length = headers['content-length'];
    const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(headers['content-range'] ?? '');
    const total = status === 206 ? range?.[2] : length;
    if (total !== undefined && total !== '*' && Number(total) !== sizeBytes) {
      this.destroy();
      throw new LazydiskError('CORRUPT', `it has ${total} bytes, expected ${sizeBytes}`);
    }
    if (status === 206 && Number(range?.[1]) !== offset) {
      this.destroy();
      throw new LazydiskError('UNAVAILABLE', 'the response is not the requested range');
    }
  }

  /**
   * Fills `target`, skipping the bytes before it. Throws UNAVAILABLE if the body ends too early, and as the body does.
   */
  async read(target: Target): Promise<void> {
    while (!target.isDone) {
      if (this.#left.length === 0 && !(await this.#next())) {
        throw new LazydiskError('UNAVAILABLE', `the response ends after ${this.at} bytes of the blob`);
      }
      const skippedBytes = Math.min(target.at - this.at, this.#left.length);
      const takenBytes = target.put(this.#left.subarray(skippedBytes));
      this.#left = this.#left.subarray(skippedBytes + takenBytes);
      this.at += skippedBytes + takenBytes;
    }
  }

  /** Reads its end, which frees the connection for the next request. Throws CORRUPT if there are more bytes. */
  async end(): Promise<void> {
    if (this.#left.length === 0 && !(await this.#next())) return;
    this.destroy();
    throw new LazydiskError('CORRUPT', `it has more than the expected ${this.at} bytes`);
  }

  destroy(): void {
    this.#body.destroy();
  }

  /** Returns whether there are more bytes. */
  async #next(): Promise<boolean> {
    for (;;) {
      const { done, value } = await this.#pieces.next();
      if (done) return false;
      this.#left = value;
      if (value.length > 0) return true;
    }
  }
}

/** A part that is being downloaded. */
export class Target {
  /** The offset in the blob after its last byte. */
  readonly end: number;
  doneBytes = 0;
  readonly #part: Buffer;
  readonly #offset: number;

  constructor(part: Buffer, offset: number) {
    this.#part = part;
    this.#offset = offset;
    this.end = offset + part.length;
  }

  /** Where in the blob the next byte belongs. */
  get at(): number {
    return this.#offset + this.doneBytes;
  }

  get isDone(): boolean {
    return this.doneBytes === this.#part.length;
  }

  /** Copies as many bytes as fit, and returns their number. */
  put(bytes: Buffer): number {
    const takenBytes = bytes.copy(this.#part, this.doneBytes);
    this.doneBytes += takenBytes;
    return takenBytes;
  }
}
