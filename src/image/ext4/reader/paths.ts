/**
 * Finds the paths of an ext4 disk that damaged chunks hit, without mounting it. There are two passes: one over all
 * inodes, which marks those that are hit, and one over all directories from the root down, which finds the names. The
 * disk may be corrupt in any way: every inode, directory and block is read once, whatever refers to it.
 */
import { printable } from '../../quote.ts';
import { type DiskRead, Ext4Disk } from './disk.ts';
import { COUNTED, Ext4Inodes, HIT, UNREADABLE, USED } from './inodes.ts';
import { type NameVisitor, walkNames } from './walk.ts';

export type { DiskRead };

const PATHS_MAX = 1000;

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
  const disk = await Ext4Disk.open(read, diskBytes, chunks, options.signal);
  if (!disk) return { paths: ['/'], more: 0, metadata: true, unreadable: 1 };
  const inodes = await Ext4Inodes.read(disk);
  const hits = new HitNames(inodes, options.pathsMax ?? PATHS_MAX);
  await walkNames(disk, inodes, hits);
  return {
    paths: hits.paths.sort().map(printable),
    more: hits.more,
    metadata: disk.metadataHit,
    unreadable: hits.unreadable,
  };
}

class HitNames implements NameVisitor {
  readonly paths: string[] = [];
  more = 0;
  unreadable = 0;
  readonly #inodes: Ext4Inodes;
  readonly #pathsMax: number;

  constructor(inodes: Ext4Inodes, pathsMax: number) {
    this.#inodes = inodes;
    this.#pathsMax = pathsMax;
  }

  name(number: number, path: string): void {
    const marks = this.#inodes.marks(number);
    const isLost = (marks & UNREADABLE) !== 0 || !(marks & USED);
    if (isLost || marks & HIT) this.#add(path);
    if (isLost) this.#count(number);
  }

  unread(number: number, path: string): void {
    const marks = this.#inodes.marks(number);
    if (marks & USED && !(marks & (HIT | UNREADABLE))) this.#add(path);
    this.#count(number);
  }

  #add(path: string): void {
    if (this.paths.length < this.#pathsMax) this.paths.push(path);
    else this.more++;
  }

  #count(number: number): void {
    if (this.#inodes.marks(number) & COUNTED) return;
    this.#inodes.add(number, COUNTED);
    this.unreadable++;
  }
}
