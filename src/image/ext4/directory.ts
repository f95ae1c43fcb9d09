/**
 * Directories: linear blocks of entries while they are few, a hash tree once they are many. A tree is packed here
 * in one go from the sorted hashes, leaf after leaf, and its index blocks are filled from the leaves' first
 * hashes. Blocks are rendered one at a time, when their chunk is written. Source: the kernel's
 * Documentation/filesystems/ext4/directory.rst.
 */
import { LazydiskError } from '../../errors.ts';
import type { InodeKind } from '../tree.ts';
import { CRC_START, crc32c, crc32cOfUint32 } from './crc32c.ts';
import { dirHash } from './dir-hash.ts';
import { BLOCK_BYTES } from './geometry.ts';

/** Directories of at most this many blocks are searched as quickly without an index. */
const LINEAR_BLOCKS_MAX = 2;
const TAIL_BYTES = 12;
const ROOM_BYTES = BLOCK_BYTES - TAIL_BYTES;
/** Index entries in a tree's root and in each node below it. */
const ROOT_ENTRIES = (BLOCK_BYTES - 32 - 8) / 8;
const NODE_ENTRIES = (BLOCK_BYTES - 8 - 8) / 8;
/** half_md4 over unsigned bytes is version 1 with the superblock's flag for unsigned hashes. */
const HASH_VERSION = 1;

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
  readonly name: Buffer;
  readonly inode: number;
  readonly kind: InodeKind;
}

interface Hashed {
  readonly entry: DirectoryEntry;
  readonly major: number;
  readonly minor: number;
}

function entryBytes(nameBytes: number): number {
  return (8 + nameBytes + 3) & ~3;
}

/** Consecutive runs of `items` that each fit `roomBytes`, as their first positions. */
function pack<T>(items: readonly T[], bytesOf: (item: T) => number, roomBytes: number): number[] {
  const starts: number[] = [];
  let used = Number.POSITIVE_INFINITY;
  items.forEach((item, at) => {
    const bytes = bytesOf(item);
    if (used + bytes > roomBytes) {
      starts.push(at);
      used = 0;
    }
    used += bytes;
  });
  return starts;
}

/** One directory's blocks. `indexed` says whether its inode carries the index flag. */
export class Directory {
  readonly blocks: number;
  readonly indexed: boolean;
  readonly #self: number;
  readonly #parent: number;
  readonly #seed: number;
  /** Linear: all entries with `.` and `..`. Indexed: without them, in order of their hashes. */
  readonly #entries: readonly DirectoryEntry[];
  readonly #starts: readonly number[];
  /** Indexed: the hash that leads to each leaf. */
  readonly #hashes: readonly number[] = [];
  /** Index nodes between root and leaves; 0 where the root points to leaves. */
  readonly #nodes: number = 0;

  /**
   * @param entries in byte order of their names, without `.` and `..`
   * @param hashSeed four words of the superblock
   * @param checksumSeed of the directory's inode (see inodeSeed)
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
    const bytesOf = (entry: DirectoryEntry) => entryBytes(entry.name.length);
    const linear = pack(all, bytesOf, ROOM_BYTES);
    this.indexed = linear.length > LINEAR_BLOCKS_MAX;
    if (!this.indexed) {
      this.#entries = all;
      this.#starts = linear;
      this.blocks = linear.length;
      return;
    }
    const hashed: Hashed[] = entries.map((entry) => ({ entry, ...dirHash(entry.name, hashSeed) }));
    hashed.sort((a, b) => a.major - b.major || a.minor - b.minor);
    this.#entries = hashed.map(({ entry }) => entry);
    this.#starts = pack(this.#entries, bytesOf, ROOM_BYTES);
    // The lowest bit says that the leaf before ends with the same hash, so that a search looks there too.
    this.#hashes = this.#starts.map((start) => {
      const { major } = hashed[start]!;
      return start > 0 && hashed[start - 1]!.major === major ? major + 1 : major;
    });
    const leaves = this.#starts.length;
    this.#nodes = leaves <= ROOT_ENTRIES ? 0 : Math.ceil(leaves / NODE_ENTRIES);
    if (this.#nodes > ROOT_ENTRIES) {
      throw new LazydiskError('UNSUPPORTED', `a directory with ${entries.length} entries`);
    }
    this.blocks = 1 + this.#nodes + leaves;
  }

  /** Block `at` of the directory: root, then index nodes, then leaves. */
  render(at: number): Buffer {
    if (!this.indexed) return this.#renderLeaf(at);
    if (at === 0) return this.#renderRoot();
    return at <= this.#nodes ? this.#renderNode(at - 1) : this.#renderLeaf(at - 1 - this.#nodes);
  }

  #renderLeaf(leaf: number): Buffer {
    const block = Buffer.alloc(BLOCK_BYTES);
    const end = this.#starts[leaf + 1] ?? this.#entries.length;
    let at = 0;
    for (let n = this.#starts[leaf]!; n < end; n++) {
      const entry = this.#entries[n]!;
      const bytes = n === end - 1 ? ROOM_BYTES - at : entryBytes(entry.name.length);
      writeEntry(block, at, entry, bytes);
      at += bytes;
    }
    block.writeUInt16LE(TAIL_BYTES, ROOM_BYTES + 4);
    block[ROOM_BYTES + 7] = 0xde;
    block.writeUInt32LE(crc32c(this.#seed, block, 0, ROOM_BYTES), ROOM_BYTES + 8);
    return block;
  }

  #renderRoot(): Buffer {
    const block = Buffer.alloc(BLOCK_BYTES);
    writeEntry(block, 0, dot('.', this.#self), 12);
    writeEntry(block, 12, dot('..', this.#parent), BLOCK_BYTES - 12);
    block[28] = HASH_VERSION;
    block[29] = 8;
    block[30] = this.#nodes === 0 ? 0 : 1;
    if (this.#nodes === 0) {
      this.#writeIndex(block, 32, ROOT_ENTRIES, 0, this.#starts.length, (leaf) => 1 + leaf);
    } else {
      const first = (node: number) => this.#hashes[node * NODE_ENTRIES]!;
      const hashes = Array.from({ length: this.#nodes }, (_, node) => first(node));
      writeIndexEntries(block, 32, ROOT_ENTRIES, hashes, (node) => 1 + node);
      this.#writeIndexSum(block, 32, ROOT_ENTRIES, this.#nodes);
    }
    return block;
  }

  #renderNode(node: number): Buffer {
    const block = Buffer.alloc(BLOCK_BYTES);
    // An entry that spans the block and names nothing: to a reader without indexes the block is empty.
    block.writeUInt16LE(BLOCK_BYTES, 4);
    const from = node * NODE_ENTRIES;
    const count = Math.min(NODE_ENTRIES, this.#starts.length - from);
    this.#writeIndex(block, 8, NODE_ENTRIES, from, count, (leaf) => 1 + this.#nodes + from + leaf);
    return block;
  }

  #writeIndex(
    block: Buffer,
    at: number,
    limit: number,
    from: number,
    count: number,
    blockOf: (n: number) => number,
  ): void {
    writeIndexEntries(block, at, limit, this.#hashes.slice(from, from + count), blockOf);
    this.#writeIndexSum(block, at, limit, count);
  }

  #writeIndexSum(block: Buffer, at: number, limit: number, count: number): void {
    const tail = at + limit * 8;
    let sum = crc32c(this.#seed, block, 0, at + count * 8);
    sum = crc32c(sum, block, tail, tail + 4);
    block.writeUInt32LE(crc32cOfUint32(sum, 0), tail + 4);
  }
}

function dot(name: '.' | '..', inode: number): DirectoryEntry {
  return { name: Buffer.from(name), inode, kind: 'directory' };
}

function writeEntry(block: Buffer, at: number, entry: DirectoryEntry, bytes: number): void {
  block.writeUInt32LE(entry.inode, at);
  block.writeUInt16LE(bytes, at + 4);
  block[at + 6] = entry.name.length;
  block[at + 7] = FILE_TYPES[entry.kind];
  entry.name.copy(block, at + 8);
}

/** The first entry's hash is never looked at (it is the lowest), so limit and count lie in its place. */
function writeIndexEntries(
  block: Buffer,
  at: number,
  limit: number,
  hashes: readonly number[],
  blockOf: (n: number) => number,
): void {
  hashes.forEach((hash, n) => {
    block.writeUInt32LE(hash, at + n * 8);
    block.writeUInt32LE(blockOf(n), at + n * 8 + 4);
  });
  block.writeUInt16LE(limit, at);
  block.writeUInt16LE(hashes.length, at + 2);
}

/** What an inode's directory, extent and inode sums start from. */
export function inodeSeed(fileSystemSeed: number, inode: number): number {
  return crc32cOfUint32(crc32cOfUint32(fileSystemSeed, inode), 0);
}

/** What all sums but the superblock's start from. */
export function fileSystemSeed(uuid: Uint8Array): number {
  return crc32c(CRC_START, uuid);
}
