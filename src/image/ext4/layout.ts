/**
 * Byte offsets of the fields of ext4's structures, for writer and reader. Multi-byte fields are little-endian; a number
 * of more than 32 bits is in two fields, low and high. Source: the kernel's Documentation/filesystems/ext4: super.rst,
 * group_descr.rst, inodes.rst, ifork.rst and directory.rst.
 */

/** The superblock: its place on the disk, and its fields. */
export const SUPERBLOCK_OFFSET = 1024;
export const SUPERBLOCK_BYTES = 1024;
export const SUPERBLOCK_MAGIC = 0xef53;
export const SUPER = {
  inodes: 0,
  blocks: 4,
  freeBlocks: 12,
  freeInodes: 16,
  firstBlock: 20,
  logBlockKib: 24,
  logClusterKib: 28,
  blocksPerGroup: 32,
  clustersPerGroup: 36,
  inodesPerGroup: 40,
  mountsMax: 54,
  magic: 56,
  state: 58,
  onErrors: 60,
  revision: 76,
  firstInode: 84,
  inodeBytes: 88,
  compat: 92,
  incompat: 96,
  roCompat: 100,
  uuid: 104,
  journalInode: 224,
  hashSeed: 236,
  hashVersion: 252,
  journalBackupType: 253,
  descriptorBytes: 254,
  mountOptions: 256,
  journalContent: 268,
  blocksHigh: 336,
  freeBlocksHigh: 344,
  extraBytesMin: 348,
  extraBytesWanted: 350,
  flags: 352,
  logGroupsPerFlex: 372,
  checksumType: 373,
  checksum: 1020,
} as const;

/** A group descriptor. Only descriptors of 64 bytes and more have the high fields. */
export const GROUP = {
  blockBitmap: 0,
  inodeBitmap: 4,
  inodeTable: 8,
  freeBlocks: 12,
  freeInodes: 14,
  directories: 16,
  flags: 18,
  blockBitmapSum: 24,
  inodeBitmapSum: 26,
  unusedInodes: 28,
  checksum: 30,
  blockBitmapHigh: 32,
  inodeBitmapHigh: 36,
  inodeTableHigh: 40,
  freeBlocksHigh: 44,
  freeInodesHigh: 46,
  directoriesHigh: 48,
  unusedInodesHigh: 50,
  blockBitmapSumHigh: 56,
  inodeBitmapSumHigh: 58,
} as const;

/** An inode; the fields from `extraBytes` on are beyond the original 128 bytes. */
export const INODE = {
  mode: 0,
  uid: 2,
  size: 4,
  accessTime: 8,
  changeTime: 12,
  modifyTime: 16,
  gid: 24,
  links: 26,
  sectors: 28,
  flags: 32,
  /** 60 bytes that say where an inode's data is, or hold it. */
  content: 40,
  xattrBlock: 104,
  sizeHigh: 108,
  sectorsHigh: 116,
  xattrBlockHigh: 118,
  uidHigh: 120,
  gidHigh: 122,
  checksum: 124,
  extraBytes: 128,
  checksumHigh: 130,
  changeTimeExtra: 132,
  modifyTimeExtra: 136,
  accessTimeExtra: 140,
  createTime: 144,
  createTimeExtra: 148,
  /** The xattrs in the inode, after its 128 bytes and 32 extra ones. */
  xattrs: 160,
} as const;
export const CONTENT_BYTES = 60;

/** A node of an extent tree: a header, then entries of one size. */
export const EXTENT_MAGIC = 0xf30a;
export const EXTENT_HEADER = { magic: 0, entries: 2, entriesMax: 4, depth: 6 } as const;
export const EXTENT_HEADER_BYTES = 12;
export const EXTENT_ENTRY_BYTES = 12;
/** An entry at depth 0, and one at a greater depth. */
export const EXTENT = { logical: 0, blocks: 4, physicalHigh: 6, physical: 8 } as const;
export const EXTENT_INDEX = { logical: 0, block: 4, blockHigh: 8 } as const;

/** A directory entry. */
export const DIRENT = { inode: 0, entryBytes: 4, nameBytes: 6, fileType: 7, name: 8 } as const;
