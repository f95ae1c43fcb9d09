/**
 * The ext4 writer: lays out a merged tree as a disk and emits the chunks of its metadata, in ascending order and one at
 * a time, so that the disk's size costs no memory. The same tree produces the same bytes on every machine: UUID and
 * hash seed are derived from the content's digest, numbers and places from the tree, and no clock is read.
 */
import { createHash } from 'node:crypto';
import { isZero } from '../../format/chunk-codec.ts';
import { CHUNK_BYTES } from '../../format/chunk-id.ts';
import type { ChunkSink, MergedTree } from '../tree.ts';
import {
  contentPieces,
  filePlaces,
  journalContent,
  type Piece,
  type Places,
  writeInode,
  writeJournalInode,
} from './contents.ts';
import { fileSystemSeed } from './crc32c.ts';
import {
  BLOCK_BYTES,
  BLOCKS_PER_CHUNK,
  type Geometry,
  INODE_BYTES,
  INODES_PER_BLOCK,
  JOURNAL_INODE,
} from './geometry.ts';
import { describeGroups, type Group, writeDescriptorBlock, writeInodeBitmap } from './groups.ts';
import { inodeOfNumber, type Plan, planTree } from './plan.ts';
import { chooseGeometry, metadataChunksOf } from './size.ts';
import { writeJournalSuperblock, writeSuperblock } from './superblock.ts';
import { BlockUsage, type UsedRange } from './usage.ts';

export interface Ext4Layout {
  /** A multiple of CHUNK_BYTES. */
  readonly diskBytes: number;
  /** Chunks before data chunk 0; the disk after the last data chunk is free, and zero. */
  readonly metadataChunks: number;
  /**
   * Passes every metadata chunk that is not all zero to `sink`, in ascending order; the sink owns `bytes`. `takeBuffer`
   * returns memory for a chunk, with arbitrary content; by default it allocates.
   */
  emit(sink: ChunkSink, takeBuffer?: () => Buffer): Promise<void>;
}

export interface LayoutOptions {
  /** Rounded up to whole chunks. Default: the content plus free space, at least 1 GiB. */
  readonly sizeBytes?: number;
  /** Digest of the tree's source; UUID and hash seed are derived from it. */
  readonly contentDigest: string;
}

/** What distinguishes file systems of the same tree. */
interface Identity {
  /** 16 bytes each. */
  readonly uuid: Buffer;
  readonly hashSeed: Buffer;
}

/**
 * Lays out `tree`, which must not change until `emit` has finished. Rejects with NO_SPACE if the tree does not fit, and
 * with UNSUPPORTED or CORRUPT, and the path, for anything that ext4 cannot hold.
 */
export async function layoutExt4(tree: MergedTree, options: LayoutOptions): Promise<Ext4Layout> {
  const identity = identityOf(options.contentDigest);
  const hashWords = Int32Array.from({ length: 4 }, (_, n) => identity.hashSeed.readInt32LE(n * 4));
  const seed = fileSystemSeed(identity.uuid);
  const plan = planTree(tree.root, hashWords, seed);
  const needs = {
    lastInode: plan.lastInode,
    metadataBlocks: plan.metadataBlocks,
    dataChunks: tree.dataChunks,
  };
  const geometry = chooseGeometry(needs, options.sizeBytes);
  const metadataChunks = metadataChunksOf(geometry, needs);
  const { journal, metadata } = geometry;
  const places: Places = { journal, metadata, data: metadataChunks * BLOCKS_PER_CHUNK, seed };
  return {
    diskBytes: geometry.diskBytes,
    metadataChunks,
    emit: (sink, takeBuffer = () => Buffer.allocUnsafeSlow(CHUNK_BYTES)) =>
      emitPieces(allPieces(plan, geometry, places, identity), sink, takeBuffer),
  };
}

function identityOf(contentDigest: string): Identity {
  const digest = createHash('sha256').update('lazydisk ext4 ').update(contentDigest).digest();
  const uuid = digest.subarray(0, 16);
  // RFC 9562, version 8 (custom), variant 1.
  uuid[6] = (uuid[6]! & 0x0f) | 0x80;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  return { uuid, hashSeed: digest.subarray(16, 32) };
}

/** Every piece of metadata that is not all zero, in the order of the disk. */
function* allPieces(plan: Plan, geometry: Geometry, places: Places, identity: Identity): Generator<Piece> {
  const usage = new BlockUsage(geometry, usedRanges(plan, geometry, places));
  const groups = describeGroups(geometry, usage, plan.lastInode, directoriesOf(plan), places.seed);
  const superblock = {
    geometry,
    ...identity,
    freeBlocks: groups.reduce((sum, { freeBlocks }) => sum + freeBlocks, 0),
    freeInodes: geometry.groups * geometry.inodesPerGroup - plan.lastInode,
    journalContent: journalContent(places),
  };
  yield { block: 0, blocks: 1, write: (target) => writeSuperblock(target, superblock) };
  yield {
    block: 1,
    blocks: geometry.descriptorBlocks,
    write: (target, at) => writeDescriptorBlock(target, groups, at),
  };
  yield* groupPieces(plan, geometry, places, groups, usage);
  yield {
    block: geometry.journal,
    blocks: 1,
    write: (target) => writeJournalSuperblock(target, identity.uuid),
  };
  for (const planned of plan.inodes) yield* contentPieces(planned, places);
}

/** Block bitmaps, inode bitmaps and inode tables of the groups that need them. */
function* groupPieces(
  plan: Plan,
  geometry: Geometry,
  places: Places,
  groups: readonly Group[],
  usage: BlockUsage,
): Generator<Piece> {
  for (const { number } of groups.filter(({ hasBlocks }) => hasBlocks)) {
    const block = geometry.blockBitmaps + number;
    yield { block, blocks: 1, write: (target) => usage.writeBitmap(target, number) };
  }
  const withInodes = groups.filter(({ inodes }) => inodes > 0);
  for (const { number, inodes } of withInodes) {
    const block = geometry.inodeBitmaps + number;
    yield { block, blocks: 1, write: (target) => writeInodeBitmap(target, geometry, inodes) };
  }
  for (const { number, inodes } of withInodes) {
    const first = number * geometry.inodesPerGroup + 1;
    yield {
      block: geometry.inodeTables + number * geometry.tableBlocks,
      blocks: Math.ceil(inodes / INODES_PER_BLOCK),
      write: (target, at) => writeTableBlock(target, plan, places, first + at * INODES_PER_BLOCK),
    };
  }
}

/** Fills a block of an inode table whose first inode has number `first`. */
function writeTableBlock(block: Buffer, plan: Plan, places: Places, first: number): void {
  for (let n = 0; n < INODES_PER_BLOCK; n++) {
    const planned = inodeOfNumber(plan, first + n);
    const isJournal = first + n === JOURNAL_INODE;
    if (!planned && !isJournal) continue;
    const target = block.subarray(n * INODE_BYTES, (n + 1) * INODE_BYTES);
    if (planned) writeInode(target, planned, places);
    else writeJournalInode(target, places);
  }
}

function* usedRanges(plan: Plan, geometry: Geometry, places: Places): Generator<UsedRange> {
  yield { physical: 0, blocks: geometry.metadata + plan.metadataBlocks };
  for (const planned of plan.inodes) yield* filePlaces(planned, places);
}

function* directoriesOf(plan: Plan): Generator<number> {
  for (const { number, directory } of plan.inodes) if (directory) yield number;
}

async function emitPieces(pieces: Iterable<Piece>, sink: ChunkSink, takeBuffer: () => Buffer): Promise<void> {
  let open: { chunk: number; bytes: Buffer } | undefined;
  /** Finishes the open chunk. Returns its buffer for reuse if the chunk was all zero. */
  const close = async (): Promise<Buffer | undefined> => {
    if (!open || isZero(open.bytes)) return open?.bytes;
    await sink(open.chunk, open.bytes);
    return undefined;
  };
  for (const piece of pieces) {
    for (let n = 0; n < piece.blocks; n++) {
      const block = piece.block + n;
      const chunk = Math.floor(block / BLOCKS_PER_CHUNK);
      if (chunk !== open?.chunk) {
        const bytes: Buffer = (await close()) ?? takeBuffer();
        open = { chunk, bytes: bytes.fill(0) };
      }
      const at = (block % BLOCKS_PER_CHUNK) * BLOCK_BYTES;
      piece.write(open.bytes.subarray(at, at + BLOCK_BYTES), n);
    }
  }
  await close();
}
