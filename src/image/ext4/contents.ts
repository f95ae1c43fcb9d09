/**
 * What an inode occupies on the disk, once its place is known: its 256 bytes in the inode table, and its own blocks
 * after the journal. Nothing is kept in memory: each is generated when its chunk is written.
 */
import { inodeSeed } from './crc32c.ts';
import { type BlockRun, normaliseRuns, writeExtentBlock, writeExtentRoot } from './extents.ts';
import { BLOCK_BYTES, JOURNAL_BLOCKS, JOURNAL_INODE } from './geometry.ts';
import { sealInode, writeDevice, writeInodeFields } from './inode.ts';
import { CONTENT_BYTES, INODE } from './layout.ts';
import { dataRuns, type PlannedInode } from './plan.ts';
import { writeInodeXattrs, writeXattrBlock } from './xattr.ts';

/** Where the parts of the disk are, in blocks, and its checksum seed. */
export interface Places {
  readonly journal: number;
  /** First block after the journal; PlannedInode.firstBlock counts from here. */
  readonly metadata: number;
  /** First block of data chunk 0. */
  readonly data: number;
  readonly seed: number;
}

/** Some consecutive blocks of the disk, and how to fill one. */
export interface Piece {
  readonly block: number;
  readonly blocks: number;
  /** Fills `target`, BLOCK_BYTES of zeroes, with block number `at` of the piece. */
  write(target: Buffer, at: number): void;
}

/** Where a file's data is on the disk. */
export function* filePlaces({ inode }: PlannedInode, places: Places): Generator<BlockRun> {
  for (const run of dataRuns(inode)) yield { ...run, physical: places.data + run.physical };
}

/** Where an inode's content is; empty for one that needs no block. */
function contentRuns(planned: PlannedInode, places: Places): BlockRun[] {
  if (planned.inode.kind === 'file') return [...filePlaces(planned, places)];
  const { contentBlocks: blocks, firstBlock } = planned;
  return blocks > 0 ? normaliseRuns([{ logical: 0, physical: places.metadata + firstBlock, blocks }]) : [];
}

/** The inode's own blocks, in the order that PlannedInode documents. */
export function* contentPieces(planned: PlannedInode, places: Places): Generator<Piece> {
  const { inode, directory, contentBlocks, extentBlocks, xattrBlocks } = planned;
  let block = places.metadata + planned.firstBlock;
  if (directory) {
    yield { block, blocks: contentBlocks, write: (target, at) => directory.write(target, at) };
  } else if (contentBlocks > 0) {
    yield { block, blocks: contentBlocks, write: (target) => void target.write(inode.target, 'latin1') };
  }
  block += contentBlocks;
  if (extentBlocks > 0) {
    const first = block;
    const runs = contentRuns(planned, places);
    const seed = inodeSeed(places.seed, planned.number);
    const write = (target: Buffer, at: number) => writeExtentBlock(target, at, runs, first, seed);
    yield { block, blocks: extentBlocks, write };
  }
  block += extentBlocks;
  if (xattrBlocks > 0) {
    const at = block;
    const write = (target: Buffer) => writeXattrBlock(target, planned.xattrs.inBlock, at, places.seed);
    yield { block, blocks: xattrBlocks, write };
  }
}

/** Fills the 256 zero bytes of an inode. */
export function writeInode(target: Buffer, planned: PlannedInode, places: Places): void {
  const { inode, contentBlocks, extentBlocks, xattrBlocks, xattrs } = planned;
  const { kind } = inode;
  const runs = contentRuns(planned, places);
  const treeAt = places.metadata + planned.firstBlock + contentBlocks;
  const isFastSymlink = kind === 'symlink' && contentBlocks === 0;
  const usesExtents = kind === 'file' || kind === 'directory' || (kind === 'symlink' && !isFastSymlink);
  writeInodeFields(target, {
    kind,
    mode: inode.mode,
    uid: inode.uid,
    gid: inode.gid,
    mtimeNs: inode.mtimeNs,
    sizeBytes: sizeOf(planned),
    links: planned.links,
    blocks: runs.reduce((sum, run) => sum + run.blocks, 0) + extentBlocks + xattrBlocks,
    usesExtents,
    indexed: planned.directory?.indexed ?? false,
    xattrBlock: xattrBlocks > 0 ? treeAt + extentBlocks : 0,
  });
  const content = target.subarray(INODE.content, INODE.content + CONTENT_BYTES);
  if (usesExtents) writeExtentRoot(content, runs, treeAt);
  else if (isFastSymlink) content.write(inode.target, 'latin1');
  else if (kind === 'char' || kind === 'block') writeDevice(content, inode.rdevMajor, inode.rdevMinor);
  if (xattrs.inInode.length > 0) writeInodeXattrs(target.subarray(INODE.xattrs), xattrs.inInode);
  sealInode(target, inodeSeed(places.seed, planned.number));
}

function sizeOf({ inode, contentBlocks }: PlannedInode): number {
  switch (inode.kind) {
    case 'file':
      return inode.sizeBytes;
    case 'directory':
      return contentBlocks * BLOCK_BYTES;
    case 'symlink':
      return inode.target.length;
    default:
      return 0;
  }
}

/** The journal inode's 60 bytes of content, which the superblock holds a copy of. */
export function journalContent(places: Places): Buffer {
  const content = Buffer.alloc(CONTENT_BYTES);
  writeExtentRoot(content, [{ logical: 0, physical: places.journal, blocks: JOURNAL_BLOCKS }], 0);
  return content;
}

/** Fills the 256 zero bytes of the journal's inode. */
export function writeJournalInode(target: Buffer, places: Places): void {
  writeInodeFields(target, {
    kind: 'file',
    mode: 0o600,
    uid: 0,
    gid: 0,
    mtimeNs: 0n,
    sizeBytes: JOURNAL_BLOCKS * BLOCK_BYTES,
    links: 1,
    blocks: JOURNAL_BLOCKS,
    usesExtents: true,
    indexed: false,
    xattrBlock: 0,
  });
  journalContent(places).copy(target, INODE.content);
  sealInode(target, inodeSeed(places.seed, JOURNAL_INODE));
}
