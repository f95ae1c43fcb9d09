/**
 * Brings whole chunks into the kernel's page cache. A read that reaches us missed the page cache, and the chunk that it
 * touched is decoded by now, so the whole chunk is pushed with FUSE_NOTIFY_STORE and the guest's next reads nearby
 * never leave the kernel. To prevent storms, a chunk is pushed whenever the kernel asks for a part of it, except within
 * a second or two of its last push; this needs no bitmap. So pages that the kernel dropped come back, and many reads in
 * flight during a push cause no second one.
 */
import type { HitMap } from '../../chunk/hit-map.ts';
import type { BlockDevice } from '../../drive/block-device.ts';
import { CHUNK_BYTES } from '../../format/chunk-id.ts';
import type { Inode } from './inodes.ts';

/** A chunk is not pushed again for at least this long, and at most twice as long. */
const QUIET_MS = 1000;
/** The number of entries that ends a window early; at the speed of a decoder it is never reached. */
const RECENT_MAX = 65536;
/** More chunks than any disk has: 1 TiB holds 2^21. */
const CHUNKS_MAX = 2 ** 22;

/**
 * Queues `lengthBytes` at `offset` of an inode: zeroes without `hits`, otherwise the chunk there, from its slot.
 * Returns false if the queue is full.
 */
export type Push = (nodeId: number, offset: number, lengthBytes: number, hits: HitMap | undefined) => boolean;

export class PagePush {
  /** Chunks put into the kernel's queue, and those for which it had no room. */
  queued = 0;
  dropped = 0;
  readonly #enqueue: Push;
  readonly #now: () => number;
  // Chunks pushed in this window of QUIET_MS, and in the previous one.
  #recent = new Set<number>();
  #older = new Set<number>();
  #windowStart = 0;

  constructor(enqueue: Push, now: () => number = () => performance.now()) {
    this.#enqueue = enqueue;
    this.#now = now;
  }

  /** Called when the bytes [offset, offset + lengthBytes) of `inode` were read from `device`. */
  touched(inode: Inode, device: BlockDevice, offset: number, lengthBytes: number): void {
    const end = offset + lengthBytes;
    for (let chunk = Math.floor(offset / CHUNK_BYTES); chunk * CHUNK_BYTES < end; chunk++) {
      const start = chunk * CHUNK_BYTES;
      const stop = Math.min(start + CHUNK_BYTES, inode.sizeBytes);
      // The whole chunk was read, so the kernel has it now.
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
    // This read publishes the chunk in its hit map, and holds it until the thread has pinned it.
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
