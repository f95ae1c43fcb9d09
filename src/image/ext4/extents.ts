/**
 * Maps a file's blocks to disk blocks: up to four extents in the inode, a tree of extent blocks beyond that. The tree
 * is filled from the left, so the position of a block determines its entries, and any block can be written by itself.
 * Source: the kernel's Documentation/filesystems/ext4/ifork.rst, "Extent Tree".
 */
import { crc32c } from './crc32c.ts';
import { BLOCK_BYTES } from './geometry.ts';
import {
  EXTENT,
  EXTENT_ENTRY_BYTES,
  EXTENT_HEADER,
  EXTENT_HEADER_BYTES,
  EXTENT_INDEX,
  EXTENT_MAGIC,
} from './layout.ts';

/** `blocks` blocks of the file from `logical` on are on the disk from `physical` on. */
export interface BlockRun {
  readonly logical: number;
  readonly physical: number;
  readonly blocks: number;
}

const INODE_ENTRIES = 4;
const BLOCK_ENTRIES = Math.floor((BLOCK_BYTES - EXTENT_HEADER_BYTES - 4) / EXTENT_ENTRY_BYTES);
/** The longest run of initialised blocks that one extent can hold. */
export const RUN_BLOCKS_MAX = 32768;

/** The number of extents that a run of `blocks` takes. */
export function extentsOf(blocks: number): number {
  return Math.ceil(blocks / RUN_BLOCKS_MAX);
}

/** Joins adjacent runs and splits those that are too long for one extent. */
export function normaliseRuns(runs: Iterable<BlockRun>): BlockRun[] {
  const joined: { logical: number; physical: number; blocks: number }[] = [];
  for (const { logical, physical, blocks } of runs) {
    const last = joined.at(-1);
    const continues =
      last && last.logical + last.blocks === logical && last.physical + last.blocks === physical;
    if (continues) last.blocks += blocks;
    else joined.push({ logical, physical, blocks });
  }
  if (joined.every(({ blocks }) => blocks <= RUN_BLOCKS_MAX)) return joined;
  return joined.flatMap((run) => {
    const parts: BlockRun[] = [];
    for (let from = 0; from < run.blocks; from += RUN_BLOCKS_MAX) {
      parts.push({
        logical: run.logical + from,
        physical: run.physical + from,
        blocks: Math.min(RUN_BLOCKS_MAX, run.blocks - from),
      });
    }
    return parts;
  });
}

/**
 * The number of tree blocks on each level for `extents` extents, the lowest level first; empty if they fit the inode.
 */
function levelsOf(extents: number): number[] {
  const levels: number[] = [];
  for (let entries = extents; entries > INODE_ENTRIES; ) {
    entries = Math.ceil(entries / BLOCK_ENTRIES);
    levels.push(entries);
  }
  return levels;
}

/** The number of extent blocks on all levels that `extents` extents need besides the inode. */
export function extentBlocks(extents: number): number {
  return levelsOf(extents).reduce((sum, blocks) => sum + blocks, 0);
}

/** Fills the inode's 60 bytes. The tree's blocks, if any, start at `firstBlock`. */
export function writeExtentRoot(target: Buffer, runs: readonly BlockRun[], firstBlock: number): void {
  const levels = levelsOf(runs.length);
  writeNode(target, INODE_ENTRIES, { runs, firstBlock, levels }, levels.length, 0);
}

/**
 * Fills block `at` of the tree, counted from the lowest level's first. `seed` is the inode's checksum seed; `block`
 * is BLOCK_BYTES of zeroes.
 */
export function writeExtentBlock(
  block: Buffer,
  at: number,
  runs: readonly BlockRun[],
  firstBlock: number,
  seed: number,
): void {
  const levels = levelsOf(runs.length);
  let depth = 0;
  let node = at;
  while (node >= levels[depth]!) node -= levels[depth++]!;
  writeNode(block, BLOCK_ENTRIES, { runs, firstBlock, levels }, depth, node * BLOCK_ENTRIES);
  block.writeUInt32LE(crc32c(seed, block, 0, BLOCK_BYTES - 4), BLOCK_BYTES - 4);
}

/** The extents of a file, the first block of its tree, and how many blocks each level of the tree has, leaves first. */
interface ExtentTree {
  readonly runs: readonly BlockRun[];
  readonly firstBlock: number;
  readonly levels: readonly number[];
}

/** A node at `depth` (0: its entries are extents) with the entries of its level from number `from` on. */
function writeNode(
  target: Buffer,
  entriesMax: number,
  { runs, firstBlock, levels }: ExtentTree,
  depth: number,
  from: number,
): void {
  const ofLevel = depth === 0 ? runs.length : levels[depth - 1]!;
  const entries = Math.min(entriesMax, ofLevel - from);
  target.writeUInt16LE(EXTENT_MAGIC, EXTENT_HEADER.magic);
  target.writeUInt16LE(entries, EXTENT_HEADER.entries);
  target.writeUInt16LE(entriesMax, EXTENT_HEADER.entriesMax);
  target.writeUInt16LE(depth, EXTENT_HEADER.depth);
  const levelStart = levels
    .slice(0, Math.max(0, depth - 1))
    .reduce((sum, blocks) => sum + blocks, firstBlock);
  for (let n = 0; n < entries; n++) {
    const at = EXTENT_HEADER_BYTES + n * EXTENT_ENTRY_BYTES;
    if (depth === 0) writeExtent(target, at, runs[from + n]!);
    else {
      const { logical } = runs[(from + n) * BLOCK_ENTRIES ** depth]!;
      writeIndex(target, at, logical, levelStart + from + n);
    }
  }
}

function writeExtent(target: Buffer, at: number, { logical, physical, blocks }: BlockRun): void {
  target.writeUInt32LE(logical, at + EXTENT.logical);
  target.writeUInt16LE(blocks, at + EXTENT.blocks);
  target.writeUInt16LE(Math.floor(physical / 2 ** 32), at + EXTENT.physicalHigh);
  target.writeUInt32LE(physical % 2 ** 32, at + EXTENT.physical);
}

function writeIndex(target: Buffer, at: number, logical: number, block: number): void {
  target.writeUInt32LE(logical, at + EXTENT_INDEX.logical);
  target.writeUInt32LE(block % 2 ** 32, at + EXTENT_INDEX.block);
  target.writeUInt16LE(Math.floor(block / 2 ** 32), at + EXTENT_INDEX.blockHigh);
}
