/**
 * Decides everything before a byte is written: which inode gets which number, and how many blocks each needs.
 * Numbers follow the tree, depth first in byte order of the names, so that equal trees give equal disks in
 * whatever order they were merged.
 */
import { LazydiskError } from '../../errors.ts';
import type { TreeInode } from '../tree.ts';
import { Directory, type DirectoryEntry, inodeSeed } from './directory.ts';
import { type BlockRun, extentBlocks, normaliseRuns } from './extents.ts';
import { BLOCK_BYTES, LOST_AND_FOUND_INODE, ROOT_INODE } from './geometry.ts';
import { type DividedXattrs, divideXattrs } from './xattr.ts';

/** Symlinks shorter than this lie in the inode. */
const FAST_SYMLINK_BYTES = 60;
const SYMLINK_BYTES_MAX = BLOCK_BYTES - 1;
/** 2 TiB: beyond it a file's block count needs a form that we do not write, and no disk of ours is that large. */
const FILE_BYTES_MAX = 2 ** 41;

/** One inode with its number and its needs. */
export interface PlannedInode {
  readonly number: number;
  readonly inode: TreeInode;
  readonly directory: Directory | undefined;
  /** Of a file: relative to the first data block. */
  readonly dataRuns: readonly BlockRun[];
  readonly xattrs: DividedXattrs;
  readonly links: number;
  /** Blocks behind the journal, in this order. */
  readonly contentBlocks: number;
  readonly extentBlocks: number;
  readonly xattrBlocks: number;
}

export interface Plan {
  /** In order of their numbers; the root first, then lost+found, then the rest from 12. */
  readonly inodes: readonly PlannedInode[];
  /** Blocks that all of them need behind the journal. */
  readonly metadataBlocks: number;
  /** The highest inode number in use. */
  readonly lastInode: number;
}

interface Numbered {
  readonly number: number;
  readonly parent: number;
  readonly path: string;
  readonly inode: TreeInode;
}

/** Plans a tree. Throws NO_SPACE or UNSUPPORTED naming the path of what ext4 cannot hold. */
export function planTree(root: TreeInode, hashSeed: Int32Array, seed: number): Plan {
  const { numbered, numbers } = numberInodes(root);
  let metadataBlocks = 0;
  const inodes = numbered.map((one) => {
    const planned = planInode(one, numbers, hashSeed, seed);
    metadataBlocks += planned.contentBlocks + planned.extentBlocks + planned.xattrBlocks;
    return planned;
  });
  return { inodes, metadataBlocks, lastInode: numbered.at(-1)!.number };
}

function byName([a]: [string, TreeInode], [b]: [string, TreeInode]): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function numberInodes(root: TreeInode): { numbered: Numbered[]; numbers: Map<TreeInode, number> } {
  const lostAndFound = root.children.get('lost+found') ?? newLostAndFound(root);
  const numbers = new Map<TreeInode, number>([
    [root, ROOT_INODE],
    [lostAndFound, LOST_AND_FOUND_INODE],
  ]);
  const numbered: Numbered[] = [
    { number: ROOT_INODE, parent: ROOT_INODE, path: '/', inode: root },
    { number: LOST_AND_FOUND_INODE, parent: ROOT_INODE, path: '/lost+found', inode: lostAndFound },
  ];
  let next = LOST_AND_FOUND_INODE + 1;
  // A stack of what is still to be numbered, not recursion: paths may be two thousand levels deep.
  const stack: { name: string; inode: TreeInode; parent: number; parentPath: string }[] = [];
  const push = (directory: TreeInode, number: number, path: string) => {
    for (const [name, inode] of [...directory.children].sort(byName).reverse()) {
      stack.push({ name, inode, parent: number, parentPath: path });
    }
  };
  push(root, ROOT_INODE, '');
  for (let top = stack.pop(); top; top = stack.pop()) {
    const { inode, parent } = top;
    const path = `${top.parentPath}/${top.name}`;
    if (inode === lostAndFound) {
      push(inode, LOST_AND_FOUND_INODE, path);
    } else if (!numbers.has(inode)) {
      const number = next++;
      numbers.set(inode, number);
      numbered.push({ number, parent, path, inode });
      if (inode.kind === 'directory') push(inode, number, path);
    }
  }
  if (!root.children.has('lost+found')) numbers.set(lostAndFound, LOST_AND_FOUND_INODE);
  return { numbered, numbers };
}

/** e2fsck wants the place where it puts what it finds; an image that has none gets one, as mke2fs makes it. */
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

function planInode(
  { number, parent, path, inode }: Numbered,
  numbers: ReadonlyMap<TreeInode, number>,
  hashSeed: Int32Array,
  seed: number,
): PlannedInode {
  const xattrs = divideXattrs(inode.xattrs, path);
  const xattrBlocks = xattrs.inBlock.length > 0 ? 1 : 0;
  const plain = { number, inode, xattrs, xattrBlocks, directory: undefined, dataRuns: [], extentBlocks: 0 };
  switch (inode.kind) {
    case 'directory': {
      const entries = entriesOf(inode, number, numbers);
      const directory = new Directory(number, parent, entries, hashSeed, inodeSeed(seed, number));
      const subdirectories = entries.filter(({ kind }) => kind === 'directory').length;
      // A directory of so many that its count would overflow says 1 (dir_nlink).
      const links = subdirectories + 2 > 65000 ? 1 : subdirectories + 2;
      return { ...plain, directory, links, contentBlocks: directory.blocks };
    }
    case 'file': {
      if (inode.sizeBytes > FILE_BYTES_MAX) {
        throw new LazydiskError(
          'UNSUPPORTED',
          `${path}: ${inode.sizeBytes} bytes are more than a file can have`,
        );
      }
      const dataRuns = normaliseRuns(
        inode.extents.map(({ fileOffset, dataOffset, lengthBytes }) => ({
          logical: fileOffset / BLOCK_BYTES,
          physical: dataOffset / BLOCK_BYTES,
          blocks: Math.ceil(lengthBytes / BLOCK_BYTES),
        })),
      );
      const treeBlocks = extentBlocks(dataRuns.length);
      return { ...plain, dataRuns, links: inode.links, contentBlocks: 0, extentBlocks: treeBlocks };
    }
    case 'symlink': {
      const bytes = inode.target.length;
      if (bytes === 0 || bytes > SYMLINK_BYTES_MAX) {
        throw new LazydiskError('UNSUPPORTED', `${path}: a symbolic link to a target of ${bytes} bytes`);
      }
      return { ...plain, links: inode.links, contentBlocks: bytes < FAST_SYMLINK_BYTES ? 0 : 1 };
    }
    default:
      return { ...plain, links: inode.links, contentBlocks: 0 };
  }
}

function entriesOf(
  directory: TreeInode,
  number: number,
  numbers: ReadonlyMap<TreeInode, number>,
): DirectoryEntry[] {
  const children: [string, number, TreeInode['kind']][] = [...directory.children].map(([name, inode]) => [
    name,
    numbers.get(inode)!,
    inode.kind,
  ]);
  if (number === ROOT_INODE && !directory.children.has('lost+found')) {
    children.push(['lost+found', LOST_AND_FOUND_INODE, 'directory']);
  }
  children.sort(([a], [b]) => (a < b ? -1 : 1));
  return children.map(([name, inode, kind]) => ({ name: Buffer.from(name, 'latin1'), inode, kind }));
}
