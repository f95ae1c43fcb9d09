/**
 * The /dev/fuse protocol, as far as a read-only file system needs it: requests are parsed in place in a shared buffer,
 * replies are small Buffers. The source is the kernel's include/uapi/linux/fuse.h, protocol 7.31. Numbers are
 * little-endian because both ends are this machine, and Node runs on little-endian ones. One reader object moves from
 * request to request, so that a 4 KiB read allocates nothing here.
 */
import { LazydiskError } from '../../errors.ts';

export const FUSE_MAJOR = 7;
/** Linux 5.4. Older kernels are refused; newer ones support it too. */
export const FUSE_MINOR = 31;

/** enum fuse_opcode: those that are handled by name. */
export const Opcode = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  DESTROY: 38,
  NOTIFY_REPLY: 41,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  RENAME2: 45,
  LSEEK: 46,
  COPY_FILE_RANGE: 47,
  TMPFILE: 51,
} as const;

/** Flags of INIT (FUSE_*). */
export const InitFlag = {
  ASYNC_READ: 1 << 0,
  ASYNC_DIO: 1 << 15,
  PARALLEL_DIROPS: 1 << 18,
  MAX_PAGES: 1 << 22,
} as const;

/** FOPEN_KEEP_CACHE: what an earlier open left in the page cache is still valid. */
export const FOPEN_KEEP_CACHE = 1 << 1;

const HEADER_BYTES = 40;
const DIRENT_BYTES = 24;
const DT_DIR = 4;
const DT_REG = 8;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;

/** The node id of the mount's root (FUSE_ROOT_ID). */
export const ROOT_NODE_ID = 1;

/**
 * A cursor over the requests in a buffer. `next` moves it; the fields and getters then describe the current request.
 * Getters throw CORRUPT outside that request's body.
 */
export class RequestReader {
  opcode = 0;
  unique = 0;
  nodeId = 0;
  /** The reading thread's id as this process sees it; 0 if it is not visible here. */
  pid = 0;
  #bodyAt = 0;
  #bodyEnd = 0;
  readonly #bytes: Buffer;
  readonly #view: DataView;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  /** Moves to the request at `at`, in bytes up to `end`; returns the start of the next one (8-byte aligned). */
  next(at: number, end: number): number {
    const view = this.#view;
    if (at % 8 !== 0 || end > view.byteLength || at + HEADER_BYTES > end)
      throw corrupt('no room for a header');
    const length = view.getUint32(at, true);
    if (length < HEADER_BYTES || at + length > end) throw corrupt(`a request of ${length} bytes`);
    this.opcode = view.getUint32(at + 4, true);
    this.unique = uint64(view, at + 8);
    // Replies carry it back, so it must fit a number exactly. The kernel counts up from 0 in steps of 2.
    if (!Number.isSafeInteger(this.unique)) throw corrupt('a request id above 2^53');
    this.nodeId = uint64(view, at + 16);
    this.pid = view.getUint32(at + 32, true);
    this.#bodyAt = at + HEADER_BYTES;
    this.#bodyEnd = at + length;
    return (at + length + 7) & ~7;
  }

  get bodyBytes(): number {
    return this.#bodyEnd - this.#bodyAt;
  }

  u32(offset: number): number {
    return this.#view.getUint32(this.#inBody(offset, 4), true);
  }

  /** Above 2^53 the nearest number, which is enough for an offset: no disk is that long. */
  u64(offset: number): number {
    return uint64(this.#view, this.#inBody(offset, 8));
  }

  /** A NUL-terminated name, as latin1. */
  name(offset: number): string {
    const at = this.#inBody(offset, 1);
    const end = this.#bytes.indexOf(0, at);
    if (end < 0 || end >= this.#bodyEnd) throw corrupt('an unterminated name');
    return this.#bytes.toString('latin1', at, end);
  }

  #inBody(offset: number, lengthBytes: number): number {
    const at = this.#bodyAt + offset;
    if (offset < 0 || at + lengthBytes > this.#bodyEnd) throw corrupt('a request that is too short');
    return at;
  }
}

function uint64(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true);
}

function corrupt(what: string): LazydiskError {
  return new LazydiskError('CORRUPT', `FUSE protocol: ${what}`);
}

/** The attributes of an inode in GETATTR and LOOKUP replies. */
export interface Attributes {
  readonly nodeId: number;
  readonly directory: boolean;
  /** Permission bits. */
  readonly mode: number;
  readonly sizeBytes: number;
  readonly links: number;
  readonly uid: number;
  readonly gid: number;
}

export interface InitReply {
  readonly maxReadahead: number;
  readonly flags: number;
  readonly maxBackground: number;
  readonly congestionThreshold: number;
  readonly maxPages: number;
}

/** struct fuse_init_out, 64 bytes. */
export function initReply(init: InitReply): Buffer {
  const out = Buffer.alloc(64);
  out.writeUInt32LE(FUSE_MAJOR, 0);
  out.writeUInt32LE(FUSE_MINOR, 4);
  out.writeUInt32LE(init.maxReadahead, 8);
  out.writeUInt32LE(init.flags >>> 0, 12);
  out.writeUInt16LE(init.maxBackground, 16);
  out.writeUInt16LE(init.congestionThreshold, 18);
  out.writeUInt32LE(4096, 20); // max_write: the allowed minimum; it sizes the request buffer
  out.writeUInt32LE(1, 24); // time_gran, nanoseconds
  out.writeUInt16LE(init.maxPages, 28);
  return out;
}

/** struct fuse_entry_out, 128 bytes. The name is never cached, its attributes are for `attrValidS` seconds. */
export function entryReply(attributes: Attributes, attrValidS: number): Buffer {
  const out = Buffer.alloc(128);
  writeUInt64(out, attributes.nodeId, 0);
  writeUInt64(out, attrValidS, 24);
  writeAttributes(out, attributes, 40);
  return out;
}

/** struct fuse_attr_out, 104 bytes. */
export function attrReply(attributes: Attributes, attrValidS: number): Buffer {
  const out = Buffer.alloc(104);
  writeUInt64(out, attrValidS, 0);
  writeAttributes(out, attributes, 16);
  return out;
}

/** struct fuse_open_out, 16 bytes; there are no file handles. */
export function openReply(openFlags: number): Buffer {
  const out = Buffer.alloc(16);
  out.writeUInt32LE(openFlags, 8);
  return out;
}

/** struct fuse_statfs_out, 80 bytes: a full file system of `sizeBytes` in `files` files. */
export function statfsReply(sizeBytes: number, files: number): Buffer {
  const out = Buffer.alloc(80);
  writeUInt64(out, Math.floor(sizeBytes / 4096), 0);
  writeUInt64(out, files, 24);
  out.writeUInt32LE(4096, 40); // bsize
  out.writeUInt32LE(255, 44); // namelen
  out.writeUInt32LE(4096, 48); // frsize
  return out;
}

/** struct fuse_lseek_out. */
export function lseekReply(offset: number): Buffer {
  const out = Buffer.alloc(8);
  writeUInt64(out, offset, 0);
  return out;
}

/** One entry of a directory; a later READDIR continues after this entry at `cookie`. */
export interface DirectoryEntry {
  readonly name: string;
  readonly nodeId: number;
  readonly cookie: number;
  readonly directory: boolean;
}

/** struct fuse_dirent for as many entries as fit into `lengthBytesMax`. */
export function readdirReply(entries: Iterable<DirectoryEntry>, lengthBytesMax: number): Buffer {
  const parts: Buffer[] = [];
  let lengthBytes = 0;
  for (const { name, nodeId, cookie, directory } of entries) {
    const record = Buffer.alloc((DIRENT_BYTES + name.length + 7) & ~7);
    if (lengthBytes + record.length > lengthBytesMax) break;
    lengthBytes += record.length;
    writeUInt64(record, nodeId, 0);
    writeUInt64(record, cookie, 8);
    record.writeUInt32LE(name.length, 16);
    record.writeUInt32LE(directory ? DT_DIR : DT_REG, 20);
    record.write(name, DIRENT_BYTES, 'latin1');
    parts.push(record);
  }
  return Buffer.concat(parts);
}

/** struct fuse_attr, 88 bytes. All times are 0: equal images have equal attributes, and nothing here changes. */
function writeAttributes(out: Buffer, attributes: Attributes, at: number): void {
  const { nodeId, directory, mode, sizeBytes, links, uid, gid } = attributes;
  writeUInt64(out, nodeId, at);
  writeUInt64(out, sizeBytes, at + 8);
  writeUInt64(out, Math.ceil(sizeBytes / 512), at + 16);
  out.writeUInt32LE((directory ? S_IFDIR : S_IFREG) | mode, at + 60);
  out.writeUInt32LE(links, at + 64);
  out.writeUInt32LE(uid, at + 68);
  out.writeUInt32LE(gid, at + 72);
  out.writeUInt32LE(4096, at + 80); // blksize
}

function writeUInt64(out: Buffer, value: number, at: number): void {
  out.writeUInt32LE(value % 0x1_0000_0000, at);
  out.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4);
}
