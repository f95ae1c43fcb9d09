/**
 * All names of a disk, from the root down. Index blocks of a hash tree look empty to a linear read of a directory, so
 * no index is followed. The disk may be corrupt in any way: every directory and block is read once, whatever refers to it.
 * Source: the kernel's Documentation/filesystems/ext4.
 */
import { ROOT_INODE } from '../geometry.ts';
import { DIRENT } from '../layout.ts';
import type { BlockPiece, Ext4Disk } from './disk.ts';
import { ExtentTrees } from './extents.ts';
import { DIRECTORY, type Ext4Inodes, WALKED } from './inodes.ts';
import { PagedMarks } from './marks.ts';

/** Four times PATH_MAX; deeper directories are not walked. */
const PATH_BYTES_MAX = 16384;

/** Paths are absolute byte strings (latin1); the root's is '/'. */
export interface NameVisitor {
  /** A name of an inode, which may be one of several. */
  name(number: number, path: string): void;
  /** A directory of which not all could be read; it has been visited by its name. */
  unread(number: number, path: string): void;
}

/** Visits all names below the root. Rejects with ABORTED, and with what the disk's reads reject with. */
export function walkNames(disk: Ext4Disk, inodes: Ext4Inodes, visitor: NameVisitor): Promise<void> {
  return new NameWalk(disk, inodes, visitor).run();
}

interface Folder {
  readonly number: number;
  /** Byte string; the root's is ''. */
  readonly path: string;
}

class NameWalk {
  readonly #disk: Ext4Disk;
  readonly #inodes: Ext4Inodes;
  readonly #visitor: NameVisitor;
  readonly #trees: ExtentTrees;
  /** Directory blocks read so far. */
  readonly #blocks = new PagedMarks();
  /** Directories still to be walked. A stack instead of recursion, because paths may be thousands of levels deep. */
  readonly #folders: Folder[] = [];

  constructor(disk: Ext4Disk, inodes: Ext4Inodes, visitor: NameVisitor) {
    this.#disk = disk;
    this.#inodes = inodes;
    this.#visitor = visitor;
    this.#trees = new ExtentTrees(disk);
  }

  async run(): Promise<void> {
    this.#visit(ROOT_INODE, '', this.#folders);
    if (!(this.#inodes.marks(ROOT_INODE) & DIRECTORY)) this.#visitor.unread(ROOT_INODE, '/');
    for (let next = this.#folders.pop(); next; next = this.#folders.pop()) await this.#walk(next);
  }

  /** Records a name; a directory that was not found before is added to `found`. */
  #visit(number: number, path: string, found: Folder[]): void {
    this.#visitor.name(number, path || '/');
    const marks = this.#inodes.marks(number);
    if (!(marks & DIRECTORY) || marks & WALKED) return;
    this.#inodes.add(number, WALKED);
    if (path.length <= PATH_BYTES_MAX) found.push({ number, path });
    else this.#visitor.unread(number, path);
  }

  async #walk(folder: Folder): Promise<void> {
    const found: Folder[] = [];
    const isWhole = await this.#readFolder(folder, found);
    if (!isWhole) this.#visitor.unread(folder.number, folder.path || '/');
    // The lowest number comes next: the order in which the writer laid out inodes and directories.
    found.sort((a, b) => b.number - a.number);
    for (const one of found) this.#folders.push(one);
  }

  /** Visits all names of a directory. Returns false if any of it is corrupt or cannot be read. */
  async #readFolder(folder: Folder, found: Folder[]): Promise<boolean> {
    const content = await this.#inodes.content(folder.number);
    if (!content) return false;
    let isWhole = true;
    const isWalked = await this.#trees.walk(content, {
      run: async ({ physical, blocks }) => {
        for (const piece of this.#disk.pieces(physical, blocks)) {
          const bytes = this.#claim(piece) ? await this.#disk.readMetadata(piece) : undefined;
          const isRead = bytes !== undefined && this.#readEntries(bytes, folder, found);
          isWhole &&= isRead;
        }
      },
    });
    return isWhole && isWalked;
  }

  /**
   * Returns false if any of these blocks was claimed before: a block that two directories share, or one uses twice, is
   * not read again.
   */
  #claim({ block, blocks }: BlockPiece): boolean {
    let isFree = true;
    for (let at = block; at < block + blocks; at++) {
      isFree &&= this.#blocks.get(at) === 0;
      this.#blocks.add(at, 1);
    }
    return isFree;
  }

  /** Visits the names in some blocks of a directory. Returns false if any of them is corrupt. */
  #readEntries(bytes: Buffer, folder: Folder, found: Folder[]): boolean {
    const { blockBytes } = this.#disk.shape;
    let isWhole = true;
    for (let from = 0; from < bytes.length; from += blockBytes) {
      const isRead = this.#readBlock(bytes.subarray(from, from + blockBytes), folder, found);
      isWhole &&= isRead;
    }
    return isWhole;
  }

  #readBlock(block: Buffer, { path }: Folder, found: Folder[]): boolean {
    for (let at = 0; at < block.length; ) {
      const room = block.length - at;
      if (room < DIRENT.name) return false;
      const number = block.readUInt32LE(at + DIRENT.inode);
      const entryBytes = block.readUInt16LE(at + DIRENT.entryBytes);
      const nameBytes = block[at + DIRENT.nameBytes]!;
      const nameAt = at + DIRENT.name;
      if (entryBytes > room || entryBytes % 4 !== 0) return false;
      if (DIRENT.name + nameBytes > entryBytes) return false;
      // Number 0: an empty entry, an index, or the checksum at the end of the block.
      if (number !== 0) {
        const name = block.toString('latin1', nameAt, nameAt + nameBytes);
        if (name === '' || name.includes('/') || name.includes('\0')) return false;
        if (number > this.#disk.shape.inodes) return false;
        if (name !== '.' && name !== '..') this.#visit(number, `${path}/${name}`, found);
      }
      at += entryBytes;
    }
    return true;
  }
}
