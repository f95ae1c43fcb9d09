/**
 * The paths of an image that some of its chunks are part of, read from the image itself: what of its disk still opens is
 * enough to find most of them.
 */
import type { DiskPaths } from '../store/fsck/hit-images.ts';
import { readWhatOpens } from './disk-read.ts';
import { pathsOfChunks } from './ext4/reader/paths.ts';

export const ext4Paths: DiskPaths = (manifest, getChunk) => {
  const read = readWhatOpens(manifest, getChunk);
  return (chunks, signal) => pathsOfChunks(read, manifest.diskBytes, chunks, signal && { signal });
};
