/**
 * What an export (NBD, FUSE) sees of a drive: bytes by offset. Data already in memory has a synchronous path, because a
 * promise per 4 KiB read would cost more than the read.
 */

import type { HitMap } from '../chunk/hit-map.ts';

/** Bytes held in place (slab slots, the zero page) until `release()`, which must be called exactly once. */
export interface PinnedBytes {
  /** In order, together exactly the bytes asked for. The holder must not write to them. */
  readonly parts: readonly Uint8Array[];
  release(): void;
}

/** A run of the disk that is either all zero or stored data. */
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
  /** How long a read may take before it rejects with TIMEOUT. */
  readonly readTimeoutMs: number;
  /** Digest of the image; read-only drives with the same digest may share a page cache. */
  readonly imageDigest: string;

  /** The bytes if all of them are in memory now, otherwise undefined. The range must be inside the device. */
  tryRead(offset: number, lengthBytes: number): PinnedBytes | undefined;

  /**
   * The bytes, fetched if necessary. Rejects with a LazydiskError (TIMEOUT, CORRUPT, NOT_FOUND, UNAVAILABLE, ABORTED)
   * whose message names drive, chunk, tier and cause; the export answers EIO. `deadline`, on the clock of
   * performance.now(), is for a read that is part of a longer request; by default it is `readTimeoutMs` from now.
   */
  read(offset: number, lengthBytes: number, signal?: AbortSignal, deadline?: number): Promise<PinnedBytes>;

  /**
   * Runs covering exactly [offset, offset + lengthBytes), merged; at most `extentsMax` of them, then it stops short.
   */
  extents(offset: number, lengthBytes: number, extentsMax: number): BlockExtent[];

  /**
   * Where native threads may read what is in memory or all zero. Created at the first call; from then on, chunks that
   * are read are published in it. A device without it gets every read.
   */
  hitMap?(): HitMap;

  /** Asks for the range to be brought into the local tiers; never fails and may do nothing. */
  prefetch(offset: number, lengthBytes: number): void;
}
