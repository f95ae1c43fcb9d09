/**
 * The disk cache as a tier that may hang. Its reads have a bounded share of the thread pool: one that is given up keeps
 * its place until the disk lets go of it. A disk that does not answer, or only with errors, is left out as a cache node
 * is: reads pass it by at once until a probe, off their path, comes back. What is not in the cache never waits for it.
 */
import { withDeadline } from '../../async/deadline.ts';
import { type ReadContext, withNearerDeadline } from '../../async/read-context.ts';
import { codeOf, errorText, LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { Health } from '../health.ts';
import { type Place, Places } from '../places.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
import type { DiskCache } from './disk-cache.ts';

/** Threads of the pool that reads of the cache may take. */
export const CACHE_READ_THREADS = 8;
/** The cache's other calls in the pool: two writes, one read of what an eviction keeps, four of a scan after a crash. */
export const CACHE_OTHER_THREADS = 7;

export interface DiskTierOptions {
  /** A read that has not come back by then counts against the disk, and the next tier is asked. */
  readonly timeoutMs: number;
  /** The disk is left out, or is back. */
  readonly onChange?: (up: boolean, cause: string) => void;
}

export interface DiskTierStats {
  /** Whether reads ask it. */
  readonly up: boolean;
  /** Times that it was left out. */
  readonly ejections: number;
  /** Reads in the thread pool, those that were given up included. */
  readonly reads: number;
}

type Cache = Pick<DiskCache, 'holds' | 'get' | 'probe' | 'put' | 'discard' | 'close'>;

export class DiskTier implements ChunkTier {
  readonly name = 'disk';
  readonly #cache: Cache;
  readonly #options: DiskTierOptions;
  readonly #health = new Health();
  readonly #threads = new Places({ name: 'disk cache', places: CACHE_READ_THREADS });
  #cause = '';

  constructor(cache: Cache, options: DiskTierOptions) {
    this.#cache = cache;
    this.#options = options;
  }

  /** Rejects with UNAVAILABLE while the disk is left out or if it fails, TIMEOUT, ABORTED. */
  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    if (!this.#cache.holds(id, sealedBytes)) return undefined;
    this.#checkUp();
    const place = this.#threads.tryEnter(ctx) ?? (await this.#threads.enter(ctx));
    if (!this.#health.up) {
      this.#threads.leave(place);
      throw this.#leftOut();
    }
    return this.#read(place, this.#cache.get(id, sealedBytes), ctx);
  }

  put(id: ChunkId, sealed: Uint8Array): Promise<boolean> {
    return this.#cache.put(id, sealed);
  }

  discard(id: ChunkId): void {
    this.#cache.discard(id);
  }

  stats(): DiskTierStats {
    return { up: this.#health.up, ejections: this.#health.ejections, reads: this.#threads.taken };
  }

  close(): Promise<void> {
    return this.#cache.close();
  }

  /** Waits for `reading` until the deadline; `place` is left when it has ended. */
  async #read<T extends SealedLoan | undefined | true>(
    place: Place,
    reading: Promise<T>,
    ctx: ReadContext,
  ): Promise<T> {
    const leave = () => this.#threads.leave(place);
    reading.then(leave, leave);
    const timeoutAt = performance.now() + this.#options.timeoutMs;
    try {
      const limited = withNearerDeadline(ctx, timeoutAt);
      const late = (value: T) => {
        if (typeof value === 'object') value.release();
      };
      const value = await withDeadline(reading, limited, 'disk cache: no answer', late);
      this.#succeeded();
      return value;
    } catch (error) {
      const code = codeOf(error, 'UNAVAILABLE');
      // One whose own time was over sooner says nothing of the disk.
      if (code !== 'ABORTED' && (code !== 'TIMEOUT' || performance.now() >= timeoutAt)) this.#failed(error);
      throw error;
    }
  }

  #checkUp(): void {
    if (this.#health.up) return;
    if (this.#health.takeProbe()) this.#probe();
    throw this.#leftOut();
  }

  /** While every place is held by a read that hangs, they are probe enough. */
  #probe(): void {
    const ctx: ReadContext = { class: 'demand', deadline: Number.POSITIVE_INFINITY };
    const place = this.#threads.tryEnter(ctx);
    if (!place) return;
    const probing = this.#cache.probe().then(() => true as const);
    this.#read(place, probing, ctx).catch(() => {});
  }

  #succeeded(): void {
    const wasUp = this.#health.up;
    this.#health.success();
    if (!wasUp) this.#options.onChange?.(true, this.#cause);
  }

  #failed(error: unknown): void {
    const wasUp = this.#health.up;
    this.#health.failure();
    this.#cause = errorText(error);
    if (!wasUp || this.#health.up) return;
    this.#threads.refuseAll(this.#leftOut());
    this.#options.onChange?.(false, this.#cause);
  }

  #leftOut(): LazydiskError {
    return new LazydiskError('UNAVAILABLE', `disk cache: left out (${this.#cause})`);
  }
}
