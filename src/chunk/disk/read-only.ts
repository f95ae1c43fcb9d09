/**
 * The disk cache of a daemon, opened by another process that looks for copies of chunks that the origin has lost. It
 * takes no lock and writes nothing, so the daemon may keep running; what the daemon overwrites meanwhile fails
 * verification like any bad copy. The index is built once, from the headers of the records.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { errorText, LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import {
  type Geometry,
  RECORD_HEADER_BYTES,
  readSuperblock,
  SUPERBLOCK_BYTES,
  segmentOffset,
} from './layout.ts';
import { scanRecords } from './recovery.ts';
import { Segments } from './segments.ts';

export class ReadOnlyDiskCache {
  readonly #file: FileHandle;
  readonly #geometry: Geometry;
  readonly #segments: Segments;

  private constructor(file: FileHandle, geometry: Geometry, segments: Segments) {
    this.#file = file;
    this.#geometry = geometry;
    this.#segments = segments;
  }

  /** Throws NOT_FOUND if there is no cache in `dir`, UNAVAILABLE. */
  static async open(dir: string): Promise<ReadOnlyDiskCache> {
    const path = join(dir, 'chunks');
    const file = await open(path, 'r').catch((cause) => {
      const isMissing = ['ENOENT', 'ENOTDIR'].includes((cause as NodeJS.ErrnoException).code ?? '');
      const text = isMissing ? `no disk cache in ${dir}` : `disk cache in ${dir}: ${errorText(cause)}`;
      throw new LazydiskError(isMissing ? 'NOT_FOUND' : 'UNAVAILABLE', text, { cause });
    });
    try {
      const head = Buffer.alloc(SUPERBLOCK_BYTES);
      await file.read(head, 0, SUPERBLOCK_BYTES, 0);
      const segmentBytes = readSuperblock(head);
      if (segmentBytes === undefined) throw new LazydiskError('NOT_FOUND', `no disk cache in ${dir}`);
      const { size } = await file.stat();
      const geometry = { segmentBytes, segments: Math.floor((size - SUPERBLOCK_BYTES) / segmentBytes) };
      const segments = new Segments(geometry.segments, segmentBytes);
      await scanRecords(file.fd, geometry, segments, () => false);
      return new ReadOnlyDiskCache(file, geometry, segments);
    } catch (error) {
      await file.close();
      if (error instanceof LazydiskError) throw error;
      throw new LazydiskError('UNAVAILABLE', `disk cache in ${dir}: ${errorText(error)}`, { cause: error });
    }
  }

  /**
   * Sealed bytes, unverified; undefined for chunks that were not there when the cache was opened. Throws UNAVAILABLE.
   */
  async get(id: ChunkId): Promise<Buffer | undefined> {
    const entry = this.#segments.get(id);
    if (!entry) return undefined;
    const bytes = Buffer.allocUnsafe(entry.sealedBytes);
    const at = segmentOffset(this.#geometry, entry.segment) + entry.offset + RECORD_HEADER_BYTES;
    try {
      const { bytesRead } = await this.#file.read(bytes, 0, bytes.length, at);
      return bytes.subarray(0, bytesRead);
    } catch (cause) {
      throw new LazydiskError('UNAVAILABLE', `disk cache: ${errorText(cause)}`, { cause });
    }
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}
