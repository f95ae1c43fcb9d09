/**
 * One inode as its 256 bytes on disk, in three steps: the fields, then what the caller puts into the content and
 * xattr areas, then the checksum over all. Source: the kernel's Documentation/filesystems/ext4/inodes.rst.
 */
import type { InodeKind } from '../tree.ts';
import { crc32c } from './crc32c.ts';
import { INODE } from './layout.ts';

/** Bytes of an inode's fields beyond the original 128. */
const EXTRA_BYTES = 32;
const TIMES = [INODE.accessTime, INODE.changeTime, INODE.modifyTime, INODE.createTime];
const TIME_EXTRAS = [
  INODE.accessTimeExtra,
  INODE.changeTimeExtra,
  INODE.modifyTimeExtra,
  INODE.createTimeExtra,
];
const FLAG_INDEX = 0x1000;
export const FLAG_EXTENTS = 0x80000;
/** Range of seconds that 32 signed bits and 2 more can hold. */
const SECONDS_MIN = -(2n ** 31n);
const SECONDS_MAX = 2n ** 34n - 2n ** 31n - 1n;
const BILLION = 1_000_000_000n;

export const TYPE_BITS: Record<InodeKind, number> = {
  fifo: 0o010000,
  char: 0o020000,
  directory: 0o040000,
  block: 0o060000,
  file: 0o100000,
  symlink: 0o120000,
  socket: 0o140000,
};

export interface InodeFields {
  readonly kind: InodeKind;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
  readonly sizeBytes: number;
  readonly links: number;
  /** All its blocks: data, extent tree, xattrs. */
  readonly blocks: number;
  readonly usesExtents: boolean;
  readonly indexed: boolean;
  /** 0: none. */
  readonly xattrBlock: number;
}

/**
 * Writes all but content, xattrs and checksum into `inode`, which is zeroed. All four times are its mtime; a time that
 * ext4 cannot hold (before 1901, after 2446) becomes the nearest one that it can, as in the kernel.
 */
export function writeInodeFields(inode: Buffer, fields: InodeFields): void {
  const sectors = fields.blocks * 8;
  inode.writeUInt16LE(TYPE_BITS[fields.kind] | fields.mode, INODE.mode);
  inode.writeUInt16LE(fields.uid & 0xffff, INODE.uid);
  inode.writeUInt32LE(fields.sizeBytes % 2 ** 32, INODE.size);
  inode.writeUInt16LE(fields.gid & 0xffff, INODE.gid);
  inode.writeUInt16LE(fields.links, INODE.links);
  inode.writeUInt32LE(sectors % 2 ** 32, INODE.sectors);
  inode.writeUInt32LE(
    (fields.usesExtents ? FLAG_EXTENTS : 0) | (fields.indexed ? FLAG_INDEX : 0),
    INODE.flags,
  );
  inode.writeUInt32LE(fields.xattrBlock % 2 ** 32, INODE.xattrBlock);
  inode.writeUInt32LE(Math.floor(fields.sizeBytes / 2 ** 32), INODE.sizeHigh);
  inode.writeUInt16LE(Math.floor(sectors / 2 ** 32), INODE.sectorsHigh);
  inode.writeUInt16LE(Math.floor(fields.xattrBlock / 2 ** 32), INODE.xattrBlockHigh);
  inode.writeUInt16LE(fields.uid >>> 16, INODE.uidHigh);
  inode.writeUInt16LE(fields.gid >>> 16, INODE.gidHigh);
  inode.writeUInt16LE(EXTRA_BYTES, INODE.extraBytes);
  const { low, extra } = timeWords(fields.mtimeNs);
  for (const at of TIMES) inode.writeInt32LE(low, at);
  for (const at of TIME_EXTRAS) inode.writeUInt32LE(extra, at);
}

/** Writes the checksum of all other bytes; `seed` is the inode's (see inodeSeed). */
export function sealInode(inode: Buffer, seed: number): void {
  const sum = crc32c(seed, inode);
  inode.writeUInt16LE(sum & 0xffff, INODE.checksum);
  inode.writeUInt16LE(sum >>> 16, INODE.checksumHigh);
}

/** The 32 signed low bits of the seconds, and 30 bits of nanoseconds over the 2 high bits of the seconds. */
function timeWords(timeNs: bigint): { low: number; extra: number } {
  let seconds = timeNs / BILLION;
  let nanoseconds = timeNs % BILLION;
  if (nanoseconds < 0n) {
    seconds -= 1n;
    nanoseconds += BILLION;
  }
  if (seconds < SECONDS_MIN) [seconds, nanoseconds] = [SECONDS_MIN, 0n];
  if (seconds > SECONDS_MAX) [seconds, nanoseconds] = [SECONDS_MAX, BILLION - 1n];
  const low = BigInt.asIntN(32, seconds);
  const epoch = ((seconds - low) >> 32n) & 3n;
  return { low: Number(low), extra: Number((nanoseconds << 2n) | epoch) };
}

/** Writes a device number into an inode's content: the old form if it fits, otherwise the new one (12 and 20 bits). */
export function writeDevice(content: Buffer, major: number, minor: number): void {
  if (major < 256 && minor < 256) content.writeUInt32LE((major << 8) | minor, 0);
  else content.writeUInt32LE(((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0, 4);
}
