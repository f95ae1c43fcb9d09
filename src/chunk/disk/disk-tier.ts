/**
 * The disk cache as a tier that may hang. Its reads have a bounded share of the thread pool; an abandoned read keeps
 * its place until the disk returns. A disk that does not answer, or answers only with errors, is ejected as a cache
 * node is: reads pass it by at once until a probe in the background succeeds. Reads of chunks that are not in the cache
 * never wait for the disk.
 */
import { withDeadline } from '../../async/deadline.ts';
import { type ReadContext, withNearerDeadline } from '../../async/read-context.ts';
import { codeOf, errorText, LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { Health } from '../health.ts';
import { type Place, Places } from '../places.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
import type { DiskCache } from './disk-cache.ts';

/** Threads of the pool that reads of the cache may occupy. */
export const CACHE_READ_THREADS = 8;
/** The cache's other calls in the pool: two writes, one eviction read, and four reads of a scan after a crash. */
export const CACHE_OTHER_THREADS = 7;

export interface DiskTierOptions {
  /** A read that takes longer counts against the disk, and the next tier is asked. */
  readonly timeoutMs: number;
  /** Called when the disk is ejected, and when it is back. */
  readonly onChange?: (up: boolean, cause: string) => void;
}

export interface DiskTierStats {
  /** Whether reads use it. */
  readonly up: boolean;
  /** Times that it was ejected. */
  readonly ejections: number;
  /** Reads in the thread pool, including abandoned ones. */
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

  /** Rejects with UNAVAILABLE while the disk is ejected or if it fails, TIMEOUT, ABORTED. */
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

  /** Waits for `reading` until the deadline; leaves `place` when the read itself has finished. */
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
      // A timeout of the caller's own, shorter deadline says nothing about the disk.
      if (code !== 'ABORTED' && (code !== 'TIMEOUT' || performance.now() >= timeoutAt)) this.#failed(error);
      throw error;
    }
  }

  #checkUp(): void {
    if (this.#health.up) return;
    if (this.#health.takeProbe()) this.#probe();
    throw this.#leftOut();
  }

  /** While every place is held by a hung read, those reads serve as probes. */
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
    return new LazydiskError('UNAVAILABLE', `disk cache: ejected (${this.#cause})`);
  }
}
