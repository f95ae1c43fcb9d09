/**
 * The geometry that a superblock describes, for the reader. It accepts other writers' block and inode sizes, and
 * refuses what the disk's size rules out, so that loops over these numbers stay within the disk. Source: the kernel's
 * Documentation/filesystems/ext4/super.rst.
 */
import { LazydiskError } from '../../../errors.ts';
import { SUPER, SUPERBLOCK_MAGIC } from '../layout.ts';
import { INCOMPAT, RO_COMPAT } from '../superblock.ts';

/** Features that do not affect where a file's blocks are. */
const HARMLESS = { recover: 0x4, mmp: 0x100, csumSeed: 0x2000, largeDir: 0x4000, casefold: 0x20000 };
const READABLE = Object.values({ ...INCOMPAT, ...HARMLESS }).reduce((all, bit) => all | bit, 0);
/** Blocks are allocated in clusters, and groups are larger. */
const RO_BIGALLOC = 0x200;
/** With either of these, group descriptors have flags and a count of never-used inodes. */
const RO_GROUP_SUMS = 0x10 | RO_COMPAT.metadataCsum;
/** 4 KiB, the largest that Linux mounts on most machines. */
const LOG_BLOCK_KIB_MAX = 2;
const DESCRIPTOR_BYTES_MAX = 1024;
/** Inodes of the old revision, which states no size. */
const OLD_INODE_BYTES = 128;
const OLD_FIRST_INODE = 11;
/**
 * One byte of marks is kept for every inode in use; a disk that lazydisk writes has less than a quarter of this number.
 */
const INODES_MAX = 2 ** 28;

export interface DiskShape {
  readonly blockBytes: number;
  readonly blocks: number;
  /** The block that holds the superblock; descriptors follow it, and no file has a block before them. */
  readonly firstBlock: number;
  readonly groups: number;
  readonly descriptorBytes: number;
  /** Whether descriptors say which inodes were never used. */
  readonly hasGroupFlags: boolean;
  readonly inodes: number;
  readonly inodesPerGroup: number;
  readonly inodeBytes: number;
  readonly inodesPerBlock: number;
  /** Blocks of one group's inode table. */
  readonly tableBlocks: number;
  /** Lower numbers, except the root, are reserved for the file system. */
  readonly firstInode: number;
}

/**
 * Returns the shape of a disk of `diskBytes` by its superblock. Throws UNSUPPORTED for a disk that is not ext4 or has
 * features that affect where a file's blocks are, CORRUPT for impossible numbers.
 */
export function parseShape(superblock: Buffer, diskBytes: number): DiskShape {
  const u16 = (at: number) => superblock.readUInt16LE(at);
  const u32 = (at: number) => superblock.readUInt32LE(at);
  if (u16(SUPER.magic) !== SUPERBLOCK_MAGIC) throw new LazydiskError('UNSUPPORTED', 'not an ext4 disk');
  const incompat = u32(SUPER.incompat);
  const roCompat = u32(SUPER.roCompat);
  const unknown = incompat & ~READABLE;
  if (unknown !== 0 || !(incompat & INCOMPAT.extents) || !(incompat & INCOMPAT.filetype)) {
    throw new LazydiskError(
      'UNSUPPORTED',
      `an ext4 disk with unsupported features 0x${incompat.toString(16)}`,
    );
  }
  if (roCompat & RO_BIGALLOC) throw new LazydiskError('UNSUPPORTED', 'an ext4 disk with block clusters');
  const wide = (incompat & INCOMPAT.bits64) !== 0;
  const isOld = u32(SUPER.revision) === 0;
  if (u32(SUPER.logBlockKib) > LOG_BLOCK_KIB_MAX) {
    throw new LazydiskError('UNSUPPORTED', `an ext4 disk with blocks of 2^${u32(SUPER.logBlockKib)} KiB`);
  }
  const blockBytes = 1024 << u32(SUPER.logBlockKib);
  const blocks = u32(SUPER.blocks) + (wide ? u32(SUPER.blocksHigh) * 2 ** 32 : 0);
  demand(
    blocks * blockBytes <= diskBytes,
    `${blocks} blocks of ${blockBytes} on a disk of ${diskBytes} bytes`,
  );
  const firstBlock = u32(SUPER.firstBlock);
  demand(
    firstBlock === (blockBytes === 1024 ? 1 : 0) && firstBlock < blocks,
    `data from block ${firstBlock}`,
  );
  // One for each bit of a one-block bitmap, unless mke2fs was told to use fewer.
  if (u32(SUPER.blocksPerGroup) !== blockBytes * 8) {
    throw new LazydiskError('UNSUPPORTED', `an ext4 disk with groups of ${u32(SUPER.blocksPerGroup)} blocks`);
  }
  const groups = Math.ceil((blocks - firstBlock) / (blockBytes * 8));
  const descriptorBytes = wide ? u16(SUPER.descriptorBytes) : 32;
  const fits = descriptorBytes >= (wide ? 64 : 32) && descriptorBytes <= DESCRIPTOR_BYTES_MAX;
  demand(fits && isPowerOf2(descriptorBytes), `group descriptors of ${descriptorBytes} bytes`);
  const inodeBytes = isOld ? OLD_INODE_BYTES : u16(SUPER.inodeBytes);
  const isSize = inodeBytes >= OLD_INODE_BYTES && inodeBytes <= blockBytes && isPowerOf2(inodeBytes);
  demand(isSize, `inodes of ${inodeBytes} bytes`);
  const inodesPerGroup = u32(SUPER.inodesPerGroup);
  const inodesPerBlock = blockBytes / inodeBytes;
  const isTable = inodesPerGroup > 0 && inodesPerGroup <= blockBytes * 8;
  demand(isTable && inodesPerGroup % inodesPerBlock === 0, `groups of ${inodesPerGroup} inodes`);
  const inodes = u32(SUPER.inodes);
  demand(inodes === groups * inodesPerGroup, `${inodes} inodes in ${groups} groups of ${inodesPerGroup}`);
  if (inodes > INODES_MAX) throw new LazydiskError('UNSUPPORTED', `an ext4 disk with ${inodes} inodes`);
  return {
    blockBytes,
    blocks,
    firstBlock,
    groups,
    descriptorBytes,
    hasGroupFlags: (roCompat & RO_GROUP_SUMS) !== 0,
    inodes,
    inodesPerGroup,
    inodeBytes,
    inodesPerBlock,
    tableBlocks: inodesPerGroup / inodesPerBlock,
    firstInode: isOld ? OLD_FIRST_INODE : u32(SUPER.firstInode),
  };
}

function demand(holds: boolean, claim: string): void {
  if (!holds) throw new LazydiskError('CORRUPT', `impossible ext4 superblock: ${claim}`);
}

function isPowerOf2(value: number): boolean {
  return (value & (value - 1)) === 0;
}
