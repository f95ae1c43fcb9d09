/**
 * The inodes of a disk, read in one pass over their tables in the order of the disk. For each, one byte says what it is
 * and whether it is hit, and nothing else is kept, so a million inodes take a megabyte.
 */

import { JOURNAL_INODE, ROOT_INODE } from '../geometry.ts';
import { FLAG_EXTENTS, TYPE_BITS } from '../inode.ts';
import { CONTENT_BYTES, GROUP, INODE } from '../layout.ts';
import { FAST_SYMLINK_BYTES } from '../plan.ts';
import { GROUP_BLOCK_UNINIT, GROUP_INODE_UNINIT } from '../superblock.ts';
import type { Ext4Disk } from './disk.ts';
import { ExtentTrees } from './extents.ts';
import { PagedMarks } from './marks.ts';

/** In use. */
export const USED = 1;
export const DIRECTORY = 2;
/** It, or any of its blocks, is in a chunk that is asked about. */
export const HIT = 4;
/** It, or any part of its extent tree, cannot be read. */
export const UNREADABLE = 8;
/** Marks of those who walk the directories: this one was walked; it was counted. */
export const WALKED = 16;
export const COUNTED = 32;

const TYPE_MASK = 0o170000;
/** Kinds whose 60 bytes of content point to blocks. */
const KINDS_WITH_BLOCKS = [TYPE_BITS.file, TYPE_BITS.directory, TYPE_BITS.symlink];

/** What blocks can be there for. Those of reserved inodes are neither a path's nor listed apart, but for the journal's. */
export type BlockUse =
  | 'superblock'
  | 'descriptors'
  | 'bitmaps'
  | 'inodes'
  | 'journal'
  | 'reserved'
  | 'directory'
  | 'extents'
  | 'xattrs'
  | 'data';

/** Is told what each block is used for, in one pass; blocks lie inside of the disk. */
export interface BlockWatcher {
  /** Blocks of the file system itself. */
  system(use: BlockUse, block: number, blocks: number): void;
  /** Blocks of what inode `number` holds: data, or whatever else is its alone. */
  inode(number: number, use: BlockUse, block: number, blocks: number): void;
}

/** Where a group's inodes are. */
interface InodeTable {
  readonly group: number;
  readonly block: number;
  /** Inodes of the group that may be in use, counted from its first. */
  readonly inodes: number;
}

export class Ext4Inodes {
  readonly #disk: Ext4Disk;
  readonly #watcher: BlockWatcher | undefined;
  readonly #marks = new PagedMarks();
  /** By group; groups whose descriptor cannot be read or is invalid have none. */
  readonly #tables = new Map<number, InodeTable>();

  private constructor(disk: Ext4Disk, watcher: BlockWatcher | undefined) {
    this.#disk = disk;
    this.#watcher = watcher;
  }

  /** Reads all descriptors and all inodes. */
  static async read(disk: Ext4Disk, watcher?: BlockWatcher): Promise<Ext4Inodes> {
    const inodes = new Ext4Inodes(disk, watcher);
    watcher?.system('superblock', disk.shape.firstBlock, 1);
    await inodes.#readDescriptors();
    await inodes.#readTables();
    return inodes;
  }

  /** The marks of an inode; `number` is at least 1 and at most the shape's count. */
  marks(number: number): number {
    const isLost = !this.#tables.has(this.#groupOf(number));
    return this.#marks.get(number) | (isLost ? HIT | UNREADABLE : 0);
  }

  /** Adds marks of the caller, with values above those defined here. */
  add(number: number, marks: number): void {
    this.#marks.add(number, marks);
  }

  /** Reads an inode's 60 bytes of content again; undefined if it cannot be read. */
  async content(number: number): Promise<Buffer | undefined> {
    const { inodesPerBlock, inodesPerGroup, inodeBytes } = this.#disk.shape;
    const table = this.#tables.get(this.#groupOf(number));
    if (!table) return undefined;
    const index = (number - 1) % inodesPerGroup;
    const block = table.block + Math.floor(index / inodesPerBlock);
    const bytes = await this.#disk.readMetadata({ block, blocks: 1 });
    return bytes && contentOf(bytes.subarray((index % inodesPerBlock) * inodeBytes));
  }

  #groupOf(number: number): number {
    return Math.floor((number - 1) / this.#disk.shape.inodesPerGroup);
  }

  async #readDescriptors(): Promise<void> {
    const { firstBlock, groups, descriptorBytes, blockBytes } = this.#disk.shape;
    const perBlock = blockBytes / descriptorBytes;
    const from = firstBlock + 1;
    for (const piece of this.#disk.pieces(from, Math.ceil(groups / perBlock))) {
      if (piece.block + piece.blocks > this.#disk.shape.blocks) return;
      this.#watcher?.system('descriptors', piece.block, piece.blocks);
      const bytes = await this.#disk.readMetadata(piece);
      if (!bytes) continue;
      const first = (piece.block - from) * perBlock;
      const end = Math.min(groups, first + piece.blocks * perBlock);
      for (let group = first; group < end; group++) {
        this.#readDescriptor(group, bytes.subarray((group - first) * descriptorBytes));
      }
    }
  }

  #readDescriptor(group: number, descriptor: Buffer): void {
    const { descriptorBytes, hasGroupFlags, inodesPerGroup, tableBlocks } = this.#disk.shape;
    const wide = descriptorBytes >= 64;
    const blockAt = (low: number, high: number) =>
      descriptor.readUInt32LE(low) + (wide ? descriptor.readUInt32LE(high) * 2 ** 32 : 0);
    const flags = hasGroupFlags ? descriptor.readUInt16LE(GROUP.flags) : 0;
    const unused =
      descriptor.readUInt16LE(GROUP.unusedInodes) +
      (wide ? descriptor.readUInt16LE(GROUP.unusedInodesHigh) * 2 ** 16 : 0);
    const hasNone = (flags & GROUP_INODE_UNINIT) !== 0;
    if (!(flags & GROUP_BLOCK_UNINIT)) this.#noteBitmap(blockAt(GROUP.blockBitmap, GROUP.blockBitmapHigh));
    if (!hasNone) this.#noteBitmap(blockAt(GROUP.inodeBitmap, GROUP.inodeBitmapHigh));
    const block = blockAt(GROUP.inodeTable, GROUP.inodeTableHigh);
    if (!this.#disk.holds(block, tableBlocks)) return;
    const isSaid = hasGroupFlags && unused <= inodesPerGroup;
    const inodes = hasNone ? 0 : inodesPerGroup - (isSaid ? unused : 0);
    this.#tables.set(group, { group, block, inodes });
  }

  #noteBitmap(block: number): void {
    this.#disk.noteMetadata(block, 1);
    if (this.#disk.holds(block, 1)) this.#watcher?.system('bitmaps', block, 1);
  }

  async #readTables(): Promise<void> {
    const { tableBlocks } = this.#disk.shape;
    const trees = new ExtentTrees(this.#disk);
    let free = 0;
    for (const table of [...this.#tables.values()].sort((a, b) => a.block - b.block)) {
      // Two groups cannot share blocks.
      if (table.block < free) this.#tables.delete(table.group);
      else {
        free = table.block + tableBlocks;
        await this.#readTable(table, trees);
      }
    }
  }

  async #readTable({ group, block, inodes }: InodeTable, trees: ExtentTrees): Promise<void> {
    const { inodesPerBlock, inodesPerGroup, inodeBytes } = this.#disk.shape;
    for (const piece of this.#disk.pieces(block, Math.ceil(inodes / inodesPerBlock))) {
      this.#watcher?.system('inodes', piece.block, piece.blocks);
      const bytes = await this.#disk.readMetadata(piece);
      const isHit = this.#disk.isHit(piece.block, piece.blocks);
      const skipped = (piece.block - block) * inodesPerBlock;
      const first = group * inodesPerGroup + 1 + skipped;
      const count = Math.min(inodes - skipped, piece.blocks * inodesPerBlock);
      for (let n = 0; n < count; n++) {
        if (!bytes) this.#marks.add(first + n, HIT | UNREADABLE);
        else {
          const inode = bytes.subarray(n * inodeBytes, (n + 1) * inodeBytes);
          if (isUsed(inode)) await this.#readInode(first + n, inode, isHit, trees);
        }
      }
    }
  }

  async #readInode(number: number, inode: Buffer, isHit: boolean, trees: ExtentTrees): Promise<void> {
    let marks = USED | (isHit ? HIT : 0);
    const isNamed = number >= this.#disk.shape.firstInode || number === ROOT_INODE;
    const kind = inode.readUInt16LE(INODE.mode) & TYPE_MASK;
    const hit = (use: BlockUse, block: number, blocks: number) => {
      if (this.#disk.isHit(block, blocks)) marks |= HIT;
      if (isNamed) this.#watcher?.inode(number, use, block, blocks);
      else this.#watcher?.system(number === JOURNAL_INODE ? 'journal' : 'reserved', block, blocks);
    };
    if (kind === TYPE_BITS.directory) marks |= DIRECTORY;
    const xattrBlock =
      inode.readUInt32LE(INODE.xattrBlock) + inode.readUInt16LE(INODE.xattrBlockHigh) * 2 ** 32;
    if (xattrBlock !== 0) {
      if (this.#disk.holds(xattrBlock, 1)) hit('xattrs', xattrBlock, 1);
      else marks |= UNREADABLE;
    }
    if (KINDS_WITH_BLOCKS.includes(kind) && !isFastSymlink(inode, kind)) {
      const content = contentOf(inode);
      const use = kind === TYPE_BITS.directory ? 'directory' : 'data';
      const isWhole =
        inode.readUInt32LE(INODE.flags) & FLAG_EXTENTS
          ? await trees.walk(content, {
              node: (block) => hit('extents', block, 1),
              run: ({ physical, blocks }) => hit(use, physical, blocks),
            })
          : content.every((byte) => byte === 0);
      if (!isWhole) marks |= UNREADABLE;
    }
    if (isNamed) this.#marks.add(number, marks);
    // The journal and other reserved inodes have no name, and are metadata as a whole.
    else if (marks & HIT) this.#disk.metadataHit = true;
  }
}

function contentOf(inode: Buffer): Buffer {
  return inode.subarray(INODE.content, INODE.content + CONTENT_BYTES);
}

/** Whether it has a kind and at least one name. */
function isUsed(inode: Buffer): boolean {
  return inode.readUInt16LE(INODE.mode) !== 0 && inode.readUInt16LE(INODE.links) !== 0;
}

function isFastSymlink(inode: Buffer, kind: number): boolean {
  const isExtents = (inode.readUInt32LE(INODE.flags) & FLAG_EXTENTS) !== 0;
  return kind === TYPE_BITS.symlink && !isExtents && inode.readUInt32LE(INODE.size) < FAST_SYMLINK_BYTES;
}
