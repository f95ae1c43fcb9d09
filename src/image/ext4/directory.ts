/**
 * Directories: linear blocks for few entries, a hash tree for many. A tree is packed in one pass from the sorted
 * hashes, leaf after leaf, and its index blocks are filled from the leaves' first hashes. Each block is written when
 * its chunk is. Source: the kernel's Documentation/filesystems/ext4/directory.rst.
 */
import { LazydiskError } from '../../errors.ts';
import type { InodeKind } from '../tree.ts';
import { crc32c } from './crc32c.ts';
import { dirHash } from './dir-hash.ts';
import { BLOCK_BYTES } from './geometry.ts';
import { DIRENT } from './layout.ts';

/** Directories of at most this many blocks gain nothing from an index. */
const LINEAR_BLOCKS_MAX = 2;
const TAIL_BYTES = 12;
const ROOM_BYTES = BLOCK_BYTES - TAIL_BYTES;
/** Index entries in a tree's root and in each node below it. */
const ROOT_ENTRIES = (BLOCK_BYTES - 32 - 8) / 8;
const NODE_ENTRIES = (BLOCK_BYTES - 8 - 8) / 8;
/** half_md4 over unsigned bytes: version 1, with the superblock's flag for unsigned hashes. */
const HASH_VERSION = 1;
const NAME_BYTES_MAX = 255;

const FILE_TYPES: Record<InodeKind, number> = {
  file: 1,
  directory: 2,
  char: 3,
  block: 4,
  fifo: 5,
  socket: 6,
  symlink: 7,
};

export interface DirectoryEntry {
  /** Byte string, at most 255 bytes. */
  readonly name: string;
  readonly inode: number;
  readonly kind: InodeKind;
}

interface Hashed {
  readonly entry: DirectoryEntry;
  readonly major: number;
  readonly minor: number;
}

function entryBytes({ name }: DirectoryEntry): number {
  return (DIRENT.name + name.length + 3) & ~3;
}

/** Splits `entries` into runs that each fit a block; returns the position of each run's first entry. */
function pack(entries: readonly DirectoryEntry[]): number[] {
  const starts: number[] = [];
  let used = Number.POSITIVE_INFINITY;
  entries.forEach((entry, at) => {
    const bytes = entryBytes(entry);
    if (used + bytes > ROOM_BYTES) {
      starts.push(at);
      used = 0;
    }
    used += bytes;
  });
  return starts;
}

/** One directory's blocks. `indexed` says whether its inode has the index flag. */
export class Directory {
  readonly blocks: number;
  readonly indexed: boolean;
  readonly #self: number;
  readonly #parent: number;
  readonly #seed: number;
  /** Linear: all entries with `.` and `..`. Indexed: without them, in order of their hashes. */
  readonly #entries: readonly DirectoryEntry[];
  /** The first entry of each leaf. */
  readonly #starts: readonly number[];
  /** Indexed: the hash that leads to each leaf. */
  readonly #hashes: readonly number[] = [];
  /** Index nodes between root and leaves; 0 where the root points to leaves. */
  readonly #nodes: number = 0;

  /**
   * @param entries in byte order of their names, without `.` and `..`
   * @param hashSeed four words of the superblock
   * @param checksumSeed of the directory's inode (see inodeSeed) Throws UNSUPPORTED for more entries than two levels of
   * index can hold (some millions).
   */
  constructor(
    self: number,
    parent: number,
    entries: readonly DirectoryEntry[],
    hashSeed: Int32Array,
    checksumSeed: number,
  ) {
    this.#self = self;
    this.#parent = parent;
    this.#seed = checksumSeed;
    const all = [dot('.', self), dot('..', parent), ...entries];
    const linear = pack(all);
    this.indexed = linear.length > LINEAR_BLOCKS_MAX;
    if (!this.indexed) {
      this.#entries = all;
      this.#starts = linear;
      this.blocks = linear.length;
      return;
    }
    const hashed = entries.map((entry): Hashed => ({ entry, ...dirHash(bytesOf(entry.name), hashSeed) }));
    hashed.sort((a, b) => a.major - b.major || a.minor - b.minor);
    this.#entries = hashed.map(({ entry }) => entry);
    this.#starts = pack(this.#entries);
    // The lowest bit says that the previous leaf ends with the same hash, so that a lookup searches it too.
    this.#hashes = this.#starts.map((start) => {
      const { major } = hashed[start]!;
      return start > 0 && hashed[start - 1]!.major === major ? major + 1 : major;
    });
    const leaves = this.#starts.length;
    this.#nodes = leaves <= ROOT_ENTRIES ? 0 : Math.ceil(leaves / NODE_ENTRIES);
    if (this.#nodes > ROOT_ENTRIES) {
      throw new LazydiskError('UNSUPPORTED', `a directory of ${entries.length} entries`);
    }
    this.blocks = 1 + this.#nodes + leaves;
  }

  /** Fills `block`, zeroes, with block `at` of the directory: root, then index nodes, then leaves. */
  write(block: Buffer, at: number): void {
    if (!this.indexed) this.#writeLeaf(block, at);
    else if (at === 0) this.#writeRoot(block);
    else if (at <= this.#nodes) this.#writeNode(block, at - 1);
    else this.#writeLeaf(block, at - 1 - this.#nodes);
  }

  #writeLeaf(block: Buffer, leaf: number): void {
    const end = this.#starts[leaf + 1] ?? this.#entries.length;
    let at = 0;
    for (let n = this.#starts[leaf]!; n < end; n++) {
      const entry = this.#entries[n]!;
      const bytes = n === end - 1 ? ROOM_BYTES - at : entryBytes(entry);
      writeEntry(block, at, entry, bytes);
      at += bytes;
    }
    block.writeUInt16LE(TAIL_BYTES, ROOM_BYTES + DIRENT.entryBytes);
    block[ROOM_BYTES + DIRENT.fileType] = 0xde;
    block.writeUInt32LE(crc32c(this.#seed, block, 0, ROOM_BYTES), ROOM_BYTES + 8);
  }

  #writeRoot(block: Buffer): void {
    writeEntry(block, 0, dot('.', this.#self), 12);
    writeEntry(block, 12, dot('..', this.#parent), BLOCK_BYTES - 12);
    block[28] = HASH_VERSION;
    block[29] = 8;
    if (this.#nodes === 0) {
      this.#writeIndex(block, 32, ROOT_ENTRIES, this.#hashes, 1);
    } else {
      block[30] = 1;
      const firsts = Array.from({ length: this.#nodes }, (_, node) => this.#hashes[node * NODE_ENTRIES]!);
      this.#writeIndex(block, 32, ROOT_ENTRIES, firsts, 1);
    }
  }

  #writeNode(block: Buffer, node: number): void {
    // One empty entry that spans the block, so a reader that ignores indexes sees an empty block.
    block.writeUInt16LE(BLOCK_BYTES, DIRENT.entryBytes);
    const from = node * NODE_ENTRIES;
    const hashes = this.#hashes.slice(from, from + NODE_ENTRIES);
    this.#writeIndex(block, 8, NODE_ENTRIES, hashes, 1 + this.#nodes + from);
  }

  /**
   * Writes an index from `at` to the block's end, of `hashes` for consecutive blocks, and its checksum. The first hash
   * is never read (it is the lowest), so limit and count take its place.
   */
  #writeIndex(block: Buffer, at: number, limit: number, hashes: readonly number[], firstBlock: number): void {
    hashes.forEach((hash, n) => {
      block.writeUInt32LE(hash, at + n * 8);
      block.writeUInt32LE(firstBlock + n, at + n * 8 + 4);
    });
    block.writeUInt16LE(limit, at);
    block.writeUInt16LE(hashes.length, at + 2);
    // Over the entries in use, then the tail: a reserved word and the sum itself as zero.
    const tail = at + limit * 8;
    const sum = crc32c(this.#seed, block, 0, at + hashes.length * 8);
    block.writeUInt32LE(crc32c(sum, block, tail, tail + 8), tail + 4);
  }
}

const nameBytes = Buffer.alloc(NAME_BYTES_MAX);

/** The name's bytes, until the next call. */
function bytesOf(name: string): Buffer {
  return nameBytes.subarray(0, nameBytes.write(name, 'latin1'));
}

function dot(name: '.' | '..', inode: number): DirectoryEntry {
  return { name, inode, kind: 'directory' };
}

function writeEntry(block: Buffer, at: number, { name, inode, kind }: DirectoryEntry, bytes: number): void {
  block.writeUInt32LE(inode, at + DIRENT.inode);
  block.writeUInt16LE(bytes, at + DIRENT.entryBytes);
  block[at + DIRENT.nameBytes] = name.length;
  block[at + DIRENT.fileType] = FILE_TYPES[kind];
  block.write(name, at + DIRENT.name, 'latin1');
}
