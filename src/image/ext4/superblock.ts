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

export const SUPERBLOCK_OFFSET = 1024;
export const SUPERBLOCK_BYTES = 1024;
export const SUPERBLOCK_MAGIC = 0xef53;

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
  /** The journal inode's 60 bytes, which the superblock keeps a copy of. */
  readonly journalContent: Buffer;
}

/** Fills block 0, zeroes, from byte 1024 on. No time in it is set: it was never mounted nor checked. */
export function writeSuperblock(block: Buffer, fields: SuperblockFields): void {
  const { geometry, uuid, hashSeed, freeBlocks, freeInodes, journalContent } = fields;
  const sb = block.subarray(SUPERBLOCK_OFFSET, SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES);
  const put64 = (value: number, low: number, high: number) => {
    sb.writeUInt32LE(value % 2 ** 32, low);
    sb.writeUInt32LE(Math.floor(value / 2 ** 32), high);
  };
  sb.writeUInt32LE(geometry.groups * geometry.inodesPerGroup, 0);
  put64(geometry.blocks, 4, 336);
  put64(freeBlocks, 12, 344);
  sb.writeUInt32LE(freeInodes, 16);
  sb.writeUInt32LE(2, 24);
  sb.writeUInt32LE(2, 28);
  sb.writeUInt32LE(BLOCKS_PER_GROUP, 32);
  sb.writeUInt32LE(BLOCKS_PER_GROUP, 36);
  sb.writeUInt32LE(geometry.inodesPerGroup, 40);
  sb.writeUInt16LE(0xffff, 54);
  sb.writeUInt16LE(SUPERBLOCK_MAGIC, 56);
  // Clean; on errors, continue; creator Linux; dynamic revision.
  sb.writeUInt16LE(1, 58);
  sb.writeUInt16LE(1, 60);
  sb.writeUInt32LE(1, 76);
  sb.writeUInt32LE(LOST_AND_FOUND_INODE, 84);
  sb.writeUInt16LE(INODE_BYTES, 88);
  sb.writeUInt32LE(sum(COMPAT), 92);
  sb.writeUInt32LE(sum(INCOMPAT), 96);
  sb.writeUInt32LE(sum(RO_COMPAT), 100);
  uuid.copy(sb, 104);
  sb.writeUInt32LE(JOURNAL_INODE, 224);
  hashSeed.copy(sb, 236);
  // half_md4; the journal's blocks are backed up below.
  sb[252] = 1;
  sb[253] = 1;
  sb.writeUInt16LE(DESCRIPTOR_BYTES, 254);
  // Default mount options: user_xattr and acl.
  sb.writeUInt32LE(0xc, 256);
  journalContent.copy(sb, 268);
  sb.writeUInt32LE(JOURNAL_BLOCKS * BLOCK_BYTES, 268 + 16 * 4);
  sb.writeUInt16LE(32, 348);
  sb.writeUInt16LE(32, 350);
  // Directory hashes are over unsigned bytes.
  sb.writeUInt32LE(2, 352);
  sb[372] = 4;
  // Checksums are CRC-32C.
  sb[373] = 1;
  sb.writeUInt32LE(crc32c(CRC_START, sb, 0, 1020), 1020);
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
  put(geometry.blockBitmaps + group, 0, 32, 4);
  put(geometry.inodeBitmaps + group, 4, 36, 4);
  put(geometry.inodeTables + group * geometry.tableBlocks, 8, 40, 4);
  put(fields.freeBlocks, 12, 44, 2);
  put(fields.freeInodes, 14, 46, 2);
  put(fields.directories, 16, 48, 2);
  descriptor.writeUInt16LE(fields.flags, 18);
  put(fields.blockBitmapSum, 24, 56, 2);
  put(fields.inodeBitmapSum, 26, 58, 2);
  put(fields.unusedInodes, 28, 50, 2);
  descriptor.writeUInt16LE(crc32c(crc32cOfUint32(seed, group), descriptor) & 0xffff, 30);
}

/** Fills the first block of the journal: version 2, empty, big-endian as all of the journal is. */
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
