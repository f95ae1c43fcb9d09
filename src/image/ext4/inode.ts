/**
 * One inode as its 256 bytes on disk. Source: the kernel's Documentation/filesystems/ext4/inodes.rst.
 */
import type { InodeKind } from '../tree.ts';
import { crc32c } from './crc32c.ts';
import { INODE_BYTES } from './geometry.ts';
import { INODE_XATTR_OFFSET } from './xattr.ts';

const EXTRA_BYTES = 32;
const FLAG_INDEX = 0x1000;
const FLAG_EXTENTS = 0x80000;
/** Seconds that 32 signed bits and 2 more hold. */
const SECONDS_MIN = -(2n ** 31n);
const SECONDS_MAX = 2n ** 34n - 2n ** 31n - 1n;
const BILLION = 1_000_000_000n;

const TYPE_BITS: Record<InodeKind, number> = {
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
  /** All blocks that belong to it: data, extent tree, xattrs. */
  readonly blocks: number;
  /** The 60 bytes that say where its data is, or are it. */
  readonly content: Buffer;
  readonly usesExtents: boolean;
  readonly indexed: boolean;
  /** 0: none. */
  readonly xattrBlock: number;
  /** From INODE_XATTR_OFFSET to the end. */
  readonly xattrs: Buffer;
}

/** Renders an inode; `seed` is its checksum seed (see inodeSeed). All four times are its mtime. */
export function renderInode(fields: InodeFields, seed: number): Buffer {
  const inode = Buffer.alloc(INODE_BYTES);
  const sectors = fields.blocks * 8;
  inode.writeUInt16LE(TYPE_BITS[fields.kind] | fields.mode, 0);
  inode.writeUInt16LE(fields.uid & 0xffff, 2);
  inode.writeUInt32LE(fields.sizeBytes % 2 ** 32, 4);
  inode.writeUInt16LE(fields.gid & 0xffff, 24);
  inode.writeUInt16LE(fields.links, 26);
  inode.writeUInt32LE(sectors % 2 ** 32, 28);
  inode.writeUInt32LE((fields.usesExtents ? FLAG_EXTENTS : 0) | (fields.indexed ? FLAG_INDEX : 0), 32);
  fields.content.copy(inode, 40);
  inode.writeUInt32LE(fields.xattrBlock % 2 ** 32, 104);
  inode.writeUInt32LE(Math.floor(fields.sizeBytes / 2 ** 32), 108);
  inode.writeUInt16LE(Math.floor(sectors / 2 ** 32), 116);
  inode.writeUInt16LE(Math.floor(fields.xattrBlock / 2 ** 32), 118);
  inode.writeUInt16LE(fields.uid >>> 16, 120);
  inode.writeUInt16LE(fields.gid >>> 16, 122);
  inode.writeUInt16LE(EXTRA_BYTES, 128);
  const { low, extra } = timeWords(fields.mtimeNs);
  for (const at of [8, 12, 16, 144]) inode.writeInt32LE(low, at);
  for (const at of [132, 136, 140, 148]) inode.writeUInt32LE(extra, at);
  fields.xattrs.copy(inode, INODE_XATTR_OFFSET);
  const sum = crc32c(seed, inode);
  inode.writeUInt16LE(sum & 0xffff, 124);
  inode.writeUInt16LE(sum >>> 16, 130);
  return inode;
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

/** A device's number as the 60 bytes hold it: the old form where it fits, else the new one. */
export function deviceContent(major: number, minor: number): Buffer {
  const content = Buffer.alloc(60);
  if (major < 256 && minor < 256) content.writeUInt32LE((major << 8) | minor, 0);
  else content.writeUInt32LE(((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0, 4);
  return content;
}
