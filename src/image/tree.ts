/**
 * The merged file tree of an image, which the layer merge builds and the ext4 writer lays out. File data is not in it:
 * it was written to data chunks as the layers streamed, and an inode only says where. Names, link targets and xattr
 * names are byte strings, held as latin1 ("binary") JavaScript strings so that a name that is not UTF-8 survives.
 */

/** A piece of a file's data inside the data chunks, which the ext4 writer places after its metadata. */
export interface DataExtent {
  /** Byte offset in the file; a multiple of 4096. Ranges without an extent are holes and read as zeroes. */
  readonly fileOffset: number;
  /** Byte offset in the sequence of data chunks (chunk number × CHUNK_BYTES + offset in it); a multiple of 4096. */
  readonly dataOffset: number;
  /** Bytes of data; the rest of the last 4096-byte block is zero. */
  readonly lengthBytes: number;
}

export type InodeKind = 'file' | 'directory' | 'symlink' | 'char' | 'block' | 'fifo' | 'socket';

export interface TreeInode {
  readonly kind: InodeKind;
  /** Permission bits with setuid, setgid and sticky: 0 to 0o7777. */
  mode: number;
  /** 0 to 2^32 - 1. */
  uid: number;
  gid: number;
  /** Nanoseconds since 1970; may be negative. */
  mtimeNs: bigint;
  /** By full name ("user.x", "security.capability", "system.posix_acl_access"), value as it is on Linux. */
  xattrs: Map<string, Buffer>;
  /** Names that point to this inode (not counting `.` and `..`). */
  links: number;
  /** Files only. */
  sizeBytes: number;
  /** Files only; sorted by fileOffset, not overlapping. */
  extents: DataExtent[];
  /** Symlinks only; byte string. */
  target: string;
  /** Device nodes only. */
  rdevMajor: number;
  rdevMinor: number;
  /** Directories only; byte-string names, in the order of first appearance. */
  children: Map<string, TreeInode>;
}

/** The result of a merge. */
export interface MergedTree {
  readonly root: TreeInode;
  /** How many data chunks were emitted, live or not. */
  readonly dataChunks: number;
  /** Bit n & 7 of byte n >> 3 set: data chunk n holds data of a live file. Any other becomes a zero chunk. */
  readonly liveChunks: Uint8Array;
}

/** Receives chunks as they are completed. `bytes` is CHUNK_BYTES long, and owned by the sink from then on. */
export type ChunkSink = (chunk: number, bytes: Buffer) => Promise<void>;
