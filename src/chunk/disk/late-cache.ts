/**
 * A disk cache that may open late because its disk hangs: a start waits for it for a limited time. Until it is open it
 * counts as empty, keeps nothing, and reads pass it by; then it joins.
 */
import { onDeadline } from '../../async/deadline.ts';
import { errorText } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import type { SealedLoan } from '../tier.ts';
import type { DiskCache, DiskCacheStats } from './disk-cache.ts';

export interface LateCacheOptions {
  /** The cap of the cache, for the statistics of one that is not open. */
  readonly capBytes: number;
  /** How long a start waits. */
  readonly timeoutMs: number;
  /**
   * Called when the cache is not open in time, and then when it has joined after all or has failed and stays out; no more
   * once it is closed.
   */
  readonly onLate: (event: 'late' | 'joined' | 'failed', cause: string) => void;
}

export interface LateCacheStats extends DiskCacheStats {
  /** Whether it is not open yet, or has failed to open. */
  readonly opening: boolean;
}

export class LateCache {
  readonly #capBytes: number;
  #cache: DiskCache | undefined;
  #isClosed = false;

  private constructor(capBytes: number) {
    this.#capBytes = capBytes;
  }

  /** Resolves when `opening` has resolved, or at the timeout. Rejects as `opening` does before that. */
  static async open(opening: Promise<DiskCache>, options: LateCacheOptions): Promise<LateCache> {
    const { timeoutMs, onLate } = options;
    const late = new LateCache(options.capBytes);
    const joining = opening.then((cache) => late.#join(cache));
    const tell: typeof onLate = (event, cause) => {
      if (!late.#isClosed) onLate(event, cause);
    };
    const inTime = Promise.withResolvers<void>();
    const stop = onDeadline({ deadline: performance.now() + timeoutMs }, () => {
      onLate('late', `not open after ${timeoutMs} ms`);
      joining.then(
        () => tell('joined', ''),
        (error: unknown) => tell('failed', errorText(error)),
      );
      inTime.resolve();
    });
    joining.then(inTime.resolve, inTime.reject).finally(stop);
    await inTime.promise;
    return late;
  }

  /** As DiskCache.holds; false until it is open. */
  holds(id: ChunkId, sealedBytes: number): boolean {
    return this.#cache?.holds(id, sealedBytes) ?? false;
  }

  async get(id: ChunkId, sealedBytes: number): Promise<SealedLoan | undefined> {
    return this.#cache?.get(id, sealedBytes);
  }

  async probe(): Promise<void> {
    await this.#cache?.probe();
  }

  async put(id: ChunkId, sealed: Uint8Array): Promise<boolean> {
    return this.#cache?.put(id, sealed) ?? false;
  }

  discard(id: ChunkId): void {
    this.#cache?.discard(id);
  }

  stats(): LateCacheStats {
    if (this.#cache) return { ...this.#cache.stats(), opening: false };
    return {
      capBytes: this.#capBytes,
      reservedBytes: 0,
      usedBytes: 0,
      entries: 0,
      evictions: 0,
      quarantined: 0,
      droppedPuts: 0,
      writeErrors: 0,
      writable: false,
      recovering: false,
      opening: true,
    };
  }

  /** A cache that is still opening is closed as soon as it is open, or when the process exits. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#cache?.close();
  }

  async #join(cache: DiskCache): Promise<void> {
    if (this.#isClosed) await cache.close();
    else this.#cache = cache;
  }
}
