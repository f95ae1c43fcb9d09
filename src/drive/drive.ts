/**
 * A read-only drive: an image's chunk map on top of the chunk reader. What is in memory is answered at once, from the
 * slab; zero chunks come from one shared buffer; all other reads wait for their chunks. To prevent deadlock, no read
 * holds one chunk while it waits for another: it waits for all, then pins them together in one step. When memory is too
 * small for that, it copies them out one by one.
 */
import type { ReadClass, ReadContext } from '../async/read-context.ts';
import type { ChunkRead } from '../chunk/flight.ts';
import type { HitMap } from '../chunk/hit-map.ts';
import type { ChunkReader } from '../chunk/reader.ts';
import type { PinnedChunk } from '../chunk/slab.ts';
import type { TierName } from '../chunk/tier.ts';
import { codeOf, LazydiskError, withContext } from '../errors.ts';
import { CHUNK_BYTES } from '../format/chunk-id.ts';
import type { BlockDevice, BlockExtent, PinnedBytes } from './block-device.ts';
import { type ChunkMap, entryFrom, extentsOf } from './chunk-map.ts';
import { DriveCounters, type DriveStats, fartherTier } from './drive-stats.ts';
import { PrefetchQueue } from './prefetch-queue.ts';
import { Readahead } from './readahead.ts';

/** The largest readahead of one sequence, in chunks (8 MiB), and never over an eighth of memory. */
const READAHEAD_CHUNKS_MAX = 16;
/** How often a read of several chunks, some of which are evicted before all are there, tries to have them together. */
const TOGETHER_TRIES = 3;

const zeroes = Buffer.alloc(CHUNK_BYTES);

export interface DriveOptions {
  /** A name that `checkDriveName` accepts (drive-name.ts). */
  readonly name: string;
  readonly image: { readonly digest: string; readonly manifest: ChunkMap };
  /** Shared by all drives; stays open when the drive closes. */
  readonly reader: ChunkReader;
  /** How long a read may take before it rejects with TIMEOUT. */
  readonly readTimeoutMs: number;
}

/** A waiting read, with the farthest tier that it needed so far. */
interface Operation {
  readonly startedAt: number;
  readonly deadline: number;
  readonly controller: AbortController;
  tier: TierName;
}

/** The part of a read in one chunk. `entry` is -1 for a zero chunk. */
interface Piece {
  readonly index: number;
  readonly entry: number;
  readonly from: number;
  readonly to: number;
}

export class Drive implements BlockDevice {
  readonly name: string;
  readonly sizeBytes: number;
  readonly readOnly = true;
  readonly imageDigest: string;
  readonly readTimeoutMs: number;
  readonly #map: ChunkMap;
  readonly #reader: ChunkReader;
  readonly #counters: DriveCounters;
  readonly #readahead: Readahead;
  readonly #prefetches: PrefetchQueue;
  readonly #operations = new Set<Operation>();
  readonly #closing = new AbortController();
  /** Set once an export reads from memory without asking the drive. */
  #hits: HitMap | undefined;

  constructor(options: DriveOptions) {
    const { manifest, digest } = options.image;
    this.name = options.name;
    this.sizeBytes = manifest.diskBytes;
    this.imageDigest = digest;
    this.#map = manifest;
    this.#reader = options.reader;
    this.readTimeoutMs = options.readTimeoutMs;
    this.#counters = new DriveCounters(manifest.storedChunks);
    this.#readahead = new Readahead({
      entries: manifest.storedChunks,
      windowMax: Math.max(1, Math.min(READAHEAD_CHUNKS_MAX, options.reader.memory.slots >> 3)),
      fetch: (entry) => this.#fetchAhead(entry, 'readahead'),
    });
    this.#prefetches = new PrefetchQueue({ fetch: (entry) => this.#fetchAhead(entry, 'prefetch') });
  }

  tryRead(offset: number, lengthBytes: number): PinnedBytes | undefined {
    this.#checkRange(offset, lengthBytes);
    if (this.#closing.signal.aborted) return undefined;
    const index = Math.floor(offset / CHUNK_BYTES);
    const from = offset - index * CHUNK_BYTES;
    const to = from + lengthBytes;
    let bytes: PinnedBytes | undefined;
    if (to <= CHUNK_BYTES) {
      const entry = this.#map.entryOf(index);
      if (entry < 0) bytes = new Bytes([zeroes.subarray(from, to)]);
      else {
        const chunk = this.#reader.tryGet(this.#map.ref(entry));
        if (!chunk) return undefined;
        bytes = this.#lend(index, chunk, from, to);
        this.#touch(entry);
        this.#readahead.observe(entry, entry, from === 0);
      }
    } else {
      const pieces = this.#pieces(offset, lengthBytes);
      bytes = this.#pinTogether(pieces);
      if (!bytes) return undefined;
      this.#observe(pieces);
    }
    this.#counters.readAtOnce(lengthBytes);
    return bytes;
  }

  async read(
    offset: number,
    lengthBytes: number,
    signal?: AbortSignal,
    deadline?: number,
  ): Promise<PinnedBytes> {
    this.#checkRange(offset, lengthBytes);
    const now = performance.now();
    const operation: Operation = {
      startedAt: now,
      deadline: deadline ?? now + this.readTimeoutMs,
      controller: new AbortController(),
      tier: 'memory',
    };
    const { controller, startedAt } = operation;
    const abort = () => controller.abort();
    if (signal?.aborted || this.#closing.signal.aborted) abort();
    signal?.addEventListener('abort', abort, { once: true });
    this.#operations.add(operation);
    try {
      const bytes = await this.#readPieces(this.#pieces(offset, lengthBytes), operation);
      this.#counters.readDone(lengthBytes, operation.tier, performance.now() - startedAt);
      return bytes;
    } catch (error) {
      const failure = error instanceof LazydiskError ? error : withContext(error, `drive ${this.name}`);
      // Cancelled by the caller, so it is no failure of the drive.
      if (failure.code !== 'ABORTED') this.#counters.failed(failure);
      throw failure;
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#operations.delete(operation);
    }
  }

  extents(offset: number, lengthBytes: number, extentsMax: number): BlockExtent[] {
    this.#checkRange(offset, lengthBytes);
    return extentsOf(this.#map, offset, lengthBytes, extentsMax);
  }

  prefetch(offset: number, lengthBytes: number): void {
    const end = Math.min(offset + lengthBytes, this.sizeBytes);
    if (offset < 0 || offset >= end) return;
    const first = entryFrom(this.#map, Math.floor(offset / CHUNK_BYTES));
    this.#prefetches.add(range(first, entryFrom(this.#map, Math.ceil(end / CHUNK_BYTES))));
  }

  hitMap(): HitMap {
    this.#hits ??= this.#reader.memory.hitMap(this.sizeBytes / CHUNK_BYTES, this.#storedIndices());
    return this.#hits;
  }

  stats(): DriveStats {
    if (this.#hits) this.#counters.readsElsewhere(this.#hits.counts());
    const [oldest] = this.#operations;
    return this.#counters.stats(this.#operations.size, oldest ? performance.now() - oldest.startedAt : 0);
  }

  /**
   * Waiting reads reject with ABORTED, and readahead is cancelled. Bytes on loan stay valid until they are released.
   */
  close(): void {
    this.#closing.abort();
    this.#prefetches.close();
    for (const { controller } of this.#operations) controller.abort();
  }

  #checkRange(offset: number, lengthBytes: number): void {
    if (offset >= 0 && lengthBytes >= 0 && offset + lengthBytes <= this.sizeBytes) return;
    throw new LazydiskError(
      'INTERNAL',
      `drive ${this.name}: ${lengthBytes} bytes at ${offset} are outside its ${this.sizeBytes} bytes`,
    );
  }

  *#storedIndices(): Generator<number> {
    for (let entry = 0; entry < this.#map.storedChunks; entry++) yield this.#map.indexOf(entry);
  }

  #pieces(offset: number, lengthBytes: number): Piece[] {
    const pieces: Piece[] = [];
    const end = offset + lengthBytes;
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / CHUNK_BYTES);
      const start = index * CHUNK_BYTES;
      const to = Math.min(CHUNK_BYTES, end - start);
      pieces.push({ index, entry: this.#map.entryOf(index), from: at - start, to });
      at = start + to;
    }
    return pieces;
  }

  /** Updates statistics and readahead for a guest's read. */
  #observe(pieces: readonly Piece[]): void {
    let first = -1;
    let last = -1;
    let fromStart = false;
    for (const { entry, from } of pieces) {
      if (entry < 0) continue;
      this.#touch(entry);
      if (first < 0) {
        first = entry;
        fromStart = from === 0;
      }
      last = entry;
    }
    if (first >= 0) this.#readahead.observe(first, last, fromStart);
  }

  #touch(entry: number): void {
    if (!this.#counters.touch(entry)) return;
    if (this.#readahead.touched(entry)) this.#counters.readaheadUsed(this.#map.ref(entry).sealedBytes);
  }

  async #readPieces(pieces: readonly Piece[], operation: Operation): Promise<PinnedBytes> {
    const [piece] = pieces;
    if (piece && pieces.length === 1) {
      if (piece.entry < 0) return new Bytes([zeroes.subarray(piece.from, piece.to)]);
      const getting = this.#get(piece, operation);
      this.#observe(pieces);
      return this.#lend(piece.index, await getting, piece.from, piece.to);
    }
    // A read that pins more than half of memory could never run together with another one.
    const tries = pieces.length * 2 <= this.#reader.memory.slots ? TOGETHER_TRIES : 0;
    for (let attempt = 0; attempt < tries; attempt++) {
      const getting = pieces.map(async (wanted) => {
        if (wanted.entry >= 0) (await this.#get(wanted, operation)).release();
      });
      if (attempt === 0) this.#observe(pieces);
      await Promise.all(getting);
      const bytes = this.#pinTogether(pieces);
      if (bytes) return bytes;
    }
    return this.#copyOneByOne(pieces, operation);
  }

  /** The bytes, pinned, if all of them are in memory now. */
  #pinTogether(pieces: readonly Piece[]): PinnedBytes | undefined {
    const parts: Buffer[] = [];
    const pins: PinnedChunk[] = [];
    for (const { index, entry, from, to } of pieces) {
      if (entry < 0) {
        parts.push(zeroes.subarray(from, to));
        continue;
      }
      const chunk = this.#reader.tryGet(this.#map.ref(entry));
      if (!chunk) {
        for (const pin of pins) pin.release();
        return undefined;
      }
      this.#publish(index, chunk);
      pins.push(chunk);
      parts.push(chunk.bytes.subarray(from, to));
    }
    if (!this.#reader.memory.crowded) return new Bytes(parts, pins);
    const copy = Buffer.concat(parts);
    for (const pin of pins) pin.release();
    return new Bytes([copy]);
  }

  async #copyOneByOne(pieces: readonly Piece[], operation: Operation): Promise<PinnedBytes> {
    const copies: Buffer[] = [];
    for (const piece of pieces) {
      const { entry, from, to } = piece;
      if (entry < 0) {
        copies.push(zeroes.subarray(from, to));
        continue;
      }
      const chunk = await this.#get(piece, operation);
      copies.push(Buffer.from(chunk.bytes.subarray(from, to)));
      chunk.release();
      this.#observe([piece]);
    }
    return new Bytes(copies);
  }

  /** Publishes the chunk, so that its next reads bypass the drive. */
  #publish(index: number, { residentSlot }: PinnedChunk): void {
    if (this.#hits && residentSlot !== undefined) this.#hits.publish(index, residentSlot);
  }

  /** Bytes of a chunk that is pinned for this call; a copy while much is pinned, because the holder may be slow. */
  #lend(index: number, chunk: PinnedChunk, from: number, to: number): PinnedBytes {
    this.#publish(index, chunk);
    const part = chunk.bytes.subarray(from, to);
    if (!this.#reader.memory.crowded) return new Bytes([part], [chunk]);
    const copy = Buffer.from(part);
    chunk.release();
    return new Bytes([copy]);
  }

  /** Rejects with an error that names drive and chunk in addition to the reader's text about the tiers. */
  async #get({ index, entry }: Piece, operation: Operation): Promise<PinnedChunk> {
    const ctx: ReadContext = {
      class: 'demand',
      deadline: operation.deadline,
      signal: operation.controller.signal,
      drive: this.name,
    };
    let read: ChunkRead;
    try {
      read = await this.#reader.get(this.#map.ref(entry), ctx);
    } catch (error) {
      throw withContext(error, `drive ${this.name}, chunk index ${index}`);
    }
    this.#counters.fetched(read.tier, 'demand', read.fetchedBytes);
    operation.tier = fartherTier(operation.tier, read.tier);
    return read.chunk;
  }

  /** Undefined if the chunk is near; otherwise resolves when it is, or to false when the reader is too busy. */
  #fetchAhead(entry: number, readClass: Exclude<ReadClass, 'demand'>): Promise<boolean> | undefined {
    const ref = this.#map.ref(entry);
    if (this.#closing.signal.aborted || this.#reader.isNear(ref)) return undefined;
    const deadline = performance.now() + this.readTimeoutMs;
    const ctx: ReadContext = { class: readClass, deadline, signal: this.#closing.signal, drive: this.name };
    return this.#reader.get(ref, ctx).then(
      ({ chunk, tier, fetchedBytes }) => {
        chunk.release();
        this.#counters.fetched(tier, readClass, fetchedBytes);
        return true;
      },
      // Nobody needs the chunk yet; a caller that does gets the error of its own read.
      (error) => codeOf(error) !== 'OVERLOAD',
    );
  }
}

/** The numbers [first, end). */
function* range(first: number, end: number): Generator<number> {
  for (let n = first; n < end; n++) yield n;
}

/** Parts that stay in place until `release`; without pins they are private copies or zeroes. */
class Bytes implements PinnedBytes {
  readonly parts: readonly Buffer[];
  #pins: readonly PinnedChunk[] | undefined;

  constructor(parts: readonly Buffer[], pins: readonly PinnedChunk[] = []) {
    this.parts = parts;
    this.#pins = pins;
  }

  release(): void {
    if (!this.#pins) throw new LazydiskError('INTERNAL', 'bytes of a drive were released twice');
    for (const pin of this.#pins) pin.release();
    this.#pins = undefined;
  }
}
