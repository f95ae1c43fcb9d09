/**
 * Bounds how many reads and bytes a second are asked of a tier, for an origin that is billed by the request, or shared
 * with others. Two token buckets of a second's worth, from which demand may take all and the other classes only what
 * is above a share kept for those before them; who must wait does so most urgent first. So a guest that waits has
 * the whole rate, whatever was read ahead. A bucket may go below zero by one read, and the next read waits until it
 * is paid for.
 */
import { LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { deadlineError, onDeadline } from '../deadline.ts';
import type { ChunkTier, ReadClass, ReadContext, SealedLoan } from '../tier.ts';
import { leastUrgent, mostUrgent } from '../urgency.ts';
import { WrapperTier } from './wrapper.ts';

export interface RateOptions {
  readonly requestsPerSecond?: number;
  /** Sealed bytes. */
  readonly bytesPerSecond?: number;
}

export interface RateStats {
  /** Reads that had to wait. */
  readonly waits: number;
}

const QUEUE_MAX = 4096;

/** The share of a full bucket that a class leaves to more urgent ones. */
const KEPT_SHARE: Record<ReadClass, number> = { demand: 0, readahead: 0.25, prefetch: 0.5 };

interface Waiter {
  readonly ctx: ReadContext;
  readonly sealedBytes: number;
  readonly enter: () => void;
  readonly refuse: (error: LazydiskError) => void;
}

class Bucket {
  readonly #perMs: number;
  readonly #burst: number;
  #tokens: number;
  #atMs: number;

  constructor(perSecond: number, nowMs: number) {
    this.#perMs = perSecond / 1000;
    this.#burst = Math.max(1, perSecond);
    this.#tokens = this.#burst;
    this.#atMs = nowMs;
  }

  /** Milliseconds until the next read that leaves `keptShare` of the bucket may start; 0: now. */
  waitMs(nowMs: number, keptShare: number): number {
    this.#tokens = Math.min(this.#burst, this.#tokens + (nowMs - this.#atMs) * this.#perMs);
    this.#atMs = nowMs;
    const missing = this.#burst * keptShare - this.#tokens;
    return missing < 0 ? 0 : Math.ceil(missing / this.#perMs) + 1;
  }

  take(count: number): void {
    this.#tokens -= count;
  }
}

export class RateTier extends WrapperTier {
  readonly #now: () => number;
  readonly #requests: Bucket | undefined;
  readonly #bytes: Bucket | undefined;
  readonly #queue: Waiter[] = [];
  #timer: NodeJS.Timeout | undefined;
  #waits = 0;

  /** `now` is a clock in milliseconds, for tests. */
  constructor(inner: ChunkTier, options: RateOptions, now: () => number = () => performance.now()) {
    super(inner);
    this.#now = now;
    const { requestsPerSecond, bytesPerSecond } = options;
    if (requestsPerSecond !== undefined) this.#requests = new Bucket(requestsPerSecond, now());
    if (bytesPerSecond !== undefined) this.#bytes = new Bucket(bytesPerSecond, now());
  }

  /** Rejects with TIMEOUT or ABORTED while it waits, OVERLOAD if too many do, else as the tier does. */
  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    if (this.#queue.length === 0 && this.#waitMs(ctx.class) === 0) this.#take(sealedBytes);
    else await this.#wait(sealedBytes, ctx);
    return this.inner.get(id, sealedBytes, ctx);
  }

  override close(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (const waiter of this.#queue.splice(0))
      waiter.refuse(new LazydiskError('ABORTED', `${this.name}: closed`));
    return super.close();
  }

  /** Whether a guest waits for a read that waits here. */
  get holdsDemand(): boolean {
    return mostUrgent(this.#queue)?.ctx.class === 'demand';
  }

  stats(): RateStats {
    return { waits: this.#waits };
  }

  /** Lets in whoever may now; a timer calls it. */
  admit(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (let next = mostUrgent(this.#queue); next; next = mostUrgent(this.#queue)) {
      const waitMs = this.#waitMs(next.ctx.class);
      if (waitMs > 0) {
        this.#timer = setTimeout(() => this.admit(), waitMs);
        return;
      }
      this.#drop(next);
      this.#take(next.sealedBytes);
      next.enter();
    }
  }

  #wait(sealedBytes: number, ctx: ReadContext): Promise<void> {
    return new Promise((resolve, reject) => {
      const stopPromotions = ctx.onPromote?.(() => this.admit());
      const stopDeadline = onDeadline(ctx, (why) => {
        this.#drop(waiter);
        waiter.refuse(deadlineError(why, `${this.name}: the rate limit left no room`));
      });
      const stop = () => {
        stopPromotions?.();
        stopDeadline();
      };
      const waiter: Waiter = {
        ctx,
        sealedBytes,
        enter: () => {
          stop();
          resolve();
        },
        refuse: (error) => {
          stop();
          reject(error);
        },
      };
      this.#queue.push(waiter);
      // The timer may be set for a less urgent read, which has longer to wait.
      this.admit();
      if (this.#queue.includes(waiter)) this.#waits++;
      if (this.#queue.length > QUEUE_MAX) {
        const last = leastUrgent(this.#queue)!;
        this.#drop(last);
        last.refuse(
          new LazydiskError('OVERLOAD', `${this.name}: ${QUEUE_MAX} reads wait for the rate limit`),
        );
      }
    });
  }

  #waitMs(readClass: ReadClass): number {
    const nowMs = this.#now();
    const keptShare = KEPT_SHARE[readClass];
    return Math.max(
      this.#requests?.waitMs(nowMs, keptShare) ?? 0,
      this.#bytes?.waitMs(nowMs, keptShare) ?? 0,
    );
  }

  #take(sealedBytes: number): void {
    this.#requests?.take(1);
    this.#bytes?.take(sealedBytes);
  }

  #drop(waiter: Waiter): void {
    this.#queue.splice(this.#queue.indexOf(waiter), 1);
  }
}
