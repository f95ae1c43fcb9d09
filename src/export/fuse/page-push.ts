/**
 * Brings whole chunks into the kernel's page cache. A read that reaches us missed the page cache; the chunk it
 * touched is decoded by then, so all of it is pushed with FUSE_NOTIFY_STORE and the guest's next reads nearby
 * never leave the kernel. The rule against storms needs no bitmap of what was pushed: a chunk is pushed whenever
 * the kernel asks for a part of it, except within a second or two of its last push. So pages that the kernel
 * dropped come back, and a crowd of reads that were under way during the push causes no second one.
 */
import type { HitMap } from '../../chunk/hit-map.ts';
import type { BlockDevice } from '../../drive/block-device.ts';
import { CHUNK_BYTES } from '../../format/chunk-id.ts';
import type { Inode } from './inodes.ts';

/** A chunk is not pushed again for at least this long, and at most twice as long. */
const QUIET_MS = 1000;
/** Entries that make a window end early; at the rate of a decoder this is never reached. */
const RECENT_MAX = 65536;
/** More chunks than any disk has: 1 TiB holds 2^21. */
const CHUNKS_MAX = 2 ** 22;

/**
 * Queues `lengthBytes` at `offset` of an inode: zeroes without `hits`, else the chunk that is there, out of its slot. False
 * if the queue is full.
 */
export type Push = (nodeId: number, offset: number, lengthBytes: number, hits: HitMap | undefined) => boolean;

export class PagePush {
  /** Chunks handed to the kernel's queue, and those for which it had no room. */
  queued = 0;
  dropped = 0;
  readonly #enqueue: Push;
  readonly #now: () => number;
  // Pushed in this window of QUIET_MS, and in the one before it.
  #recent = new Set<number>();
  #older = new Set<number>();
  #windowStart = 0;

  constructor(enqueue: Push, now: () => number = () => performance.now()) {
    this.#enqueue = enqueue;
    this.#now = now;
  }

  /** The bytes [offset, offset + lengthBytes) of `inode` were just read from `device`. */
  touched(inode: Inode, device: BlockDevice, offset: number, lengthBytes: number): void {
    const end = offset + lengthBytes;
    for (let chunk = Math.floor(offset / CHUNK_BYTES); chunk * CHUNK_BYTES < end; chunk++) {
      const start = chunk * CHUNK_BYTES;
      const stop = Math.min(start + CHUNK_BYTES, inode.sizeBytes);
      // Read as a whole: the kernel has it now.
      if (offset <= start && stop <= end) continue;
      this.#push(inode, device, chunk, start, stop - start);
    }
  }

  #push(inode: Inode, device: BlockDevice, chunk: number, start: number, lengthBytes: number): void {
    this.#turnWindow();
    const key = inode.nodeId * CHUNKS_MAX + chunk;
    if (this.#recent.has(key) || this.#older.has(key)) return;
    const [run] = device.extents(start, lengthBytes, 1);
    const isZero = run?.zero === true && run.lengthBytes >= lengthBytes;
    const hits = isZero ? undefined : device.hitMap?.();
    if (!isZero && !hits) return;
    // Published in its hit map, and in place until the thread has it pinned.
    const pinned = device.tryRead(start, lengthBytes);
    if (!pinned) return;
    if (this.#enqueue(inode.nodeId, start, lengthBytes, hits)) {
      this.queued++;
      this.#recent.add(key);
    } else {
      this.dropped++;
    }
    pinned.release();
  }

  #turnWindow(): void {
    const now = this.#now();
    const ageMs = now - this.#windowStart;
    if (ageMs < QUIET_MS && this.#recent.size < RECENT_MAX) return;
    this.#older = ageMs < 2 * QUIET_MS ? this.#recent : new Set();
    this.#recent = new Set();
    this.#windowStart = now;
  }
}
