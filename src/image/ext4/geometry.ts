/**
 * How a disk of a given size is divided: 4 KiB blocks in groups of 32768, and all metadata in one region at the front,
 * so that data chunks start after it on a chunk boundary and never share a chunk with metadata.
 *
 *     0 superblock │ group descriptors │ block bitmaps │ inode bitmaps │ inode tables │ journal │
 *     directories, extent trees, xattrs, long symlinks │ padding to a chunk │ data chunks │ free
 *
 * Source: the kernel's Documentation/filesystems/ext4 (flex_bg lets a group's bitmaps and tables be anywhere).
 */
import { CHUNK_BYTES } from '../../format/chunk-id.ts';

export const BLOCK_BYTES = 4096;
export const BLOCKS_PER_GROUP = 32768;
export const BLOCKS_PER_CHUNK = CHUNK_BYTES / BLOCK_BYTES;
export const INODE_BYTES = 256;
export const INODES_PER_BLOCK = BLOCK_BYTES / INODE_BYTES;
export const DESCRIPTOR_BYTES = 64;
/** A bitmap of one block has this many bits. */
export const INODES_PER_GROUP_MAX = BLOCK_BYTES * 8;
/** One inode for this many bytes of disk, as mke2fs does. */
const BYTES_PER_INODE = 16384;
/** 16 MiB: zero until a guest writes. */
export const JOURNAL_BLOCKS = 4096;

export const ROOT_INODE = 2;
export const JOURNAL_INODE = 8;
export const LOST_AND_FOUND_INODE = 11;

export const DISK_BYTES_MIN = 1024 ** 3;
export const DISK_BYTES_MAX = 1024 ** 4;

export interface Geometry {
  readonly diskBytes: number;
  readonly blocks: number;
  readonly groups: number;
  readonly inodesPerGroup: number;
  /** Blocks of one group's inode table. */
  readonly tableBlocks: number;
  readonly descriptorBlocks: number;
  /** First blocks of the parts of the metadata region. */
  readonly blockBitmaps: number;
  readonly inodeBitmaps: number;
  readonly inodeTables: number;
  readonly journal: number;
  /** First of the blocks for directories, extent trees, xattrs and symlinks. */
  readonly metadata: number;
}

/**
 * Divides a disk of `diskBytes` (a multiple of CHUNK_BYTES), which has one inode for every BYTES_PER_INODE or `inodes`,
 * whichever is more, in groups of at most INODES_PER_GROUP_MAX.
 */
export function geometryOf(diskBytes: number, inodes: number): Geometry {
  const blocks = diskBytes / BLOCK_BYTES;
  const groups = Math.ceil(blocks / BLOCKS_PER_GROUP);
  const wanted = Math.max(inodes, Math.floor(diskBytes / BYTES_PER_INODE));
  const inodesPerGroup = Math.ceil(wanted / groups / INODES_PER_BLOCK) * INODES_PER_BLOCK;
  const tableBlocks = inodesPerGroup / INODES_PER_BLOCK;
  const descriptorBlocks = Math.ceil((groups * DESCRIPTOR_BYTES) / BLOCK_BYTES);
  const blockBitmaps = 1 + descriptorBlocks;
  const inodeBitmaps = blockBitmaps + groups;
  const inodeTables = inodeBitmaps + groups;
  const journal = inodeTables + groups * tableBlocks;
  return {
    diskBytes,
    blocks,
    groups,
    inodesPerGroup,
    tableBlocks,
    descriptorBlocks,
    blockBitmaps,
    inodeBitmaps,
    inodeTables,
    journal,
    metadata: journal + JOURNAL_BLOCKS,
  };
}

/** Blocks of a group; the last may be short. */
export function blocksInGroup(geometry: Geometry, group: number): number {
  return Math.min(BLOCKS_PER_GROUP, geometry.blocks - group * BLOCKS_PER_GROUP);
}
