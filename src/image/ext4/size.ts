/**
 * How large the disk is. Its own description grows with it (a larger disk has more groups and more inodes), so the
 * least size that holds an image is found by asking for more until it fits.
 */
import { LazydiskError } from '../../errors.ts';
import { CHUNK_BYTES } from '../../format/chunk-id.ts';
import {
  BLOCK_BYTES,
  BLOCKS_PER_CHUNK,
  BLOCKS_PER_GROUP,
  DISK_BYTES_MAX,
  DISK_BYTES_MIN,
  type Geometry,
  geometryOf,
  INODES_PER_GROUP_MAX,
  JOURNAL_BLOCKS,
} from './geometry.ts';

/** Room that a disk of default size has beside its content. */
const ROOM_BYTES_MIN = 256 * 1024 * 1024;
const ROOM_SHARE = 0.25;
const DEFAULT_STEP_BYTES = 256 * 1024 * 1024;
/** Inodes that a guest may make beside the image's, on a disk of whatever size. */
const SPARE_INODES = 4096;

/** What has to go onto the disk. */
export interface Needs {
  /** The highest inode number. */
  readonly lastInode: number;
  /** Blocks behind the journal. */
  readonly metadataBlocks: number;
  readonly dataChunks: number;
}

/** Chunks in front of data chunk 0. */
export function metadataChunksOf(geometry: Geometry, needs: Needs): number {
  return Math.ceil((geometry.metadata + needs.metadataBlocks) / BLOCKS_PER_CHUNK);
}

/**
 * The geometry of a disk of `sizeBytes`, rounded up to whole chunks; without it, of content plus room, at least
 * 1 GiB. Throws NO_SPACE with the size that would do, USAGE for a size beyond the largest.
 */
export function chooseGeometry(needs: Needs, sizeBytes: number | undefined): Geometry {
  if (sizeBytes !== undefined) {
    const diskBytes = Math.ceil(sizeBytes / CHUNK_BYTES) * CHUNK_BYTES;
    if (diskBytes > DISK_BYTES_MAX) {
      throw new LazydiskError('USAGE', `a disk of ${sizeBytes} bytes: ${DISK_BYTES_MAX} is the most`);
    }
    const least = leastGeometry(needs, diskBytes);
    if (least.diskBytes === diskBytes) return least;
    throw new LazydiskError(
      'NO_SPACE',
      `the image does not fit a disk of ${diskBytes} bytes; it needs ${least.diskBytes}`,
    );
  }
  const contentBytes = needs.dataChunks * CHUNK_BYTES + (needs.metadataBlocks + JOURNAL_BLOCKS) * BLOCK_BYTES;
  const roomyBytes = contentBytes + Math.max(ROOM_BYTES_MIN, contentBytes * ROOM_SHARE);
  const diskBytes = Math.max(DISK_BYTES_MIN, Math.ceil(roomyBytes / DEFAULT_STEP_BYTES) * DEFAULT_STEP_BYTES);
  return leastGeometry(needs, Math.min(DISK_BYTES_MAX, diskBytes));
}

/** The least disk from `fromBytes` (whole chunks) up that holds what is needed. */
function leastGeometry(needs: Needs, fromBytes: number): Geometry {
  const inodes = needs.lastInode + SPARE_INODES;
  // Every group but the last is full, and a group's inode bitmap is one block.
  const groups = Math.ceil(inodes / INODES_PER_GROUP_MAX);
  let diskBytes = Math.max(fromBytes, (groups - 1) * BLOCKS_PER_GROUP * BLOCK_BYTES + CHUNK_BYTES);
  while (diskBytes <= DISK_BYTES_MAX) {
    const geometry = geometryOf(diskBytes, inodes);
    const neededBytes = (metadataChunksOf(geometry, needs) + needs.dataChunks) * CHUNK_BYTES;
    if (neededBytes <= diskBytes) return geometry;
    diskBytes = neededBytes;
  }
  throw new LazydiskError(
    'NO_SPACE',
    `the image does not fit the largest disk, ${DISK_BYTES_MAX} bytes: it needs ${diskBytes}`,
  );
}
