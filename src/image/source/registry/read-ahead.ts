/**
 * The layers of an image as one row of parts, of which the next few are always on their way: a layer's parts while its
 * first ones are read, the next layers' while this one's last ones are. So the line is full whatever the layers' sizes,
 * and what is held is bounded whatever the line's speed.
 */
import { LazydiskError } from '../../../errors.ts';

/** A request costs much less. The memory of a build grows by six of them, and by what the collector has not yet freed. */
const PART_BYTES = 1024 * 1024;
/** That are held: on their way, waiting to be read, being read. */
const PARTS = 6;

export interface ReadAheadLayer {
  readonly sizeBytes: number;
  /** Begins a download, of which parts are then asked for in order. */
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
  /** In order. */
  #ahead: Part[] = [];
  /** The part behind `#ahead`: what is begun next. */
  #next = { layer: 0, offset: 0 };
  #source: PartSource | undefined;
  #abort = new AbortController();
  /** Buffers of #partBytes that nobody uses. */
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
   * A layer's bytes, each buffer valid until the next is asked for. One layer is read at a time; whoever begins another one
   * ends the one before. Throws as its parts do, and the signal's reason.
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
          throw new LazydiskError('INTERNAL', 'two layers are read at a time');
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
