/**
 * The local disk cache: sealed chunks in fixed-size segments of one preallocated file. Records are appended; when the
 * file is full, the oldest segment is evicted. Chunks in it that were read twice since they were written are appended
 * again, so that one scan over a big image does not wash out what every start needs. A full, slow or broken disk costs
 * hits, never a read: what cannot be written is dropped and counted, and the reader verifies what is read and calls
 * `discard` on a bad copy.
 */
import { read, writev } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Slots } from '../../async/slots.ts';
import { lockDirectory } from '../../directory-lock.ts';
import { errorText, LazydiskError } from '../../errors.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import { openOwnFile, ownDirectory } from '../../own-files.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
import { type DataFileOptions, prepareFile } from './data-file.ts';
import {
  CAP_BYTES_MIN,
  dataFileBytes,
  type Geometry,
  RECORD_HEADER_BYTES,
  recordBytes,
  segmentOffset,
  writeRecordHeader,
} from './layout.ts';
import { scanRecords } from './recovery.ts';
import { type Entry, type Segment, Segments } from './segments.ts';
import { saveSnapshot, takeSnapshot } from './snapshot.ts';

const readAt = promisify(read);
const writeAt = promisify(writev);

/** Sealed bytes that may wait for the disk at once; more is dropped. */
const PENDING_BYTES_MAX = 16 * 1024 * 1024;
/** Writes that may be in the thread pool at once. */
const WRITES_MAX = 2;
/** While a write takes longer than this, nothing more is taken. */
const WRITE_SLOW_MS = 1_000;
/** How long a hung disk may delay a stop. */
const CLOSE_MS = 3_000;
/** The size of the read that tests whether the disk works. */
const PROBE_BYTES = 4096;
/** Read buffers kept for reuse. */
const POOL_MAX = 16;
/** After a failed write nothing is written for this long. */
const WRITE_PAUSE_MS = 5_000;

export type DiskCacheOptions = DataFileOptions;

export interface DiskCacheStats {
  capBytes: number;
  /** What the files take up, used or not; never above capBytes. */
  reservedBytes: number;
  /** What live and dead records take up in the segments. */
  usedBytes: number;
  entries: number;
  evictions: number;
  /** Copies that failed verification. */
  quarantined: number;
  droppedPuts: number;
  writeErrors: number;
  /** False while writes are suspended: a write has failed lately or hangs, or the index is not complete. */
  writable: boolean;
  /** True after an unclean shutdown, until the index is complete. */
  recovering: boolean;
}

export class DiskCache implements ChunkTier {
  readonly name = 'disk';
  readonly #dir: string;
  readonly #geometry: Geometry;
  readonly #file: FileHandle;
  readonly #lock: { release(): Promise<void> };
  readonly #segments: Segments;
  readonly #warn: (text: string) => void;
  readonly #capBytes: number;
  readonly #pool: Buffer[] = [];
  readonly #writing = new Set<ChunkId>();
  readonly #writes = new Slots(WRITES_MAX);
  /** When the writes in the thread pool began, oldest first. */
  readonly #writesSince = new Set<{ readonly atMs: number }>();
  /** The position of the last read. */
  #askedAt = 0;
  readonly #work = new Set<Promise<unknown>>();
  #recovery: Promise<void> | undefined;
  #pendingBytes = 0;
  #pausedUntil = 0;
  #closed = false;
  #evictions = 0;
  #quarantined = 0;
  #droppedPuts = 0;
  #writeErrors = 0;

  private constructor(
    options: DiskCacheOptions,
    geometry: Geometry,
    file: FileHandle,
    lock: { release(): Promise<void> },
  ) {
    this.#dir = options.dir;
    this.#capBytes = options.capBytes;
    this.#warn = options.onWarning ?? (() => {});
    this.#geometry = geometry;
    this.#file = file;
    this.#lock = lock;
    this.#segments = new Segments(geometry.segments, geometry.segmentBytes);
  }

  /**
   * Opens or creates the cache in `dir`. Too little space makes a smaller cache, down to none, with a warning. Throws
   * USAGE for a cap below CAP_BYTES_MIN or a directory that does not belong to this user alone, BUSY if another process uses it,
   * UNAVAILABLE if `dir` cannot be created or written.
   */
  static async open(options: DiskCacheOptions): Promise<DiskCache> {
    const { dir, capBytes } = options;
    if (!Number.isSafeInteger(capBytes) || capBytes < CAP_BYTES_MIN) {
      throw new LazydiskError('USAGE', `cache size ${capBytes}: want at least ${CAP_BYTES_MIN} bytes`);
    }
    const unavailable = (error: unknown) =>
      new LazydiskError('UNAVAILABLE', `disk cache in ${dir}: ${errorText(error)}`, { cause: error });
    await ownDirectory(dir, { what: 'cache directory' });
    const lock = await lockDirectory(dir, 'cache').catch((error: unknown) =>
      Promise.reject(error instanceof LazydiskError ? error : unavailable(error)),
    );
    try {
      const path = join(dir, 'chunks');
      const file = await openOwnFile(path);
      try {
        const geometry = await prepareFile(file, path, options);
        const cache = new DiskCache(options, geometry, file, lock);
        await cache.#load();
        return cache;
      } catch (error) {
        await file.close();
        throw error;
      }
    } catch (error) {
      await lock.release();
      throw error instanceof LazydiskError ? error : unavailable(error);
    }
  }

  /** Whether `get` would read this chunk from the disk. */
  holds(id: ChunkId, sealedBytes: number): boolean {
    // An id has one length, so a manifest with another length is wrong, not this copy.
    return !this.#closed && this.#segments.get(id)?.sealedBytes === sealedBytes;
  }

  /**
   * Settles when the thread pool has finished the read, however long that takes; deadlines are up to DiskTier. Rejects
   * with UNAVAILABLE.
   */
  async get(id: ChunkId, sealedBytes: number): Promise<SealedLoan | undefined> {
    const entry = this.#segments.get(id);
    if (!entry || !this.holds(id, sealedBytes)) return undefined;
    const segment = this.#segments.hold(entry);
    const buffer = this.#pool.pop() ?? Buffer.allocUnsafeSlow(SEALED_BYTES_MAX);
    const position = this.#position(entry) + RECORD_HEADER_BYTES;
    this.#askedAt = position;
    try {
      const { bytesRead } = await readAt(this.#file.fd, buffer, 0, sealedBytes, position);
      if (bytesRead === sealedBytes)
        return { bytes: buffer.subarray(0, sealedBytes), release: () => this.#recycle(buffer) };
      // A short read means a truncated file; the copy could not be verified, so it is discarded here.
      this.discard(id);
      this.#recycle(buffer);
      return undefined;
    } catch (error) {
      this.#segments.remove(entry);
      this.#recycle(buffer);
      throw new LazydiskError('UNAVAILABLE', `disk cache: ${errorText(error)}`, { cause: error });
    } finally {
      this.#segments.unpin(segment);
    }
  }

  /** Reads again where the last read was, which may have failed. Rejects if that fails; settles as `get` does. */
  async probe(): Promise<void> {
    await readAt(this.#file.fd, Buffer.allocUnsafe(PROBE_BYTES), 0, PROBE_BYTES, this.#askedAt);
  }

  async put(id: ChunkId, sealed: Uint8Array): Promise<boolean> {
    if (this.#closed || this.#writing.has(id)) return false;
    // The verified bytes have the length of the id; a cached copy of another length is useless.
    if (this.#segments.get(id)?.sealedBytes === sealed.length) return true;
    const isBusy = this.#pendingBytes + sealed.length > PENDING_BYTES_MAX;
    if (isBusy || !this.#isWritable) {
      this.#droppedPuts++;
      return false;
    }
    return this.#track(this.#append(id, sealed, 0));
  }

  discard(id: ChunkId): void {
    const entry = this.#segments.get(id);
    if (!entry || !this.#segments.remove(entry)) return;
    this.#quarantined++;
    // Marked dead on disk too, so that a scan after a crash does not find it again.
    const segment = this.#segments.list[entry.segment]!;
    const { sequence } = segment;
    segment.users++;
    const dead = writeRecordHeader({ id, sealedBytes: entry.sealedBytes, sequence, alive: false });
    const position = this.#position(entry);
    void this.#track(
      this.#write([dead], position).catch((error: unknown) => this.#writeFailed(error)),
    ).finally(() => this.#segments.unpin(segment));
  }

  stats(): DiskCacheStats {
    let usedBytes = 0;
    for (const segment of this.#segments.list) usedBytes += segment.usedBytes;
    return {
      capBytes: this.#capBytes,
      reservedBytes: this.#geometry.segments === 0 ? 0 : dataFileBytes(this.#geometry),
      usedBytes,
      entries: this.#segments.entries,
      evictions: this.#evictions,
      quarantined: this.#quarantined,
      droppedPuts: this.#droppedPuts,
      writeErrors: this.#writeErrors,
      writable: this.#isWritable,
      recovering: this.#recovery !== undefined,
    };
  }

  /** Resolves when the index is complete (for tests; readers need not wait). */
  async recovered(): Promise<void> {
    await this.#recovery;
  }

  /** Waits for writes, saves the index, and closes. If the disk hangs, the files stay open until the process exits. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const partial = this.#recovery !== undefined;
    if (!(await this.#idle())) {
      this.#warn('disk cache: the disk hangs, so the index is not saved; the next start scans the records');
      return;
    }
    try {
      if (!partial && this.#geometry.segments > 0) {
        await saveSnapshot(this.#indexPath(), this.#geometry, this.#segments);
      }
    } catch (error) {
      this.#warn(
        `disk cache: the index could not be saved (${errorText(error)}); the next start scans the records`,
      );
    } finally {
      await this.#file.close();
      await this.#lock.release();
    }
  }

  /** Resolves to whether all work finished within CLOSE_MS. */
  async #idle(): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<false>((resolve) => {
      timer = setTimeout(() => resolve(false), CLOSE_MS);
    });
    const all = async () => {
      await this.#recovery;
      while (this.#work.size > 0) await Promise.allSettled(this.#work);
      return true as const;
    };
    const isIdle = await Promise.race([all(), late]);
    clearTimeout(timer);
    return isIdle;
  }

  #indexPath(): string {
    return join(this.#dir, 'index');
  }

  async #load(): Promise<void> {
    if (await takeSnapshot(this.#indexPath(), this.#geometry, this.#segments)) {
      this.#segments.adopt();
      return;
    }
    this.#recovery = scanRecords(this.#file.fd, this.#geometry, this.#segments, () => this.#closed)
      .catch((error: unknown) => this.#warn(`disk cache: scan ended early: ${errorText(error)}`))
      .then(() => {
        this.#segments.adopt();
        this.#recovery = undefined;
      });
  }

  /** False if the chunk was dropped. */
  async #append(id: ChunkId, sealed: Uint8Array, hits: number): Promise<boolean> {
    this.#writing.add(id);
    this.#pendingBytes += sealed.length;
    await this.#writes.take();
    const place = this.#segments.reserve(recordBytes(sealed.length));
    this.#evictIfNeeded();
    try {
      if (!place) {
        this.#droppedPuts++;
        return false;
      }
      const { segment, offset } = place;
      const header = writeRecordHeader({
        id,
        sealedBytes: sealed.length,
        sequence: segment.sequence,
        alive: true,
      });
      await this.#writeNow([header, sealed], segmentOffset(this.#geometry, segment.number) + offset);
      return this.#segments.add({ id, segment: segment.number, offset, sealedBytes: sealed.length, hits });
    } catch (error) {
      this.#writeFailed(error);
      return false;
    } finally {
      this.#writes.give();
      this.#pendingBytes -= sealed.length;
      this.#writing.delete(id);
      if (place) this.#segments.unpin(place.segment);
    }
  }

  async #write(parts: readonly Uint8Array[], position: number): Promise<void> {
    await this.#writes.take();
    try {
      await this.#writeNow(parts, position);
    } finally {
      this.#writes.give();
    }
  }

  async #writeNow(parts: readonly Uint8Array[], position: number): Promise<void> {
    const since = { atMs: performance.now() };
    this.#writesSince.add(since);
    try {
      const { bytesWritten } = await writeAt(this.#file.fd, [...parts], position);
      const wanted = parts.reduce((sum, { length }) => sum + length, 0);
      if (bytesWritten !== wanted) throw new Error(`wrote only ${bytesWritten} bytes`);
    } finally {
      this.#writesSince.delete(since);
    }
  }

  get #isWritable(): boolean {
    const [oldest] = this.#writesSince;
    const nowMs = performance.now();
    if (this.#recovery) return false;
    return nowMs >= this.#pausedUntil && !(oldest && nowMs - oldest.atMs > WRITE_SLOW_MS);
  }

  #evictIfNeeded(): void {
    const segment = this.#segments.beginEviction();
    if (segment) void this.#track(this.#evict(segment));
  }

  async #evict(segment: Segment): Promise<void> {
    const { keep, evicted } = this.#segments.condemn(segment, this.#geometry.segmentBytes / 2);
    this.#evictions += evicted;
    const buffer = Buffer.allocUnsafeSlow(SEALED_BYTES_MAX);
    for (const entry of keep) {
      try {
        const position = this.#position(entry) + RECORD_HEADER_BYTES;
        const { bytesRead } = await readAt(this.#file.fd, buffer, 0, entry.sealedBytes, position);
        // Appended with no hits: to survive another round it must be read twice again.
        if (bytesRead === entry.sealedBytes && this.#segments.get(entry.id) === entry) {
          await this.#append(entry.id, buffer.subarray(0, entry.sealedBytes), 0);
        }
      } catch (error) {
        this.#warn(`disk cache: a record could not be kept: ${errorText(error)}`);
      }
    }
    await this.#segments.finishEviction(segment);
  }

  #position(entry: Entry): number {
    return segmentOffset(this.#geometry, entry.segment) + entry.offset;
  }

  #writeFailed(error: unknown): void {
    this.#writeErrors++;
    if (performance.now() >= this.#pausedUntil) {
      this.#warn(`disk cache: write failed, new chunks are not cached for now: ${errorText(error)}`);
    }
    this.#pausedUntil = performance.now() + WRITE_PAUSE_MS;
  }

  #recycle(buffer: Buffer): void {
    if (this.#pool.length < POOL_MAX) this.#pool.push(buffer);
  }

  #track<T>(work: Promise<T>): Promise<T> {
    const tracked = work.finally(() => this.#work.delete(tracked));
    this.#work.add(tracked);
    return tracked;
  }
}
