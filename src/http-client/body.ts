/**
 * The body of a response as a stream. Pieces are read from the socket directly into the memory that the consumer
 * receives, and reading stops while the consumer has not taken what is there.
 */
import { Readable } from 'node:stream';
import type { BodySink } from './response.ts';

/** Bytes buffered for a consumer that is slower than the network. */
const HELD_BYTES_MAX = 512 * 1024;
/** Memory that pieces are cut from. */
const SLAB_BYTES = 256 * 1024;
/** A remainder below this is too small to justify a system call for a read. */
const REST_BYTES_MIN = 16 * 1024;

/**
 * What the stream needs of the exchange that its bytes come from. All but `pause` may be called after the exchange has
 * ended.
 */
export interface BodySource {
  pause(): void;
  resume(): void;
  /** The consumer wants no more. */
  abandon(): void;
}

export class HttpBody extends Readable implements BodySink {
  readonly #source: BodySource;
  #slab = Buffer.alloc(0);

  constructor(source: BodySource) {
    super({ highWaterMark: HELD_BYTES_MAX });
    this.#source = source;
    // A failure before the consumer has begun to read must not crash the process; the consumer sees it when it reads.
    this.on('error', () => undefined);
  }

  room(): Buffer {
    if (this.#slab.length < REST_BYTES_MIN) this.#slab = Buffer.allocUnsafeSlow(SLAB_BYTES);
    return this.#slab;
  }

  placed(bytes: number): void {
    const piece = this.#slab.subarray(0, bytes);
    this.#slab = this.#slab.subarray(bytes);
    if (!this.push(piece)) this.#source.pause();
  }

  override _read(): void {
    this.#source.resume();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#source.abandon();
    done(error);
  }
}
