/**
 * What lies in the chunks of an ext4 disk: which inode's data, and what of the file system itself. One pass over the
 * inodes finds it, from metadata alone; names come from a second pass over the directories. What is kept is 16 bytes for
 * each extent in each chunk, so a million small files are 16 MB, and no names.
 */
import { LazydiskError } from '../../../errors.ts';
import { CHUNK_BYTES } from '../../../format/chunk-id.ts';
import { type DiskRead, Ext4Disk } from './disk.ts';
import { type BlockUse, type BlockWatcher, COUNTED, Ext4Inodes } from './inodes.ts';
import { PagedNumbers } from './marks.ts';
import { type NameVisitor, walkNames } from './walk.ts';

/** What of an inode lies in one chunk. */
export interface InodeUse {
  readonly chunk: number;
  readonly use: BlockUse;
  readonly blocks: number;
}

export interface ChunkUsesOptions {
  /** The chunks that are asked about. Default: all. */
  readonly chunks?: ReadonlySet<number>;
  readonly signal?: AbortSignal;
}

/** Fields of a row: inode, chunk, use, blocks. */
const ROW = 4;
const ROWS_MIN = 1024;
const USES: readonly BlockUse[] = [
  'superblock',
  'descriptors',
  'bitmaps',
  'inodes',
  'journal',
  'reserved',
  'directory',
  'extents',
  'xattrs',
  'data',
];

export class ChunkUses implements BlockWatcher {
  readonly #disk: Ext4Disk;
  readonly #chunks: ReadonlySet<number> | undefined;
  #rows = new Uint32Array(ROWS_MIN * ROW);
  #rowCount = 0;
  /** The first row of an inode, plus one; its others follow. */
  readonly #firstRow = new PagedNumbers();
  /** Of each chunk, blocks by use. */
  readonly #byChunk = new Map<number, Map<BlockUse, number>>();
  #claimedBlocks = 0;
  #inodes: Ext4Inodes | undefined;

  private constructor(disk: Ext4Disk, chunks: ReadonlySet<number> | undefined) {
    this.#disk = disk;
    this.#chunks = chunks;
  }

  /**
   * Reads all inodes of a disk of `diskBytes`. Rejects with UNSUPPORTED for what is not ext4 or has features that are not
   * read here, CORRUPT for what no sound disk says, ABORTED, and with what `read` rejects with.
   */
  static async read(read: DiskRead, diskBytes: number, options: ChunkUsesOptions = {}): Promise<ChunkUses> {
    const disk = await Ext4Disk.open(read, diskBytes, new Set(), options.signal);
    if (!disk) throw new LazydiskError('CORRUPT', 'the superblock of the ext4 disk cannot be read');
    const uses = new ChunkUses(disk, options.chunks);
    uses.#inodes = await Ext4Inodes.read(disk, uses);
    return uses;
  }

  /** Blocks by use in `chunk`; undefined if nothing is known to lie there, or it was not asked about. */
  ofChunk(chunk: number): ReadonlyMap<BlockUse, number> | undefined {
    return this.#byChunk.get(chunk);
  }

  /** What of an inode lies in which chunks, each use of a chunk once, in the order of the disk. */
  ofInode(number: number): InodeUse[] {
    const first = this.#firstRow.get(number);
    if (first === 0) return [];
    const blocksOf = new Map<number, number>();
    for (let at = (first - 1) * ROW; at < this.#rowCount * ROW && this.#rows[at] === number; at += ROW) {
      const place = this.#rows[at + 1]! * USES.length + this.#rows[at + 2]!;
      blocksOf.set(place, (blocksOf.get(place) ?? 0) + this.#rows[at + 3]!);
    }
    return [...blocksOf]
      .sort(([a], [b]) => a - b)
      .map(([place, blocks]) => ({
        chunk: Math.floor(place / USES.length),
        use: USES[place % USES.length]!,
        blocks,
      }));
  }

  /** True when it is called for the first time with an inode: for who counts each once, however many its names. */
  isFirstName(number: number): boolean {
    const isFirst = !(this.#inodes!.marks(number) & COUNTED);
    this.#inodes!.add(number, COUNTED);
    return isFirst;
  }

  /** Visits all names. Rejects as `read` does. */
  walk(visitor: NameVisitor): Promise<void> {
    return walkNames(this.#disk, this.#inodes!, visitor);
  }

  system(use: BlockUse, block: number, blocks: number): void {
    this.#take(0, use, block, blocks);
  }

  inode(number: number, use: BlockUse, block: number, blocks: number): void {
    // No two inodes share blocks, but for those of xattrs; a disk that says otherwise could say so without end.
    if (use !== 'xattrs') this.#claimedBlocks += blocks;
    if (this.#claimedBlocks > this.#disk.shape.blocks)
      throw new LazydiskError('CORRUPT', 'the inodes of the ext4 disk have more blocks than it');
    this.#take(number, use, block, blocks);
  }

  #take(number: number, use: BlockUse, block: number, blocks: number): void {
    for (const piece of this.#disk.pieces(block, blocks)) {
      const chunk = Math.floor((piece.block * this.#disk.shape.blockBytes) / CHUNK_BYTES);
      if (this.#chunks && !this.#chunks.has(chunk)) continue;
      let ofChunk = this.#byChunk.get(chunk);
      if (!ofChunk) {
        ofChunk = new Map();
        this.#byChunk.set(chunk, ofChunk);
      }
      ofChunk.set(use, (ofChunk.get(use) ?? 0) + piece.blocks);
      if (number !== 0) this.#addRow(number, chunk, USES.indexOf(use), piece.blocks);
    }
  }

  #addRow(number: number, chunk: number, use: number, blocks: number): void {
    if ((this.#rowCount + 1) * ROW > this.#rows.length) {
      const rows = new Uint32Array(this.#rows.length * 2);
      rows.set(this.#rows);
      this.#rows = rows;
    }
    this.#rows.set([number, chunk, use, blocks], this.#rowCount * ROW);
    this.#rowCount++;
    if (this.#firstRow.get(number) === 0) this.#firstRow.set(number, this.#rowCount);
  }
}
