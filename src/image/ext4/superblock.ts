/**
 * Superblock, group descriptors and the journal's own superblock. Source: the kernel's
 * Documentation/filesystems/ext4/super.rst, group_descr.rst and journal.rst.
 */
import { CRC_START, crc32c, crc32cOfUint32 } from './crc32c.ts';
import {
  BLOCK_BYTES,
  BLOCKS_PER_GROUP,
  DESCRIPTOR_BYTES,
  type Geometry,
  INODE_BYTES,
  JOURNAL_BLOCKS,
  JOURNAL_INODE,
  LOST_AND_FOUND_INODE,
} from './geometry.ts';
import { GROUP, SUPER, SUPERBLOCK_BYTES, SUPERBLOCK_MAGIC, SUPERBLOCK_OFFSET } from './layout.ts';

const COMPAT = { hasJournal: 0x4, extAttr: 0x8, dirIndex: 0x20, sparseSuper2: 0x200 };
export const INCOMPAT = { filetype: 0x2, extents: 0x40, bits64: 0x80, flexBg: 0x200 };
export const RO_COMPAT = {
  largeFile: 0x2,
  hugeFile: 0x8,
  dirNlink: 0x20,
  extraIsize: 0x40,
  metadataCsum: 0x400,
};
/** Descriptor flags: no used inode, no used block, inode table zeroed. */
export const GROUP_INODE_UNINIT = 0x1;
export const GROUP_BLOCK_UNINIT = 0x2;
export const GROUP_INODE_ZEROED = 0x4;

const sum = (bits: Record<string, number>) => Object.values(bits).reduce((all, bit) => all | bit, 0);

export interface SuperblockFields {
  readonly geometry: Geometry;
  readonly uuid: Buffer;
  /** 16 bytes. */
  readonly hashSeed: Buffer;
  readonly freeBlocks: number;
  readonly freeInodes: number;
  /** The journal inode's 60 bytes of content, which the superblock holds a copy of. */
  readonly journalContent: Buffer;
}

/** Fills block 0, which is zeroed, from byte 1024 on. No time is set: the file system was never mounted or checked. */
export function writeSuperblock(block: Buffer, fields: SuperblockFields): void {
  const { geometry, uuid, hashSeed, freeBlocks, freeInodes, journalContent } = fields;
  const sb = block.subarray(SUPERBLOCK_OFFSET, SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES);
  const put64 = (value: number, low: number, high: number) => {
    sb.writeUInt32LE(value % 2 ** 32, low);
    sb.writeUInt32LE(Math.floor(value / 2 ** 32), high);
  };
  sb.writeUInt32LE(geometry.groups * geometry.inodesPerGroup, SUPER.inodes);
  put64(geometry.blocks, SUPER.blocks, SUPER.blocksHigh);
  put64(freeBlocks, SUPER.freeBlocks, SUPER.freeBlocksHigh);
  sb.writeUInt32LE(freeInodes, SUPER.freeInodes);
  sb.writeUInt32LE(2, SUPER.logBlockKib);
  sb.writeUInt32LE(2, SUPER.logClusterKib);
  sb.writeUInt32LE(BLOCKS_PER_GROUP, SUPER.blocksPerGroup);
  sb.writeUInt32LE(BLOCKS_PER_GROUP, SUPER.clustersPerGroup);
  sb.writeUInt32LE(geometry.inodesPerGroup, SUPER.inodesPerGroup);
  sb.writeUInt16LE(0xffff, SUPER.mountsMax);
  sb.writeUInt16LE(SUPERBLOCK_MAGIC, SUPER.magic);
  // Clean; on errors, continue; creator Linux; dynamic revision.
  sb.writeUInt16LE(1, SUPER.state);
  sb.writeUInt16LE(1, SUPER.onErrors);
  sb.writeUInt32LE(1, SUPER.revision);
  sb.writeUInt32LE(LOST_AND_FOUND_INODE, SUPER.firstInode);
  sb.writeUInt16LE(INODE_BYTES, SUPER.inodeBytes);
  sb.writeUInt32LE(sum(COMPAT), SUPER.compat);
  sb.writeUInt32LE(sum(INCOMPAT), SUPER.incompat);
  sb.writeUInt32LE(sum(RO_COMPAT), SUPER.roCompat);
  uuid.copy(sb, SUPER.uuid);
  sb.writeUInt32LE(JOURNAL_INODE, SUPER.journalInode);
  hashSeed.copy(sb, SUPER.hashSeed);
  // half_md4; the journal's blocks are backed up below.
  sb[SUPER.hashVersion] = 1;
  sb[SUPER.journalBackupType] = 1;
  sb.writeUInt16LE(DESCRIPTOR_BYTES, SUPER.descriptorBytes);
  // Default mount options: user_xattr and acl.
  sb.writeUInt32LE(0xc, SUPER.mountOptions);
  journalContent.copy(sb, SUPER.journalContent);
  sb.writeUInt32LE(JOURNAL_BLOCKS * BLOCK_BYTES, SUPER.journalContent + 16 * 4);
  sb.writeUInt16LE(32, SUPER.extraBytesMin);
  sb.writeUInt16LE(32, SUPER.extraBytesWanted);
  // Directory hashes are over unsigned bytes.
  sb.writeUInt32LE(2, SUPER.flags);
  sb[SUPER.logGroupsPerFlex] = 4;
  // Checksums are CRC-32C.
  sb[SUPER.checksumType] = 1;
  sb.writeUInt32LE(crc32c(CRC_START, sb, 0, SUPER.checksum), SUPER.checksum);
}

export interface GroupFields {
  readonly group: number;
  readonly freeBlocks: number;
  readonly freeInodes: number;
  readonly directories: number;
  readonly unusedInodes: number;
  readonly flags: number;
  readonly blockBitmapSum: number;
  readonly inodeBitmapSum: number;
}

/** Fills DESCRIPTOR_BYTES of zeroes with a group's descriptor; `seed` is the file system's checksum seed. */
export function writeDescriptor(
  descriptor: Buffer,
  geometry: Geometry,
  fields: GroupFields,
  seed: number,
): void {
  const { group } = fields;
  const put = (value: number, low: number, high: number, bytes: 2 | 4) => {
    const split = 2 ** (bytes * 8);
    descriptor.writeUIntLE(value % split, low, bytes);
    descriptor.writeUIntLE(Math.floor(value / split), high, bytes);
  };
  put(geometry.blockBitmaps + group, GROUP.blockBitmap, GROUP.blockBitmapHigh, 4);
  put(geometry.inodeBitmaps + group, GROUP.inodeBitmap, GROUP.inodeBitmapHigh, 4);
  put(geometry.inodeTables + group * geometry.tableBlocks, GROUP.inodeTable, GROUP.inodeTableHigh, 4);
  put(fields.freeBlocks, GROUP.freeBlocks, GROUP.freeBlocksHigh, 2);
  put(fields.freeInodes, GROUP.freeInodes, GROUP.freeInodesHigh, 2);
  put(fields.directories, GROUP.directories, GROUP.directoriesHigh, 2);
  descriptor.writeUInt16LE(fields.flags, GROUP.flags);
  put(fields.blockBitmapSum, GROUP.blockBitmapSum, GROUP.blockBitmapSumHigh, 2);
  put(fields.inodeBitmapSum, GROUP.inodeBitmapSum, GROUP.inodeBitmapSumHigh, 2);
  put(fields.unusedInodes, GROUP.unusedInodes, GROUP.unusedInodesHigh, 2);
  descriptor.writeUInt16LE(crc32c(crc32cOfUint32(seed, group), descriptor) & 0xffff, GROUP.checksum);
}

/** Fills the first block of the journal: version 2, empty. The journal is big-endian. */
export function writeJournalSuperblock(block: Buffer, uuid: Buffer): void {
  block.writeUInt32BE(0xc03b3998, 0);
  block.writeUInt32BE(4, 4);
  block.writeUInt32BE(BLOCK_BYTES, 12);
  block.writeUInt32BE(JOURNAL_BLOCKS, 16);
  block.writeUInt32BE(1, 20);
  block.writeUInt32BE(1, 24);
  uuid.copy(block, 48);
  block.writeUInt32BE(1, 64);
}
