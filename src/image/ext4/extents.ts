/**
 * Which blocks of a file lie where: up to four extents in the inode, a tree of extent blocks beyond that. Source:
 * the kernel's Documentation/filesystems/ext4/ifork.rst, "Extent Tree".
 */
import { crc32c } from './crc32c.ts';
import { BLOCK_BYTES } from './geometry.ts';

/** `blocks` blocks of the file from `logical` lie on the disk from `physical`. */
export interface BlockRun {
  readonly logical: number;
  readonly physical: number;
  readonly blocks: number;
}

const MAGIC = 0xf30a;
const INODE_ENTRIES = 4;
const BLOCK_ENTRIES = (BLOCK_BYTES - 12 - 4) / 12;
/** The longest run of initialised blocks that one extent can say. */
const RUN_BLOCKS_MAX = 32768;

/** Joins runs that continue one another and splits those that are too long for one extent. */
export function normaliseRuns(runs: Iterable<BlockRun>): BlockRun[] {
  const joined: { logical: number; physical: number; blocks: number }[] = [];
  for (const run of runs) {
    const last = joined.at(-1);
    const continues =
      last && last.logical + last.blocks === run.logical && last.physical + last.blocks === run.physical;
    if (continues) last.blocks += run.blocks;
    else joined.push({ ...run });
  }
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

/** Extent blocks that `extents` extents need beside the inode, all levels together. */
export function extentBlocks(extents: number): number {
  let total = 0;
  for (let entries = extents; entries > INODE_ENTRIES; ) {
    entries = Math.ceil(entries / BLOCK_ENTRIES);
    total += entries;
  }
  return total;
}

/**
 * The tree over `runs`: the 60 bytes of the inode, and its extent blocks, which lie on the disk from
 * `firstBlock` on, the lowest level first. `seed` is the inode's checksum seed.
 */
export function renderExtents(
  runs: readonly BlockRun[],
  firstBlock: number,
  seed: number,
): { root: Buffer; blocks: Buffer[] } {
  const blocks: Buffer[] = [];
  /** Entries of the level being built, as 12 bytes each, and the first logical block of each. */
  let entries = runs.map(renderExtent);
  let firsts = runs.map(({ logical }) => logical);
  let depth = 0;
  while (entries.length > INODE_ENTRIES) {
    const nextEntries: Buffer[] = [];
    const nextFirsts: number[] = [];
    for (let from = 0; from < entries.length; from += BLOCK_ENTRIES) {
      const block = Buffer.alloc(BLOCK_BYTES);
      writeNode(block, entries.slice(from, from + BLOCK_ENTRIES), BLOCK_ENTRIES, depth);
      block.writeUInt32LE(crc32c(seed, block, 0, BLOCK_BYTES - 4), BLOCK_BYTES - 4);
      nextEntries.push(renderIndex(firsts[from]!, firstBlock + blocks.length));
      nextFirsts.push(firsts[from]!);
      blocks.push(block);
    }
    entries = nextEntries;
    firsts = nextFirsts;
    depth++;
  }
  const root = Buffer.alloc(60);
  writeNode(root, entries, INODE_ENTRIES, depth);
  return { root, blocks };
}

function writeNode(target: Buffer, entries: readonly Buffer[], entriesMax: number, depth: number): void {
  target.writeUInt16LE(MAGIC, 0);
  target.writeUInt16LE(entries.length, 2);
  target.writeUInt16LE(entriesMax, 4);
  target.writeUInt16LE(depth, 6);
  entries.forEach((entry, n) => void entry.copy(target, 12 + n * 12));
}

function renderExtent({ logical, physical, blocks }: BlockRun): Buffer {
  const entry = Buffer.alloc(12);
  entry.writeUInt32LE(logical, 0);
  entry.writeUInt16LE(blocks, 4);
  entry.writeUInt16LE(Math.floor(physical / 2 ** 32), 6);
  entry.writeUInt32LE(physical % 2 ** 32, 8);
  return entry;
}

function renderIndex(logical: number, block: number): Buffer {
  const entry = Buffer.alloc(12);
  entry.writeUInt32LE(logical, 0);
  entry.writeUInt32LE(block % 2 ** 32, 4);
  entry.writeUInt16LE(Math.floor(block / 2 ** 32), 8);
  return entry;
}
