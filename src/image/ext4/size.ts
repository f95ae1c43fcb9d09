/**
 * Chooses the size of the disk. Its metadata grows with it (a larger disk has more groups and more inodes), so the
 * smallest size that holds an image is found by increasing the size until the image fits.
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

/** Free space that a disk of default size has besides its content. */
const ROOM_BYTES_MIN = 256 * 1024 * 1024;
const ROOM_SHARE = 0.25;
const DEFAULT_STEP_BYTES = 256 * 1024 * 1024;
/** Inodes that a guest can create besides the image's, on a disk of any size. */
const SPARE_INODES = 4096;

/** What the disk must hold. */
export interface Needs {
  /** The highest inode number. */
  readonly lastInode: number;
  /** Blocks after the journal. */
  readonly metadataBlocks: number;
  readonly dataChunks: number;
}

/** Chunks before data chunk 0. */
export function metadataChunksOf(geometry: Geometry, needs: Needs): number {
  return Math.ceil((geometry.metadata + needs.metadataBlocks) / BLOCKS_PER_CHUNK);
}

/**
 * Returns the geometry of a disk of `sizeBytes`, rounded up to whole chunks; by default, of content plus free space, at
 * least 1 GiB. Throws NO_SPACE with the size that is needed, USAGE for a size over the maximum.
 */
export function chooseGeometry(needs: Needs, sizeBytes: number | undefined): Geometry {
  if (sizeBytes !== undefined) {
    const diskBytes = Math.ceil(sizeBytes / CHUNK_BYTES) * CHUNK_BYTES;
    if (diskBytes > DISK_BYTES_MAX) {
      throw new LazydiskError('USAGE', `a disk of ${sizeBytes} bytes: the maximum is ${DISK_BYTES_MAX}`);
    }
    const least = leastGeometry(needs, diskBytes);
    if (least.diskBytes === diskBytes) return least;
    throw new LazydiskError(
      'NO_SPACE',
      `the image does not fit on a disk of ${diskBytes} bytes; it needs ${least.diskBytes}`,
    );
  }
  const contentBytes = needs.dataChunks * CHUNK_BYTES + (needs.metadataBlocks + JOURNAL_BLOCKS) * BLOCK_BYTES;
  const roomyBytes = contentBytes + Math.max(ROOM_BYTES_MIN, contentBytes * ROOM_SHARE);
  const diskBytes = Math.max(DISK_BYTES_MIN, Math.ceil(roomyBytes / DEFAULT_STEP_BYTES) * DEFAULT_STEP_BYTES);
  return leastGeometry(needs, Math.min(DISK_BYTES_MAX, diskBytes));
}

/** The smallest disk of at least `fromBytes` (whole chunks) that holds what is needed. */
function leastGeometry(needs: Needs, fromBytes: number): Geometry {
  const inodes = needs.lastInode + SPARE_INODES;
  // All groups but the last have their full size, and a group's inode bitmap is one block.
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
    `the image does not fit on the largest disk, ${DISK_BYTES_MAX} bytes: it needs ${diskBytes}`,
  );
}
