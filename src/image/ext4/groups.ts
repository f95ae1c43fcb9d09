/**
 * Block groups: what is used in each, their bitmaps and their descriptors. An unused group has no bitmap on the disk,
 * only a flag that says so, which keeps an empty TiB down to a few chunks.
 */
import { crc32c } from './crc32c.ts';
import { BLOCK_BYTES, blocksInGroup, DESCRIPTOR_BYTES, type Geometry } from './geometry.ts';
import { GROUP_BLOCK_UNINIT, GROUP_INODE_UNINIT, GROUP_INODE_ZEROED, writeDescriptor } from './superblock.ts';
import { type BlockUsage, setBits } from './usage.ts';

export interface Group {
  readonly number: number;
  readonly freeBlocks: number;
  /** If false, no block bitmap is written. */
  readonly hasBlocks: boolean;
  /** Inodes in use, from the first on; if 0, neither inode bitmap nor inode table is written. */
  readonly inodes: number;
  /** DESCRIPTOR_BYTES long. */
  readonly descriptor: Buffer;
}

/** All groups of a disk whose inodes are used up to `lastInode`, of which `directories` are directories. */
export function describeGroups(
  geometry: Geometry,
  usage: BlockUsage,
  lastInode: number,
  directories: Iterable<number>,
  seed: number,
): Group[] {
  const { inodesPerGroup } = geometry;
  const directoryCounts = new Uint32Array(geometry.groups);
  for (const number of directories) directoryCounts[Math.floor((number - 1) / inodesPerGroup)]!++;
  const bitmap = Buffer.alloc(BLOCK_BYTES);
  return Array.from({ length: geometry.groups }, (_, number) => {
    const freeBlocks = blocksInGroup(geometry, number) - usage.usedIn(number);
    // The last group always has a bitmap, which marks the blocks past the end of the disk.
    const hasBlocks = number === geometry.groups - 1 || freeBlocks < blocksInGroup(geometry, number);
    const inodes = Math.min(inodesPerGroup, Math.max(0, lastInode - number * inodesPerGroup));
    let blockBitmapSum = 0;
    if (hasBlocks) {
      usage.writeBitmap(bitmap.fill(0), number);
      blockBitmapSum = crc32c(seed, bitmap);
    }
    let inodeBitmapSum = 0;
    if (inodes > 0) {
      writeInodeBitmap(bitmap.fill(0), geometry, inodes);
      inodeBitmapSum = crc32c(seed, bitmap, 0, inodesPerGroup / 8);
    }
    const descriptor = Buffer.alloc(DESCRIPTOR_BYTES);
    const fields = {
      group: number,
      freeBlocks,
      freeInodes: inodesPerGroup - inodes,
      unusedInodes: inodesPerGroup - inodes,
      directories: directoryCounts[number]!,
      flags:
        GROUP_INODE_ZEROED | (hasBlocks ? 0 : GROUP_BLOCK_UNINIT) | (inodes > 0 ? 0 : GROUP_INODE_UNINIT),
      blockBitmapSum,
      inodeBitmapSum,
    };
    writeDescriptor(descriptor, geometry, fields, seed);
    return { number, freeBlocks, hasBlocks, inodes, descriptor };
  });
}

/** Fills a block of zeroes; the bits after the group's last inode are set, as ext4 requires. */
export function writeInodeBitmap(bitmap: Buffer, geometry: Geometry, inodes: number): void {
  setBits(bitmap, 0, inodes);
  setBits(bitmap, geometry.inodesPerGroup, BLOCK_BYTES * 8);
}

/** Fills block `at` of the descriptors. */
export function writeDescriptorBlock(block: Buffer, groups: readonly Group[], at: number): void {
  const perBlock = BLOCK_BYTES / DESCRIPTOR_BYTES;
  for (const [n, { descriptor }] of groups.slice(at * perBlock, (at + 1) * perBlock).entries()) {
    descriptor.copy(block, n * DESCRIPTOR_BYTES);
  }
}
