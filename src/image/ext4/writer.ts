/**
 * The ext4 writer: lays out a merged tree as a disk and emits the chunks of its metadata, in ascending order and
 * one at a time, so that the disk's size costs no memory. The same tree gives the same bytes on every machine:
 * UUID and hash seed come from the content's digest, numbers and places from the tree, and no clock is read.
 */
import { createHash } from 'node:crypto';
import { LazydiskError } from '../../errors.ts';
import { CHUNK_BYTES } from '../../format/chunk-id.ts';
import type { MergedTree } from '../tree.ts';
import { crc32c } from './crc32c.ts';
import { fileSystemSeed, inodeSeed } from './directory.ts';
import { renderExtents } from './extents.ts';
import {
  BLOCK_BYTES,
  BLOCKS_PER_CHUNK,
  blocksInGroup,
  DESCRIPTOR_BYTES,
  DISK_BYTES_MAX,
  DISK_BYTES_MIN,
  type Geometry,
  geometryOf,
  INODES_PER_BLOCK,
  JOURNAL_BLOCKS,
  JOURNAL_INODE,
} from './geometry.ts';
import { deviceContent, renderInode } from './inode.ts';
import { type Plan, type PlannedInode, planTree } from './plan.ts';
import {
  GROUP_BLOCK_UNINIT,
  GROUP_INODE_UNINIT,
  GROUP_INODE_ZEROED,
  renderDescriptor,
  renderJournalSuperblock,
  renderSuperblock,
} from './superblock.ts';
import { BlockUsage, setBits } from './usage.ts';
import { renderInodeXattrs, renderXattrBlock } from './xattr.ts';

/** Room that a disk of default size has beside its content. */
const ROOM_BYTES_MIN = 256 * 1024 * 1024;
const ROOM_SHARE = 0.25;
/** Inodes that a guest may make beside the image's. */
const SPARE_INODES = 4096;

export interface Ext4Layout {
  readonly diskBytes: number;
  /** Chunks in front of data chunk 0. */
  readonly metadataChunks: number;
  /** Gives every metadata chunk that is not all zero to `sink`, in ascending order. */
  emit(sink: (chunkIndex: number, bytes: Buffer) => Promise<void>): Promise<void>;
}

export interface LayoutOptions {
  /** Rounded up to whole chunks. Default: the content plus room, at least 1 GiB. */
  readonly sizeBytes?: number;
  /** Digest of what the tree was made from; UUID and hash seed come from it. */
  readonly contentDigest: string;
}

/** Blocks of the disk that hold something, with what renders them. */
interface Piece {
  readonly block: number;
  readonly blocks: number;
  render(at: number): Buffer;
}

/** Throws NO_SPACE if the tree does not fit, UNSUPPORTED for what ext4 cannot hold, each naming it. */
export async function layoutExt4(tree: MergedTree, options: LayoutOptions): Promise<Ext4Layout> {
  const identity = createHash('sha256').update('lazydisk ext4 ').update(options.contentDigest).digest();
  const uuid = identity.subarray(0, 16);
  // RFC 9562, version 8 (custom), variant 1.
  uuid[6] = (uuid[6]! & 0x0f) | 0x80;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  const hashSeed = identity.subarray(16, 32);
  const hashWords = Int32Array.from({ length: 4 }, (_, n) => hashSeed.readInt32LE(n * 4));
  const seed = fileSystemSeed(uuid);
  const plan = planTree(tree.root, hashWords, seed);
  const geometry = chooseGeometry(plan, tree.dataChunks, options.sizeBytes);
  const metadataChunks = metadataChunksOf(geometry, plan);
  return {
    diskBytes: geometry.diskBytes,
    metadataChunks,
    emit: (sink) =>
      emitPieces(piecesOf(plan, geometry, metadataChunks * BLOCKS_PER_CHUNK, uuid, hashSeed, seed), sink),
  };
}

function metadataChunksOf(geometry: Geometry, plan: Plan): number {
  return Math.ceil((geometry.metadata + plan.metadataBlocks) / BLOCKS_PER_CHUNK);
}

function chooseGeometry(plan: Plan, dataChunks: number, sizeBytes: number | undefined): Geometry {
  const fits = (geometry: Geometry) =>
    (metadataChunksOf(geometry, plan) + dataChunks) * CHUNK_BYTES <= geometry.diskBytes;
  const inodes = plan.lastInode;
  if (sizeBytes !== undefined) {
    const diskBytes = Math.ceil(sizeBytes / CHUNK_BYTES) * CHUNK_BYTES;
    if (diskBytes > DISK_BYTES_MAX) {
      throw new LazydiskError('USAGE', `disk size ${sizeBytes}: at most ${DISK_BYTES_MAX} bytes`);
    }
    const geometry =
      diskBytes >= (plan.metadataBlocks + 2 * JOURNAL_BLOCKS) * BLOCK_BYTES && geometryOf(diskBytes, inodes);
    if (geometry && fits(geometry)) return geometry;
    const needs = defaultGeometry(plan, dataChunks, fits).diskBytes;
    throw new LazydiskError(
      'NO_SPACE',
      `the image does not fit a disk of ${diskBytes} bytes; ${needs} would do`,
    );
  }
  return defaultGeometry(plan, dataChunks, fits);
}

function defaultGeometry(plan: Plan, dataChunks: number, fits: (geometry: Geometry) => boolean): Geometry {
  const contentBytes = dataChunks * CHUNK_BYTES + (plan.metadataBlocks + JOURNAL_BLOCKS) * BLOCK_BYTES;
  const room = Math.max(ROOM_BYTES_MIN, contentBytes * ROOM_SHARE);
  const step = 256 * 1024 * 1024;
  let diskBytes = Math.max(DISK_BYTES_MIN, Math.ceil((contentBytes + room) / step) * step);
  for (; diskBytes <= DISK_BYTES_MAX; diskBytes += Math.max(step, Math.floor(diskBytes / 8 / step) * step)) {
    try {
      const geometry = geometryOf(diskBytes, plan.lastInode + SPARE_INODES);
      if (fits(geometry)) return geometry;
    } catch (error) {
      if (!(error instanceof LazydiskError && error.code === 'NO_SPACE')) throw error;
    }
  }
  throw new LazydiskError('NO_SPACE', `the image does not fit the largest disk, ${DISK_BYTES_MAX} bytes`);
}

/** Every piece of metadata in order of its place. `dataBlock` is the first block of data chunk 0. */
function piecesOf(
  plan: Plan,
  geometry: Geometry,
  dataBlock: number,
  uuid: Buffer,
  hashSeed: Buffer,
  seed: number,
): Piece[] {
  const tail: Piece[] = [];
  const inodes = new Map<number, () => Buffer>();
  const used = [{ start: 0, end: geometry.metadata + plan.metadataBlocks }];
  let next = geometry.metadata;
  for (const planned of plan.inodes) {
    const { number, dataRuns } = planned;
    const at = next;
    next += planned.contentBlocks + planned.extentBlocks + planned.xattrBlocks;
    inodes.set(number, () => renderPlanned(planned, at, dataBlock, seed));
    tail.push(...contentPieces(planned, at, dataBlock, seed));
    for (const { physical, blocks } of dataRuns) {
      used.push({ start: dataBlock + physical, end: dataBlock + physical + blocks });
    }
  }
  const journal = renderExtents(
    [{ logical: 0, physical: geometry.journal, blocks: JOURNAL_BLOCKS }],
    0,
    inodeSeed(seed, JOURNAL_INODE),
  ).root;
  inodes.set(JOURNAL_INODE, () => renderJournalInode(journal, seed));
  const usage = new BlockUsage(geometry, used);
  const groups = describeGroups(plan, geometry, usage, seed);
  const freeBlocks = groups.reduce((sum, { freeBlocks }) => sum + freeBlocks, 0);
  const freeInodes = geometry.groups * geometry.inodesPerGroup - plan.lastInode;
  return [
    {
      block: 0,
      blocks: 1,
      render: () =>
        renderSuperblock({ geometry, uuid, hashSeed, freeBlocks, freeInodes, journalContent: journal }),
    },
    { block: 1, blocks: geometry.descriptorBlocks, render: (at) => descriptorBlock(groups, at) },
    ...groups
      .filter(({ blocksInUse }) => blocksInUse)
      .map(({ group }) => ({
        block: geometry.blockBitmaps + group,
        blocks: 1,
        render: () => usage.bitmap(group),
      })),
    ...groups
      .filter(({ inodesInUse }) => inodesInUse > 0)
      .map(({ group, inodesInUse }) => ({
        block: geometry.inodeBitmaps + group,
        blocks: 1,
        render: () => inodeBitmap(geometry, inodesInUse),
      })),
    ...groups
      .filter(({ inodesInUse }) => inodesInUse > 0)
      .map(({ group, inodesInUse }) => ({
        block: geometry.inodeTables + group * geometry.tableBlocks,
        blocks: Math.ceil(inodesInUse / INODES_PER_BLOCK),
        render: (at: number) =>
          tableBlock(inodes, group * geometry.inodesPerGroup + at * INODES_PER_BLOCK + 1),
      })),
    { block: geometry.journal, blocks: 1, render: () => renderJournalSuperblock(uuid) },
    ...tail,
  ];
}

interface GroupState {
  readonly group: number;
  readonly freeBlocks: number;
  readonly blocksInUse: boolean;
  readonly inodesInUse: number;
  readonly descriptor: Buffer;
}

function describeGroups(plan: Plan, geometry: Geometry, usage: BlockUsage, seed: number): GroupState[] {
  const directories = new Map<number, number>();
  for (const { number, directory } of plan.inodes) {
    const group = Math.floor((number - 1) / geometry.inodesPerGroup);
    if (directory) directories.set(group, (directories.get(group) ?? 0) + 1);
  }
  return Array.from({ length: geometry.groups }, (_, group) => {
    const freeBlocks = blocksInGroup(geometry, group) - usage.usedIn(group);
    // As mke2fs does it, the last group always has its bitmap, which marks what lies behind the disk's end.
    const isLast = group === geometry.groups - 1;
    const blocksInUse = isLast || freeBlocks < blocksInGroup(geometry, group);
    const inodesInUse = Math.min(
      geometry.inodesPerGroup,
      Math.max(0, plan.lastInode - group * geometry.inodesPerGroup),
    );
    const free = geometry.inodesPerGroup - inodesInUse;
    const flags =
      GROUP_INODE_ZEROED |
      (blocksInUse ? 0 : GROUP_BLOCK_UNINIT) |
      (inodesInUse > 0 ? 0 : GROUP_INODE_UNINIT);
    const descriptor = renderDescriptor(
      geometry,
      {
        group,
        freeBlocks,
        freeInodes: free,
        directories: directories.get(group) ?? 0,
        unusedInodes: free,
        flags,
        blockBitmapSum: blocksInUse ? crc32c(seed, usage.bitmap(group)) : 0,
        inodeBitmapSum:
          inodesInUse > 0
            ? crc32c(seed, inodeBitmap(geometry, inodesInUse), 0, geometry.inodesPerGroup / 8)
            : 0,
      },
      seed,
    );
    return { group, freeBlocks, blocksInUse, inodesInUse, descriptor };
  });
}

function descriptorBlock(groups: readonly GroupState[], at: number): Buffer {
  const perBlock = BLOCK_BYTES / DESCRIPTOR_BYTES;
  const block = Buffer.alloc(BLOCK_BYTES);
  groups
    .slice(at * perBlock, (at + 1) * perBlock)
    .forEach(({ descriptor }, n) => void descriptor.copy(block, n * DESCRIPTOR_BYTES));
  return block;
}

/** Inodes are used from the first on; the bits behind the group's last inode are set, as ext4 wants it. */
function inodeBitmap(geometry: Geometry, inUse: number): Buffer {
  const bitmap = Buffer.alloc(BLOCK_BYTES);
  setBits(bitmap, 0, inUse);
  setBits(bitmap, geometry.inodesPerGroup, BLOCK_BYTES * 8);
  return bitmap;
}

function tableBlock(inodes: ReadonlyMap<number, () => Buffer>, first: number): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES);
  for (let n = 0; n < INODES_PER_BLOCK; n++)
    inodes
      .get(first + n)?.()
      .copy(block, n * (BLOCK_BYTES / INODES_PER_BLOCK));
  return block;
}

/** Where an inode's blocks lie on the disk, its content as runs. */
function runsOf(planned: PlannedInode, at: number, dataBlock: number) {
  if (planned.inode.kind === 'file') {
    return planned.dataRuns.map((run) => ({ ...run, physical: dataBlock + run.physical }));
  }
  const blocks = planned.contentBlocks;
  return blocks > 0 ? [{ logical: 0, physical: at, blocks }] : [];
}

function contentPieces(planned: PlannedInode, at: number, dataBlock: number, seed: number): Piece[] {
  const { number, inode, directory, xattrs } = planned;
  const pieces: Piece[] = [];
  if (directory) {
    pieces.push({ block: at, blocks: directory.blocks, render: (block) => directory.render(block) });
  } else if (planned.contentBlocks > 0) {
    const render = () =>
      Buffer.concat([Buffer.from(inode.target, 'latin1'), Buffer.alloc(BLOCK_BYTES)], BLOCK_BYTES);
    pieces.push({ block: at, blocks: 1, render });
  }
  const treeAt = at + planned.contentBlocks;
  if (planned.extentBlocks > 0) {
    let tree: Buffer[] | undefined;
    const render = (block: number) => {
      tree ??= renderExtents(runsOf(planned, at, dataBlock), treeAt, inodeSeed(seed, number)).blocks;
      return tree[block]!;
    };
    pieces.push({ block: treeAt, blocks: planned.extentBlocks, render });
  }
  if (planned.xattrBlocks > 0) {
    const block = treeAt + planned.extentBlocks;
    pieces.push({ block, blocks: 1, render: () => renderXattrBlock(xattrs.inBlock, block, seed) });
  }
  return pieces;
}

function renderPlanned(planned: PlannedInode, at: number, dataBlock: number, seed: number): Buffer {
  const { number, inode, xattrs } = planned;
  const ownSeed = inodeSeed(seed, number);
  const runs = runsOf(planned, at, dataBlock);
  const treeAt = at + planned.contentBlocks;
  const isFast = inode.kind === 'symlink' && planned.contentBlocks === 0;
  const isDevice = inode.kind === 'char' || inode.kind === 'block';
  const usesExtents = !isFast && ['file', 'directory', 'symlink'].includes(inode.kind);
  const content = isDevice
    ? deviceContent(inode.rdevMajor, inode.rdevMinor)
    : isFast
      ? Buffer.concat([Buffer.from(inode.target, 'latin1'), Buffer.alloc(60)], 60)
      : usesExtents
        ? renderExtents(runs, treeAt, ownSeed).root
        : Buffer.alloc(60);
  const sizes = { directory: planned.contentBlocks * BLOCK_BYTES, symlink: inode.target.length };
  const sizeBytes = inode.kind === 'file' ? inode.sizeBytes : (sizes[inode.kind as keyof typeof sizes] ?? 0);
  const blocks = runs.reduce((sum, run) => sum + run.blocks, 0) + planned.extentBlocks + planned.xattrBlocks;
  return renderInode(
    {
      kind: inode.kind,
      mode: inode.mode,
      uid: inode.uid,
      gid: inode.gid,
      mtimeNs: inode.mtimeNs,
      sizeBytes,
      links: planned.links,
      blocks,
      content,
      usesExtents,
      indexed: planned.directory?.indexed ?? false,
      xattrBlock: planned.xattrBlocks > 0 ? treeAt + planned.extentBlocks : 0,
      xattrs: renderInodeXattrs(xattrs.inInode),
    },
    ownSeed,
  );
}

function renderJournalInode(content: Buffer, seed: number): Buffer {
  return renderInode(
    {
      kind: 'file',
      mode: 0o600,
      uid: 0,
      gid: 0,
      mtimeNs: 0n,
      sizeBytes: JOURNAL_BLOCKS * BLOCK_BYTES,
      links: 1,
      blocks: JOURNAL_BLOCKS,
      content,
      usesExtents: true,
      indexed: false,
      xattrBlock: 0,
      xattrs: renderInodeXattrs([]),
    },
    inodeSeed(seed, JOURNAL_INODE),
  );
}

async function emitPieces(
  pieces: readonly Piece[],
  sink: (chunkIndex: number, bytes: Buffer) => Promise<void>,
): Promise<void> {
  let chunk = -1;
  let bytes = Buffer.alloc(0);
  for (const piece of pieces) {
    for (let n = 0; n < piece.blocks; n++) {
      const block = piece.block + n;
      const own = Math.floor(block / BLOCKS_PER_CHUNK);
      if (own !== chunk) {
        if (chunk >= 0) await sink(chunk, bytes);
        chunk = own;
        bytes = Buffer.alloc(CHUNK_BYTES);
      }
      piece.render(n).copy(bytes, (block % BLOCKS_PER_CHUNK) * BLOCK_BYTES);
    }
  }
  if (chunk >= 0) await sink(chunk, bytes);
}
