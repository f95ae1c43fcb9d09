/**
 * The cache's one data file. The cap and the free space decide its size, which is allocated when the cache is opened.
 */
import { type FileHandle, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  dataFileBytes,
  type Geometry,
  geometryFor,
  readSuperblock,
  SUPERBLOCK_BYTES,
  writeSuperblock,
} from './layout.ts';
import { freeBytes, preallocate } from './preallocate.ts';

export interface DataFileOptions {
  /** Created if absent; no other process may use it. */
  dir: string;
  /** The most that all of the cache's files in `dir` take up; at least CAP_BYTES_MIN. */
  capBytes: number;
  /** Bytes to leave free on the file system at start; by default a tenth of it, but at most 1 GiB. */
  keepFreeBytes?: number;
  /** Called with what an operator should know: less space than asked for, a damaged index, a failing disk. */
  onWarning?: (text: string) => void;
}

/** Resizes the data file to what the cap and the free space allow, and returns its geometry. */
export async function prepareFile(
  file: FileHandle,
  path: string,
  options: DataFileOptions,
): Promise<Geometry> {
  const head = Buffer.alloc(SUPERBLOCK_BYTES);
  await file.read(head, 0, SUPERBLOCK_BYTES, 0);
  const { size, blocks } = await file.stat();
  const known = readSuperblock(head);
  const wanted = geometryFor(options.capBytes, known);
  const space = await freeBytes(path);
  const room = space.freeBytes + blocks * 512 - (options.keepFreeBytes ?? space.headroomBytes);
  // A file made for a much larger cap may have segments too big for this one; it then starts anew.
  const reuse = known !== undefined && wanted.segments > 0;
  const geometry = geometryFor(Math.min(options.capBytes, Math.max(room, 1)), reuse ? known : undefined);
  const bytes = geometry.segments === 0 ? 0 : dataFileBytes(geometry);
  if (!reuse) await file.truncate(0);
  if (bytes < size) await file.truncate(bytes);
  if (bytes < dataFileBytes(reuse ? wanted : geometryFor(options.capBytes))) {
    options.onWarning?.(
      `disk cache in ${options.dir}: only ${bytes} of ${options.capBytes} bytes fit on this file system`,
    );
  }
  if (geometry.segments === 0) return geometry;
  if (!(await preallocate(path, bytes))) {
    options.onWarning?.(
      `disk cache in ${options.dir}: the space cannot be preallocated; writes may fail later`,
    );
  }
  if (!reuse) {
    await rm(join(options.dir, 'index'), { force: true });
    await file.write(writeSuperblock(geometry.segmentBytes), 0, SUPERBLOCK_BYTES, 0);
  }
  return geometry;
}
