/**
 * An ext4 disk that is read in pieces that never cross a chunk's border, so that a chunk that cannot be read takes nothing
 * with it but itself; and whether blocks lie in one of the chunks that are asked about, by binary search.
 */
import { LazydiskError } from '../../../errors.ts';
import { CHUNK_BYTES } from '../../../format/chunk-id.ts';
import { SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET } from '../layout.ts';
import { type DiskShape, parseShape } from './shape.ts';

/**
 * Reads `lengthBytes` at `offset` of the disk, never across a chunk boundary; undefined where the disk cannot be read
 * (a damaged chunk). The returned bytes must never change.
 */
export type DiskRead = (offset: number, lengthBytes: number) => Promise<Buffer | undefined>;

/** Some consecutive blocks of one chunk. */
export interface BlockPiece {
  readonly block: number;
  readonly blocks: number;
}

export class Ext4Disk {
  readonly shape: DiskShape;
  /** Metadata is in a chunk that is asked about, or could not be read. */
  metadataHit = false;
  readonly #read: DiskRead;
  /** The chunks that are asked about, ascending. */
  readonly #asked: Float64Array;
  readonly #signal: AbortSignal | undefined;
  readonly #blocksPerChunk: number;

  private constructor(
    read: DiskRead,
    shape: DiskShape,
    chunks: ReadonlySet<number>,
    signal: AbortSignal | undefined,
  ) {
    this.#read = read;
    this.shape = shape;
    this.#asked = Float64Array.from(chunks).sort();
    this.#signal = signal;
    this.#blocksPerChunk = CHUNK_BYTES / shape.blockBytes;
  }

  /** Returns undefined if the superblock cannot be read. Rejects with UNSUPPORTED or CORRUPT, see parseShape. */
  static async open(
    read: DiskRead,
    diskBytes: number,
    chunks: ReadonlySet<number>,
    signal: AbortSignal | undefined,
  ): Promise<Ext4Disk | undefined> {
    if (diskBytes < SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES) {
      throw new LazydiskError('UNSUPPORTED', `a disk of ${diskBytes} bytes`);
    }
    const superblock = await read(SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES);
    if (!superblock) return undefined;
    const disk = new Ext4Disk(read, parseShape(superblock, diskBytes), chunks, signal);
    disk.noteMetadata(disk.shape.firstBlock, 1);
    return disk;
  }

  /** Whether a file's blocks may be there. */
  holds(block: number, blocks: number): boolean {
    return block > this.shape.firstBlock && block + blocks <= this.shape.blocks;
  }

  isHit(block: number, blocks: number): boolean {
    const first = Math.floor(block / this.#blocksPerChunk);
    const last = Math.floor((block + blocks - 1) / this.#blocksPerChunk);
    let low = 0;
    let high = this.#asked.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#asked[middle]! < first) low = middle + 1;
      else high = middle;
    }
    return low < this.#asked.length && this.#asked[low]! <= last;
  }

  /** Sets `metadataHit` if these blocks, which hold metadata, are in a chunk that is asked about. */
  noteMetadata(block: number, blocks: number): void {
    this.metadataHit ||= this.isHit(block, blocks);
  }

  /** The blocks from `block` on, split at chunk boundaries. */
  *pieces(block: number, blocks: number): Generator<BlockPiece> {
    const end = block + blocks;
    for (let at = block; at < end; ) {
      const border = (Math.floor(at / this.#blocksPerChunk) + 1) * this.#blocksPerChunk;
      const next = Math.min(end, border);
      yield { block: at, blocks: next - at };
      at = next;
    }
  }

  /** Reads a piece of metadata; returns undefined and sets `metadataHit` if it cannot be read. Rejects with ABORTED. */
  async readMetadata({ block, blocks }: BlockPiece): Promise<Buffer | undefined> {
    if (this.#signal?.aborted) {
      throw new LazydiskError('ABORTED', 'reading the ext4 disk was cancelled', {
        cause: this.#signal.reason,
      });
    }
    this.noteMetadata(block, blocks);
    const { blockBytes } = this.shape;
    const bytes = await this.#read(block * blockBytes, blocks * blockBytes);
    if (!bytes) this.metadataHit = true;
    return bytes;
  }
}
