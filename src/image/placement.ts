/**
 * Places file data in data chunks, layer by layer, so that equal files produce equal chunks wherever they occur.
 * Placement depends only on the content of files and their order. The rules are part of the writer version:
 *
 * 1. A layer's first data starts a chunk.
 * 2. A file of CHUNK_BYTES or more starts a chunk, and nothing follows its tail. Each of its chunks that is all zero
 *    becomes a hole and takes no data chunk; so a sparse file is placed like the same file stored in full.
 * 3. A smaller file is in one chunk, at a multiple of 4096. It starts a new chunk when it does not fit into the
 *    open one, or when its content decides so: CRC-32 (zlib's) of its bytes, modulo 48, is less than the number of
 *    4096-byte blocks that it takes.
 * 4. Free space is zero. An empty file takes no space.
 *
 * Because of the content-defined boundaries (3), two trees that differ in one file share chunks again soon after it,
 * instead of never. A boundary comes about every 192 KiB of content, however large the files are. Compared with "one
 * file in sixteen starts a chunk", more is shared in fewer chunks (a tree of 97,000 files with the same tree without
 * one file in 33: 78 % of bytes instead of 73 %, and 56 % without boundaries), and a tree of tiny files, of which
 * sixteen would fill an eighth of a chunk, does not inflate the disk (node_modules: 1.8 times its size instead of 2.1).
 */
import { crc32 } from 'node:zlib';
import { LazydiskError } from '../errors.ts';
import { CHUNK_BYTES } from '../format/chunk-id.ts';
import type { TarEntry } from './tar/reader.ts';
import type { ChunkSink, DataExtent } from './tree.ts';

/** Most data of one image: the size of the largest disk. */
const DATA_BYTES_MAX = 2 ** 40;

const BLOCK_BYTES = 4096;
/** A small file starts a chunk with a probability of its number of blocks divided by this. */
const BORDER_BLOCKS = 48;
const ZERO_CHUNK = Buffer.alloc(CHUNK_BYTES);

export class Placement {
  readonly #sink: ChunkSink;
  readonly #takeBuffer: () => Buffer;
  readonly #bytesMax: number;
  #chunks = 0;
  /** Holds the open chunk; its content after `#filledBytes` is arbitrary. */
  #buffer: Buffer | undefined;
  /** Bytes of the open chunk that are written; 0 if none is open. */
  #filledBytes = 0;

  /**
   * `sink` takes ownership of each chunk's buffer; the next one is taken when the sink's promise has resolved.
   * `takeBuffer` returns CHUNK_BYTES of memory with arbitrary content. At most `bytesMax` of chunks are produced,
   * because a sparse file of a few bytes can expand to many.
   */
  constructor(sink: ChunkSink, takeBuffer: () => Buffer, bytesMax: number) {
    this.#sink = sink;
    this.#takeBuffer = takeBuffer;
    this.#bytesMax = Math.min(bytesMax, DATA_BYTES_MAX);
  }

  /** Data chunks passed to the sink so far. */
  get chunks(): number {
    return this.#chunks;
  }

  /** Ends the open chunk, so that the next data starts another. Called at the end of every layer. */
  async border(): Promise<void> {
    const bytes = this.#buffer;
    if (!bytes || this.#filledBytes === 0) return;
    if ((this.#chunks + 1) * CHUNK_BYTES > this.#bytesMax) {
      const hint = this.#bytesMax < DATA_BYTES_MAX ? ' (--max-input allows more)' : '';
      throw new LazydiskError('NO_SPACE', `the image has more than ${this.#bytesMax} bytes of data${hint}`);
    }
    bytes.fill(0, this.#filledBytes);
    this.#buffer = undefined;
    this.#filledBytes = 0;
    await this.#sink(this.#chunks++, bytes);
  }

  /**
   * Places the file's data; resolves to where it is. Throws NO_SPACE if the image exceeds the limit or the largest
   * disk.
   */
  async place(entry: TarEntry): Promise<DataExtent[]> {
    if (entry.sizeBytes >= CHUNK_BYTES) return await this.#placeBig(entry);
    if (entry.sizeBytes === 0) return [];
    return [await this.#placeSmall(entry.segments ? await expanded(entry) : await entry.whole())];
  }

  async #placeSmall(bytes: Buffer): Promise<DataExtent> {
    let at = Math.ceil(this.#filledBytes / BLOCK_BYTES) * BLOCK_BYTES;
    if (at + bytes.length > CHUNK_BYTES || startsChunk(bytes)) {
      await this.border();
      at = 0;
    }
    this.#write(at, bytes);
    return { fileOffset: 0, dataOffset: this.#chunks * CHUNK_BYTES + at, lengthBytes: bytes.length };
  }

  async #placeBig(entry: TarEntry): Promise<DataExtent[]> {
    await this.border();
    const extents: DataExtent[] = [];
    let fileChunk = 0;
    const finishChunk = async () => {
      if (this.#isZero()) {
        this.#filledBytes = 0;
        return;
      }
      const fileOffset = fileChunk * CHUNK_BYTES;
      const lengthBytes = Math.min(CHUNK_BYTES, entry.sizeBytes - fileOffset);
      append(extents, { fileOffset, dataOffset: this.#chunks * CHUNK_BYTES, lengthBytes });
      await this.border();
    };
    for await (const { offset, part } of pieces(entry)) {
      for (let taken = 0; taken < part.length; ) {
        const at = (offset + taken) % CHUNK_BYTES;
        const chunk = (offset + taken - at) / CHUNK_BYTES;
        if (chunk !== fileChunk) {
          await finishChunk();
          fileChunk = chunk;
        }
        taken += this.#write(at, part.subarray(taken));
      }
    }
    await finishChunk();
    return extents;
  }

  /**
   * Writes as much of `bytes` as fits at `at`, which is not before the end of the last write; a gap is filled with
   * zeroes.
   */
  #write(at: number, bytes: Buffer): number {
    this.#buffer ??= this.#takeBuffer();
    if (at > this.#filledBytes) this.#buffer.fill(0, this.#filledBytes, at);
    const written = bytes.copy(this.#buffer, at);
    this.#filledBytes = at + written;
    return written;
  }

  /** Whether the open chunk is all zero; true if none is open. */
  #isZero(): boolean {
    return (
      !this.#buffer || this.#buffer.compare(ZERO_CHUNK, 0, this.#filledBytes, 0, this.#filledBytes) === 0
    );
  }
}

function startsChunk(bytes: Buffer): boolean {
  return crc32(bytes) % BORDER_BLOCKS < Math.ceil(bytes.length / BLOCK_BYTES);
}

/** The stored bytes of a file with their offsets in it; for a sparse file, by its segments. */
async function* pieces(entry: TarEntry): AsyncGenerator<{ offset: number; part: Buffer }> {
  if (!entry.segments) {
    let offset = 0;
    for await (const part of entry.body()) {
      yield { offset, part };
      offset += part.length;
    }
    return;
  }
  let segment = 0;
  let into = 0;
  for await (let part of entry.body()) {
    while (part.length > 0) {
      const { offset, lengthBytes } = entry.segments[segment]!;
      const fits = part.subarray(0, lengthBytes - into);
      yield { offset: offset + into, part: fits };
      part = part.subarray(fits.length);
      into += fits.length;
      if (into === lengthBytes) {
        segment++;
        into = 0;
      }
    }
  }
}

/** A small sparse file with its holes filled in. */
async function expanded(entry: TarEntry): Promise<Buffer> {
  const bytes = Buffer.alloc(entry.sizeBytes);
  for await (const { offset, part } of pieces(entry)) part.copy(bytes, offset);
  return bytes;
}

/** Adds an extent, or extends the last one if this one continues it. */
function append(extents: DataExtent[], extent: DataExtent): void {
  const last = extents.at(-1);
  if (
    last &&
    last.fileOffset + last.lengthBytes === extent.fileOffset &&
    last.dataOffset + last.lengthBytes === extent.dataOffset
  ) {
    extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + extent.lengthBytes };
  } else extents.push(extent);
}
