/**
 * Where file data goes: into data chunks, layer by layer, so that equal files give equal chunks wherever they come
 * up again. Placement depends on the content of files and their order, on nothing else. The rules, which are part
 * of the writer version:
 *
 * 1. A layer's first data starts a chunk.
 * 2. A file of CHUNK_BYTES or more starts a chunk, and nothing follows its tail. Each of its chunks that is wholly
 *    zero becomes a hole and takes no data chunk; so a sparse file lies as the same file stored in full does.
 * 3. A smaller file lies in one chunk, on a multiple of 4096. It starts a new chunk when it does not fit into the
 *    open one, or when its content says so: CRC-32 (zlib's) of its bytes, of which the lowest four bits are zero.
 * 4. What stays free is zeroes. An empty file takes nothing.
 *
 * Because of the border that content decides (3), two trees that differ in one file share their chunks again after
 * about sixteen files, instead of never.
 */
import { crc32 } from 'node:zlib';
import { LazydiskError } from '../errors.ts';
import { CHUNK_BYTES } from '../format/chunk-id.ts';
import type { TarEntry } from './tar/reader.ts';
import type { ChunkSink, DataExtent } from './tree.ts';

/** Data chunks of one image at most: 1 TiB, the largest disk there is. */
export const DATA_CHUNKS_MAX = 2 ** 40 / CHUNK_BYTES;

const BLOCK_BYTES = 4096;
const BORDER_MASK = 0xf;
const ZERO_CHUNK = Buffer.alloc(CHUNK_BYTES);

export class Placement {
  readonly #sink: ChunkSink;
  #chunks = 0;
  #open: Buffer | undefined;
  #usedBytes = 0;

  /** A chunk's buffer is given to `sink` for good; the next one is made when the sink's promise has resolved. */
  constructor(sink: ChunkSink) {
    this.#sink = sink;
  }

  /** Data chunks given to the sink so far. */
  get chunks(): number {
    return this.#chunks;
  }

  /** Ends the open chunk: what comes next starts another. Every layer ends with it. */
  async border(): Promise<void> {
    const bytes = this.#open;
    if (!bytes) return;
    this.#open = undefined;
    this.#usedBytes = 0;
    await this.#emit(bytes);
  }

  /** Takes the file's data; resolves to where it lies. Throws NO_SPACE when the image outgrows every disk. */
  async place(entry: TarEntry): Promise<DataExtent[]> {
    if (entry.sizeBytes >= CHUNK_BYTES) return await this.#placeBig(entry);
    if (entry.sizeBytes === 0) return [];
    return [await this.#placeSmall(entry.segments ? await expanded(entry) : await entry.whole())];
  }

  async #placeSmall(bytes: Buffer): Promise<DataExtent> {
    const fits = this.#usedBytes + bytes.length <= CHUNK_BYTES;
    if (!fits || (crc32(bytes) & BORDER_MASK) === 0) await this.border();
    this.#open ??= Buffer.alloc(CHUNK_BYTES);
    const at = this.#usedBytes;
    bytes.copy(this.#open, at);
    this.#usedBytes = Math.ceil((at + bytes.length) / BLOCK_BYTES) * BLOCK_BYTES;
    return { fileOffset: 0, dataOffset: this.#chunks * CHUNK_BYTES + at, lengthBytes: bytes.length };
  }

  async #placeBig(entry: TarEntry): Promise<DataExtent[]> {
    await this.border();
    const extents: DataExtent[] = [];
    let bytes: Buffer | undefined;
    let fileChunk = 0;
    const finishChunk = async () => {
      if (bytes && !bytes.equals(ZERO_CHUNK)) {
        const fileOffset = fileChunk * CHUNK_BYTES;
        const lengthBytes = Math.min(CHUNK_BYTES, entry.sizeBytes - fileOffset);
        append(extents, { fileOffset, dataOffset: this.#chunks * CHUNK_BYTES, lengthBytes });
        await this.#emit(bytes);
        bytes = undefined;
      }
    };
    for await (const { offset, part } of pieces(entry)) {
      for (let taken = 0; taken < part.length; ) {
        const at = offset + taken;
        const chunk = Math.floor(at / CHUNK_BYTES);
        if (chunk !== fileChunk) {
          await finishChunk();
          fileChunk = chunk;
        }
        bytes ??= Buffer.alloc(CHUNK_BYTES);
        taken += part.copy(bytes, at - chunk * CHUNK_BYTES, taken);
      }
    }
    await finishChunk();
    return extents;
  }

  async #emit(bytes: Buffer): Promise<void> {
    if (this.#chunks === DATA_CHUNKS_MAX) {
      throw new LazydiskError('NO_SPACE', 'the image holds more than 1 TiB of data');
    }
    await this.#sink(this.#chunks++, bytes);
  }
}

/** A sparse file's stored bytes with the place of each in the file; of any other file, simply its bytes. */
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

/** Adds an extent, or makes the last one longer if this one carries on where it ends. */
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
