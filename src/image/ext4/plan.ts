/**
 * Decides everything before a byte is written: the number of each inode, and how many blocks it needs. Numbers follow
 * the tree, depth first in byte order of the names, so that equal trees produce equal disks in whatever order they were
 * merged.
 */
import { LazydiskError, withContext } from '../../errors.ts';
import { quote } from '../quote.ts';
import type { TreeInode } from '../tree.ts';
import { inodeSeed } from './crc32c.ts';
import { Directory, type DirectoryEntry } from './directory.ts';
import { type BlockRun, extentBlocks, extentsOf, normaliseRuns } from './extents.ts';
import { BLOCK_BYTES, LOST_AND_FOUND_INODE, ROOT_INODE } from './geometry.ts';
import { type DividedXattrs, divideXattrs } from './xattr.ts';

/** Symlinks shorter than this are stored in the inode. */
export const FAST_SYMLINK_BYTES = 60;
const SYMLINK_BYTES_MAX = BLOCK_BYTES - 1;
/**
 * 2 TiB: larger than any disk that lazydisk writes, and beyond it a file's sector count needs an encoding that is not
 * implemented.
 */
const FILE_BYTES_MAX = 2 ** 41;
/**
 * A file with more names is refused; a directory with this many subdirectories has a link count of 1 instead
 * (dir_nlink).
 */
const LINKS_MAX = 65000;
const DEVICE_MAJOR_MAX = 0xfff;
const DEVICE_MINOR_MAX = 0xfffff;

/** One inode with its number and the blocks it needs. */
export interface PlannedInode {
  readonly number: number;
  readonly inode: TreeInode;
  readonly directory: Directory | undefined;
  readonly xattrs: DividedXattrs;
  readonly links: number;
  /** Where its own blocks start, counted from the first one after the journal. In this order, they are: */
  readonly firstBlock: number;
  /** a directory's entries or a long symlink's target, */
  readonly contentBlocks: number;
  /** the extent tree, */
  readonly extentBlocks: number;
  /** and the xattrs that do not fit in the inode. */
  readonly xattrBlocks: number;
}

export interface Plan {
  /** In order of their numbers: the root, then lost+found, then the rest from 12 on without gaps. */
  readonly inodes: readonly PlannedInode[];
  /** Blocks that all of them need after the journal. */
  readonly metadataBlocks: number;
  /** The highest inode number in use. */
  readonly lastInode: number;
}

interface Numbered {
  readonly number: number;
  readonly inode: TreeInode;
  /** The name by which it was first found, and that name's directory. */
  readonly name: string;
  readonly parent: Numbered | undefined;
}

/** State that the planning of all inodes shares. */
interface Shared {
  readonly numbers: ReadonlyMap<TreeInode, number>;
  readonly hashSeed: Int32Array;
  readonly seed: number;
  /** Sets already divided: thousands of inodes may share one set. */
  readonly xattrs: Map<TreeInode['xattrs'], DividedXattrs>;
}

/** Plans a tree. Throws NO_SPACE, CORRUPT or UNSUPPORTED, with the path, for anything that ext4 cannot hold. */
export function planTree(root: TreeInode, hashSeed: Int32Array, seed: number): Plan {
  const { numbered, numbers } = numberInodes(root);
  const shared: Shared = { numbers, hashSeed, seed, xattrs: new Map() };
  let metadataBlocks = 0;
  const inodes = numbered.map((one) => {
    try {
      const planned = planInode(one, metadataBlocks, shared);
      metadataBlocks += planned.contentBlocks + planned.extentBlocks + planned.xattrBlocks;
      return planned;
    } catch (error) {
      if (!(error instanceof LazydiskError)) throw error;
      throw withContext(error, `path ${quote(pathOf(one))}`);
    }
  });
  return { inodes, metadataBlocks, lastInode: numbered.at(-1)!.number };
}

/** Returns the planned inode of a number; undefined for reserved and free numbers. */
export function inodeOfNumber({ inodes }: Plan, number: number): PlannedInode | undefined {
  if (number === ROOT_INODE) return inodes[0];
  return number < LOST_AND_FOUND_INODE ? undefined : inodes[number - LOST_AND_FOUND_INODE + 1];
}

/** A file's data as runs of blocks; `physical` is relative to the first data block. */
export function dataRuns({ extents }: TreeInode): BlockRun[] {
  return normaliseRuns(
    extents.map(({ fileOffset, dataOffset, lengthBytes }) => ({
      logical: fileOffset / BLOCK_BYTES,
      physical: dataOffset / BLOCK_BYTES,
      blocks: Math.ceil(lengthBytes / BLOCK_BYTES),
    })),
  );
}

function pathOf(numbered: Numbered): string {
  const names: string[] = [];
  for (let at: Numbered | undefined = numbered; at?.parent; at = at.parent) names.push(at.name);
  return names.length === 0 ? '.' : names.reverse().join('/');
}

function byName([a]: [string, TreeInode], [b]: [string, TreeInode]): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function numberInodes(root: TreeInode): { numbered: Numbered[]; numbers: Map<TreeInode, number> } {
  const lostAndFound = root.children.get('lost+found') ?? newLostAndFound(root);
  const top: Numbered = { number: ROOT_INODE, inode: root, name: '', parent: undefined };
  const lost: Numbered = {
    number: LOST_AND_FOUND_INODE,
    inode: lostAndFound,
    name: 'lost+found',
    parent: top,
  };
  const numbers = new Map([
    [root, ROOT_INODE],
    [lostAndFound, LOST_AND_FOUND_INODE],
  ]);
  const numbered = [top, lost];
  // A stack instead of recursion, because paths may be two thousand levels deep.
  const stack: { name: string; inode: TreeInode; parent: Numbered }[] = [];
  const pushChildren = (parent: Numbered) => {
    for (const [name, inode] of [...parent.inode.children].sort(byName).reverse()) {
      stack.push({ name, inode, parent });
    }
  };
  pushChildren(top);
  for (let next = stack.pop(); next; next = stack.pop()) {
    const { inode } = next;
    if (inode === lostAndFound) {
      if (next.parent === top && next.name === lost.name) pushChildren(lost);
    } else if (!numbers.has(inode)) {
      const one: Numbered = { number: LOST_AND_FOUND_INODE - 1 + numbered.length, ...next };
      numbers.set(inode, one.number);
      numbered.push(one);
      if (inode.kind === 'directory') pushChildren(one);
    }
  }
  return { numbered, numbers };
}

/** e2fsck expects lost+found; an image without one gets one, as mke2fs creates it. */
function newLostAndFound(root: TreeInode): TreeInode {
  return {
    kind: 'directory',
    mode: 0o700,
    uid: 0,
    gid: 0,
    mtimeNs: root.mtimeNs,
    xattrs: new Map(),
    links: 1,
    sizeBytes: 0,
    extents: [],
    target: '',
    rdevMajor: 0,
    rdevMinor: 0,
    children: new Map(),
  };
}

function planInode({ number, parent, inode }: Numbered, firstBlock: number, shared: Shared): PlannedInode {
  const { numbers, hashSeed, seed } = shared;
  const xattrs = shared.xattrs.get(inode.xattrs) ?? divideXattrs(inode.xattrs);
  shared.xattrs.set(inode.xattrs, xattrs);
  const plain = {
    number,
    inode,
    directory: undefined,
    xattrs,
    links: inode.links,
    firstBlock,
    contentBlocks: 0,
    extentBlocks: 0,
    xattrBlocks: xattrs.inBlock.length > 0 ? 1 : 0,
  };
  if (inode.kind !== 'directory' && inode.links > LINKS_MAX) {
    throw new LazydiskError('UNSUPPORTED', `more than ${LINKS_MAX} names of one file`);
  }
  switch (inode.kind) {
    case 'directory': {
      const entries = entriesOf(inode, number, numbers);
      const up = parent?.number ?? ROOT_INODE;
      const directory = new Directory(number, up, entries, hashSeed, inodeSeed(seed, number));
      const links = 2 + entries.filter(({ kind }) => kind === 'directory').length;
      return {
        ...plain,
        directory,
        links: links > LINKS_MAX ? 1 : links,
        contentBlocks: directory.blocks,
        extentBlocks: extentBlocks(extentsOf(directory.blocks)),
      };
    }
    case 'file':
      if (inode.sizeBytes > FILE_BYTES_MAX) {
        throw new LazydiskError('UNSUPPORTED', `a file of ${inode.sizeBytes} bytes`);
      }
      return { ...plain, extentBlocks: extentBlocks(dataRuns(inode).length) };
    case 'symlink': {
      const bytes = inode.target.length;
      if (bytes === 0 || bytes > SYMLINK_BYTES_MAX) {
        throw new LazydiskError('UNSUPPORTED', `a symlink target of ${bytes} bytes`);
      }
      return { ...plain, contentBlocks: bytes < FAST_SYMLINK_BYTES ? 0 : 1 };
    }
    case 'char':
    case 'block':
      if (inode.rdevMajor > DEVICE_MAJOR_MAX || inode.rdevMinor > DEVICE_MINOR_MAX) {
        throw new LazydiskError('UNSUPPORTED', `a device with number ${inode.rdevMajor}:${inode.rdevMinor}`);
      }
      return plain;
    default:
      return plain;
  }
}

function entriesOf(
  directory: TreeInode,
  number: number,
  numbers: ReadonlyMap<TreeInode, number>,
): DirectoryEntry[] {
  const entries: DirectoryEntry[] = [];
  for (const [name, inode] of directory.children) {
    entries.push({ name, inode: numbers.get(inode)!, kind: inode.kind });
  }
  if (number === ROOT_INODE && !directory.children.has('lost+found')) {
    entries.push({ name: 'lost+found', inode: LOST_AND_FOUND_INODE, kind: 'directory' });
  }
  return entries.sort((a, b) => (a.name < b.name ? -1 : 1));
}
