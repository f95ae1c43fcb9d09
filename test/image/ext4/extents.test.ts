/** Extent trees that are too wide for a disk in a test: read back from the root as the kernel would walk them. */
import t from 'tap';
import {
  type BlockRun,
  extentBlocks,
  writeExtentBlock,
  writeExtentRoot,
} from '../../../src/image/ext4/extents.ts';
import { BLOCK_BYTES } from '../../../src/image/ext4/geometry.ts';

const FIRST_BLOCK = 5000;

for (const [count, depth] of [
  [4, 0],
  [5, 1],
  [1360, 1],
  [1361, 2],
  [240_000, 2],
] as const) {
  t.test(`${count} extents make a tree of depth ${depth}`, async (t) => {
    const runs: BlockRun[] = Array.from({ length: count }, (_, n) => ({
      logical: n * 2,
      physical: 1_000_000 + n * 3,
      blocks: 1,
    }));
    const root = Buffer.alloc(60);
    writeExtentRoot(root, runs, FIRST_BLOCK);
    t.equal(root.readUInt16LE(6), depth);
    const visited = new Set<number>();
    const found: BlockRun[] = [];
    const walk = (node: Buffer, level: number, firstLogical: number | undefined) => {
      if (node.readUInt16LE(6) !== level) throw new Error(`depth ${node.readUInt16LE(6)}, not ${level}`);
      if (firstLogical !== undefined && node.readUInt32LE(12) !== firstLogical)
        throw new Error(`an index has ${firstLogical} for a node that starts at ${node.readUInt32LE(12)}`);
      for (let n = 0; n < node.readUInt16LE(2); n++) {
        const at = 12 + n * 12;
        const logical = node.readUInt32LE(at);
        if (level === 0) {
          found.push({ logical, physical: node.readUInt32LE(at + 8), blocks: node.readUInt16LE(at + 4) });
          continue;
        }
        const place = node.readUInt32LE(at + 4) - FIRST_BLOCK;
        visited.add(place);
        const child = Buffer.alloc(BLOCK_BYTES);
        writeExtentBlock(child, place, runs, FIRST_BLOCK, 1);
        walk(child, level - 1, logical);
      }
    };
    walk(root, depth, undefined);
    t.equal(visited.size, extentBlocks(count), 'every block of the tree is reached once');
    t.ok(
      found.length === count &&
        found.every((run, n) => run.logical === runs[n]!.logical && run.physical === runs[n]!.physical),
      'all extents, in order',
    );
  });
}
