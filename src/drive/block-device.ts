/**
 * What an export (NBD, FUSE) sees of a drive: bytes by offset, with a synchronous path for what is already in
 * memory, because a promise per 4 KiB read would cost more than the read.
 */

import type { HitMap } from '../chunk/hit-map.ts';

/** Bytes held in place (slab slots, the zero page) until `release()`, which must be called exactly once. */
export interface PinnedBytes {
  /** In order, together exactly the bytes asked for. Never written to by the holder. */
  readonly parts: readonly Uint8Array[];
  release(): void;
}

/** A run of the disk that is all zero or holds stored data. */
export interface BlockExtent {
  readonly lengthBytes: number;
  readonly zero: boolean;
}

export interface BlockDevice {
  /** The drive's name: a file name and an NBD export name, `[A-Za-z0-9][A-Za-z0-9._-]*`, at most 128 bytes. */
  readonly name: string;
  readonly sizeBytes: number;
  /** Whether its bytes never change. Exports derive flags, modes and refusals from it. */
  readonly readOnly: boolean;
  /** What a read may take before it rejects with TIMEOUT. */
  readonly readTimeoutMs: number;
  /** Digest of the image; read-only drives of equal digest may share a page cache. */
  readonly imageDigest: string;

  /** The bytes if every one of them is in memory now, else undefined. Range must lie inside the device. */
  tryRead(offset: number, lengthBytes: number): PinnedBytes | undefined;

  /**
   * The bytes, fetched if need be. Rejects with a LazydiskError (TIMEOUT, CORRUPT, NOT_FOUND, UNAVAILABLE,
   * ABORTED) whose message names drive, chunk, tier and cause; the export answers EIO. `deadline`, on the clock of
   * performance.now(), is for what is part of a longer request; by default it is `readTimeoutMs` from now.
   */
  read(offset: number, lengthBytes: number, signal?: AbortSignal, deadline?: number): Promise<PinnedBytes>;

  /** Runs covering exactly [offset, offset + lengthBytes), merged; at most `extentsMax` (then it stops short). */
  extents(offset: number, lengthBytes: number, extentsMax: number): BlockExtent[];

  /**
   * Where native threads may read what is in memory or all zero, made at the first call; from then on whatever is read is published
   * in it. A device without it is asked for everything.
   */
  hitMap?(): HitMap;

  /** Ask for the range to be brought into the local tiers; never fails, may do nothing. */
  prefetch(offset: number, lengthBytes: number): void;
}
