/**
 * Walks extent trees that may be corrupt: every block of a tree is visited once and for one inode only, and keys must
 * ascend, so a walk stops where a tree leads back into itself or into another tree. The intact rest of a tree is walked
 * to its end.
 */
import { type BlockRun, RUN_BLOCKS_MAX } from '../extents.ts';
import {
  EXTENT,
  EXTENT_ENTRY_BYTES,
  EXTENT_HEADER,
  EXTENT_HEADER_BYTES,
  EXTENT_INDEX,
  EXTENT_MAGIC,
} from '../layout.ts';
import type { Ext4Disk } from './disk.ts';
import { PagedMarks } from './marks.ts';

const DEPTH_MAX = 5;
const LOGICAL_END = 2 ** 32;

export interface ExtentVisitor {
  /** A block of the tree itself. */
  node?(block: number): void;
  /** Blocks of the file that hold data; all are inside the disk. */
  run(run: BlockRun): Promise<void> | void;
}

export class ExtentTrees {
  readonly #disk: Ext4Disk;
  readonly #visited = new PagedMarks();

  /** Each inode's tree can be walked only once. */
  constructor(disk: Ext4Disk) {
    this.#disk = disk;
  }

  /** Walks the tree below an inode's 60 bytes. Returns false if any of it is corrupt or cannot be read. */
  walk(root: Buffer, visitor: ExtentVisitor): Promise<boolean> {
    return this.#walkNode(
      root,
      Math.min(root.readUInt16LE(EXTENT_HEADER.depth), DEPTH_MAX),
      0,
      LOGICAL_END,
      visitor,
    );
  }

  /** A node at `depth` (0: its entries are extents) for the file's blocks [from, to). */
  async #walkNode(
    node: Buffer,
    depth: number,
    from: number,
    to: number,
    visitor: ExtentVisitor,
  ): Promise<boolean> {
    const entries = node.readUInt16LE(EXTENT_HEADER.entries);
    const isNode =
      node.readUInt16LE(EXTENT_HEADER.magic) === EXTENT_MAGIC &&
      node.readUInt16LE(EXTENT_HEADER.depth) === depth;
    if (!isNode || EXTENT_HEADER_BYTES + entries * EXTENT_ENTRY_BYTES > node.length) return false;
    let isWhole = true;
    let least = from;
    for (let n = 0; n < entries; n++) {
      const at = EXTENT_HEADER_BYTES + n * EXTENT_ENTRY_BYTES;
      const logical = node.readUInt32LE(at + EXTENT.logical);
      if (logical < least) return false;
      if (depth === 0) {
        const length = node.readUInt16LE(at + EXTENT.blocks);
        // Longer ones are allocated but unwritten: they read as zeroes, whatever the blocks hold.
        const isWritten = length <= RUN_BLOCKS_MAX;
        const blocks = isWritten ? length : length - RUN_BLOCKS_MAX;
        const physical =
          node.readUInt16LE(at + EXTENT.physicalHigh) * 2 ** 32 + node.readUInt32LE(at + EXTENT.physical);
        least = logical + blocks;
        if (blocks === 0 || least > to || !this.#disk.holds(physical, blocks)) return false;
        const visit = isWritten ? visitor.run({ logical, physical, blocks }) : undefined;
        if (visit) await visit;
      } else {
        least = n + 1 < entries ? node.readUInt32LE(at + EXTENT_ENTRY_BYTES + EXTENT_INDEX.logical) : to;
        if (least <= logical || least > to) return false;
        const block =
          node.readUInt16LE(at + EXTENT_INDEX.blockHigh) * 2 ** 32 +
          node.readUInt32LE(at + EXTENT_INDEX.block);
        const isChildWhole = await this.#walkChild(block, depth - 1, logical, least, visitor);
        isWhole &&= isChildWhole;
      }
    }
    return isWhole;
  }

  async #walkChild(
    block: number,
    depth: number,
    from: number,
    to: number,
    visitor: ExtentVisitor,
  ): Promise<boolean> {
    if (!this.#disk.holds(block, 1) || this.#visited.get(block) !== 0) return false;
    this.#visited.add(block, 1);
    visitor.node?.(block);
    const node = await this.#disk.readMetadata({ block, blocks: 1 });
    return node ? this.#walkNode(node, depth, from, to, visitor) : false;
  }
}
