/**
 * Finds the paths of an ext4 disk that damaged chunks hit, without mounting it. There are two passes: one over all
 * inodes, which marks those that are hit, and one over all directories from the root down, which finds the names. Index
 * blocks of a hash tree look empty to a linear read of a directory, so no index is followed. The disk may be corrupt in
 * any way: every inode, directory and block is read once, whatever refers to it. Source: the kernel's
 * Documentation/filesystems/ext4.
 */
import { printable } from '../../quote.ts';
import { ROOT_INODE } from '../geometry.ts';
import { DIRENT } from '../layout.ts';
import { type BlockPiece, DamagedDisk, type DiskRead } from './disk.ts';
import { ExtentTrees } from './extents.ts';
import { DamagedInodes, DIRECTORY, HIT, UNREADABLE, USED } from './inodes.ts';
import { PagedMarks } from './marks.ts';

export type { DiskRead };

const PATHS_MAX = 1000;
/** Four times PATH_MAX; deeper directories are not walked. */
const PATH_BYTES_MAX = 16384;
/** Marks of the second pass: the directory was walked; the inode was counted as unreadable. */
const WALKED = 16;
const COUNTED = 32;

export interface HitPaths {
  /**
   * Absolute, with every name of a hard link, in byte order; text for a person (see printable). A path is hit if its
   * inode, data, extent tree, directory blocks or xattr block are in one of the chunks, or if it cannot be read.
   */
  readonly paths: string[];
  /** Paths beyond `pathsMax`. */
  readonly more: number;
  /**
   * Whether the file system's own blocks are in one of the chunks: superblock and descriptors, inodes, journal,
   * directories, extents.
   */
  readonly metadata: boolean;
  /**
   * Directories that cannot be read, or only in part, and other unreadable inodes that a directory names. If it is 0,
   * no path is missing.
   */
  readonly unreadable: number;
}

export interface HitPathsOptions {
  /** The most paths that are returned; which ones is unspecified. Default: 1000. */
  readonly pathsMax?: number;
  readonly signal?: AbortSignal;
}

/**
 * Returns the paths hit by `chunks` (indices of chunks of CHUNK_BYTES each) on a disk of `diskBytes`. Rejects with
 * UNSUPPORTED for a disk that is not ext4 or has unsupported features, CORRUPT for an impossible superblock, ABORTED,
 * and with what `read` rejects with.
 */
export async function pathsOfChunks(
  read: DiskRead,
  diskBytes: number,
  chunks: ReadonlySet<number>,
  options: HitPathsOptions = {},
): Promise<HitPaths> {
  const disk = await DamagedDisk.open(read, diskBytes, chunks, options.signal);
  if (!disk) return { paths: ['/'], more: 0, metadata: true, unreadable: 1 };
  const inodes = await DamagedInodes.read(disk);
  const walk = new PathWalk(disk, inodes, options.pathsMax ?? PATHS_MAX);
  await walk.run();
  return {
    paths: walk.paths.sort().map(printable),
    more: walk.more,
    metadata: disk.metadataHit,
    unreadable: walk.unreadable,
  };
}

interface Folder {
  readonly number: number;
  /** Byte string; the root's is ''. */
  readonly path: string;
}

class PathWalk {
  readonly paths: string[] = [];
  more = 0;
  unreadable = 0;
  readonly #disk: DamagedDisk;
  readonly #inodes: DamagedInodes;
  readonly #pathsMax: number;
  readonly #trees: ExtentTrees;
  /** Directory blocks read so far. */
  readonly #blocks = new PagedMarks();
  /** Directories still to be walked. A stack instead of recursion, because paths may be thousands of levels deep. */
  readonly #folders: Folder[] = [];

  constructor(disk: DamagedDisk, inodes: DamagedInodes, pathsMax: number) {
    this.#disk = disk;
    this.#inodes = inodes;
    this.#pathsMax = pathsMax;
    this.#trees = new ExtentTrees(disk);
  }

  async run(): Promise<void> {
    const found: Folder[] = [];
    this.#visit(ROOT_INODE, '', found);
    if (!(this.#inodes.marks(ROOT_INODE) & DIRECTORY)) this.#count(ROOT_INODE);
    this.#folders.push(...found);
    for (let next = this.#folders.pop(); next; next = this.#folders.pop()) await this.#walk(next);
  }

  /** Records a name; a directory that was not found before is added to `found`. */
  #visit(number: number, path: string, found: Folder[]): void {
    const marks = this.#inodes.marks(number);
    const isLost = (marks & UNREADABLE) !== 0 || !(marks & USED);
    if (isLost || marks & HIT) this.#add(path);
    if (isLost) this.#count(number);
    if (!(marks & DIRECTORY) || marks & WALKED) return;
    this.#inodes.add(number, WALKED);
    if (path.length <= PATH_BYTES_MAX) found.push({ number, path });
    else this.#count(number);
  }

  #add(path: string): void {
    if (this.paths.length < this.#pathsMax) this.paths.push(path === '' ? '/' : path);
    else this.more++;
  }

  #count(number: number): void {
    if (this.#inodes.marks(number) & COUNTED) return;
    this.#inodes.add(number, COUNTED);
    this.unreadable++;
  }

  async #walk(folder: Folder): Promise<void> {
    const found: Folder[] = [];
    if (!(await this.#readFolder(folder, found))) {
      const { number, path } = folder;
      if (!(this.#inodes.marks(number) & (HIT | UNREADABLE))) this.#add(path);
      this.#count(number);
    }
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
