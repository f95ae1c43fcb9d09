/**
 * Flattens layers into one tree and its data chunks, in one pass over each layer's tar: file data is passed to the sink
 * as it streams, and only the tree stays in memory.
 */
import { codeOf, LazydiskError, withContext } from '../errors.ts';
import { CHUNK_BYTES } from '../format/chunk-id.ts';
import type { LayerRange } from '../format/manifest-metadata.ts';
import { type ImageLimits, imageLimits } from './limits.ts';
import { isWhiteout, TreeMerge } from './merge.ts';
import { Placement } from './placement.ts';
import { quote } from './quote.ts';
import type { ImageSource, LayerBlob } from './source/image-source.ts';
import { StreamInput } from './tar/input.ts';
import { readTar, type TarEntry } from './tar/reader.ts';
import type { ChunkSink, DataExtent, MergedTree, TreeInode } from './tree.ts';

export interface FlattenProgress {
  /** Which layer is being read, from 1. */
  readonly layer: number;
  readonly layers: number;
  /** Bytes of blobs read so far, over all layers, and their total. */
  readonly inputBytes: number;
  readonly totalInputBytes: number;
  /**
   * Bytes of tar unpacked so far, and entries in them: with a decompression bomb they grow long after its last byte was
   * read.
   */
  readonly unpackedBytes: number;
  readonly entries: number;
}

export interface FlattenOptions {
  /** Limits on the resources that the image may use; default: `imageLimits()`. */
  readonly limits?: ImageLimits;
  /** Called about once per buffer read. */
  onProgress?(progress: FlattenProgress): void;
  readonly signal?: AbortSignal;
  /**
   * Returns CHUNK_BYTES of memory for the next chunk, with arbitrary content. A sink that knows when it has finished
   * with a chunk saves garbage collection by returning the same few buffers: 1 GiB of fresh ones triggers a full
   * collection every 32 MiB. By default it allocates.
   */
  takeBuffer?(): Buffer;
}

export interface FlattenedImage extends MergedTree {
  readonly layerMap: LayerRange[];
}

/**
 * Merges the layers of `source`, base first, and passes their data chunks to `sink` in order. The promise that the sink
 * returns is awaited before the next chunk is filled, so a sink that works on several at once resolves when it has room
 * for another. Rejects with a LazydiskError that names layer and path: CORRUPT, UNSUPPORTED, NO_SPACE, ABORTED; errors
 * of the sink are passed on unchanged.
 */
export async function flatten(
  source: ImageSource,
  sink: ChunkSink,
  options: FlattenOptions = {},
): Promise<FlattenedImage> {
  const { signal, limits = imageLimits(), takeBuffer = () => Buffer.allocUnsafeSlow(CHUNK_BYTES) } = options;
  const merge = new TreeMerge(limits);
  const placement = new Placement(
    async (chunk, bytes) => {
      try {
        await sink(chunk, bytes);
      } catch (error) {
        throw new SinkFailure(error);
      }
    },
    takeBuffer,
    limits.inputBytes,
  );
  const meter = new Meter(source, limits, options.onProgress);
  const layerMap: LayerRange[] = [];
  const layers = source.layers.length;
  for (const [index, layer] of source.layers.entries()) {
    const firstChunk = placement.chunks;
    try {
      signal?.throwIfAborted();
      meter.layer = index + 1;
      await flattenLayer(layer, merge, placement, meter, signal);
      await placement.border();
    } catch (error) {
      if (error instanceof SinkFailure) throw error.cause;
      if (signal?.aborted)
        throw new LazydiskError('ABORTED', 'flattening was cancelled', { cause: signal.reason });
      if (!(error instanceof LazydiskError)) throw error;
      const which = `layer ${index + 1} of ${layers} (${layer.digest})`;
      throw withContext(error, which);
    }
    const { digest, sizeBytes } = layer;
    layerMap.push({ digest, sizeBytes, firstChunk, chunks: placement.chunks - firstChunk });
  }
  return {
    root: merge.root,
    dataChunks: placement.chunks,
    liveChunks: liveChunks(merge.root, placement.chunks),
    layerMap,
  };
}

async function flattenLayer(
  layer: LayerBlob,
  merge: TreeMerge,
  placement: Placement,
  meter: Meter,
  signal: AbortSignal | undefined,
): Promise<void> {
  const stream = layer.open(signal, (lengthBytes) => meter.read(lengthBytes));
  const input = new StreamInput(stream, meter.leftBytes, (lengthBytes) => meter.unpacked(lengthBytes));
  try {
    merge.beginLayer();
    for await (const entry of readTar(input)) {
      meter.entry(entry);
      const data = entry.kind === 'file' && !isWhiteout(entry.name) ? await placed(entry, placement) : [];
      merge.apply(entry, data);
    }
    // The blob is verified at its last byte, which is after the archive's end marker.
    await input.drain();
  } finally {
    await input.close();
  }
}

/** Counts bytes and entries over all layers. */
class Meter {
  layer = 1;
  readonly #limits: ImageLimits;
  readonly #tell: FlattenOptions['onProgress'];
  readonly #layers: number;
  readonly #totalInputBytes: number;
  #inputBytes = 0;
  #unpackedBytes = 0;
  #entries = 0;

  constructor({ layers }: ImageSource, limits: ImageLimits, tell: FlattenOptions['onProgress']) {
    this.#limits = limits;
    this.#tell = tell;
    this.#layers = layers.length;
    this.#totalInputBytes = layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
  }

  /** How many bytes the remaining layers may unpack to. */
  get leftBytes(): number {
    return this.#limits.inputBytes - this.#unpackedBytes;
  }

  read(lengthBytes: number): void {
    this.#inputBytes += lengthBytes;
    this.#report();
  }

  unpacked(lengthBytes: number): void {
    this.#unpackedBytes += lengthBytes;
    this.#report();
  }

  /** Throws UNSUPPORTED for an entry over the limit. */
  entry({ name }: TarEntry): void {
    if (++this.#entries <= this.#limits.entries) return;
    const text = `path ${quote(name)}: the layers have more than ${this.#limits.entries} entries (--max-entries allows more)`;
    throw new LazydiskError('UNSUPPORTED', text);
  }

  #report(): void {
    this.#tell?.({
      layer: this.layer,
      layers: this.#layers,
      inputBytes: this.#inputBytes,
      totalInputBytes: this.#totalInputBytes,
      unpackedBytes: this.#unpackedBytes,
      entries: this.#entries,
    });
  }
}

async function placed(entry: TarEntry, placement: Placement): Promise<DataExtent[]> {
  try {
    return await placement.place(entry);
  } catch (error) {
    if (codeOf(error) !== 'NO_SPACE') throw error;
    throw withContext(error, `path ${quote(entry.name)}`);
  }
}

/** The data chunks that the tree still refers to, one bit each. */
function liveChunks(root: TreeInode, dataChunks: number): Uint8Array {
  const live = new Uint8Array(Math.ceil(dataChunks / 8));
  const pending = [root];
  for (let inode = pending.pop(); inode; inode = pending.pop()) {
    for (const { dataOffset, lengthBytes } of inode.extents) {
      const last = Math.floor((dataOffset + lengthBytes - 1) / CHUNK_BYTES);
      for (let chunk = Math.floor(dataOffset / CHUNK_BYTES); chunk <= last; chunk++) {
        live[chunk >> 3]! |= 1 << (chunk & 7);
      }
    }
    for (const child of inode.children.values()) pending.push(child);
  }
  return live;
}

/** Carries an error of the sink past the code that attributes errors to layers. */
class SinkFailure extends Error {
  constructor(cause: unknown) {
    super('the sink failed', { cause });
  }
}
