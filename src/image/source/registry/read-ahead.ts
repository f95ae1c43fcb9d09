/**
 * The layers of an image as one sequence of parts, of which the next few are always being downloaded: a layer's parts
 * while its first ones are read, the next layers' while its last ones are. So the network is busy whatever the layers'
 * sizes, and memory is bounded whatever the network's speed.
 */
import { LazydiskError } from '../../../errors.ts';

/**
 * Large enough that the cost of a request is small. A build's memory grows by six parts, and by what the garbage
 * collector has not yet freed.
 */
const PART_BYTES = 1024 * 1024;
/** Parts in memory: being downloaded, waiting to be read, or being read. */
const PARTS = 6;

export interface ReadAheadLayer {
  readonly sizeBytes: number;
  /** Begins a download, whose parts are then requested in order. */
  download(signal: AbortSignal): PartSource;
}

export interface PartSource {
  /** Fills `part` with the layer's bytes from `offset` on. */
  fill(part: Buffer, offset: number): Promise<void>;
}

interface Part {
  readonly layer: number;
  readonly offset: number;
  readonly bytes: Buffer;
  readonly filled: Promise<void>;
}

export interface ReadAheadOptions {
  readonly partBytes?: number;
  readonly parts?: number;
}

export class ReadAhead {
  readonly #layers: readonly ReadAheadLayer[];
  readonly #partBytes: number;
  readonly #parts: number;
  /** Parts being downloaded or waiting to be read, in order. */
  #ahead: Part[] = [];
  /** The part after `#ahead`, which is begun next. */
  #next = { layer: 0, offset: 0 };
  #source: PartSource | undefined;
  #abort = new AbortController();
  /** Unused buffers of #partBytes. */
  readonly #free: Buffer[] = [];

  constructor(
    layers: readonly ReadAheadLayer[],
    { partBytes = PART_BYTES, parts = PARTS }: ReadAheadOptions = {},
  ) {
    this.#layers = layers;
    this.#partBytes = partBytes;
    this.#parts = parts;
  }

  /**
   * A layer's bytes, each buffer valid until the next is requested. One layer is read at a time; starting another one
   * ends the previous one. Throws as its parts do, and the signal's reason.
   */
  async *read(layer: number, signal?: AbortSignal): AsyncGenerator<Buffer> {
    const { sizeBytes } = this.#layers[layer]!;
    if (sizeBytes === 0) return;
    const [first] = this.#ahead;
    if (first?.layer !== layer || first.offset !== 0) this.#startAt(layer);
    const onAbort = (): void => this.#drop(signal?.reason);
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      for (let offset = 0; offset < sizeBytes; ) {
        signal?.throwIfAborted();
        this.#fill();
        const part = this.#ahead.shift();
        if (part?.layer !== layer || part.offset !== offset) {
          throw new LazydiskError('INTERNAL', 'two layers are read at the same time');
        }
        await part.filled;
        yield part.bytes;
        offset += part.bytes.length;
        if (part.bytes.length === this.#partBytes) this.#free.push(part.bytes);
      }
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /** Ends all downloads. */
  close(): void {
    this.#drop(new LazydiskError('ABORTED', 'the image source is closed'));
  }

  #drop(reason: unknown): void {
    this.#abort.abort(reason);
    this.#ahead = [];
  }

  #startAt(layer: number): void {
    this.#drop(new LazydiskError('ABORTED', 'another layer is read'));
    this.#abort = new AbortController();
    this.#next = { layer, offset: 0 };
    this.#source = undefined;
  }

  /** Begins parts until there are enough of them. */
  #fill(): void {
    while (this.#ahead.length < this.#parts) {
      const { layer, offset } = this.#next;
      const next = this.#layers[layer];
      if (!next) return;
      const lengthBytes = Math.min(this.#partBytes, next.sizeBytes - offset);
      if (lengthBytes === 0) {
        this.#next = { layer: layer + 1, offset: 0 };
        this.#source = undefined;
        continue;
      }
      this.#source ??= next.download(this.#abort.signal);
      const pooled = lengthBytes === this.#partBytes ? this.#free.pop() : undefined;
      const bytes = pooled ?? Buffer.allocUnsafeSlow(lengthBytes);
      const filled = this.#source.fill(bytes, offset);
      // It is awaited later, if at all.
      filled.catch(() => undefined);
      this.#ahead.push({ layer, offset, bytes, filled });
      this.#next = { layer, offset: offset + lengthBytes };
    }
  }
}
