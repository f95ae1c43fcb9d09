/**
 * Bounds how many reads and bytes per second a tier is asked for, for an origin that is billed by the request or shared
 * with others. There are two token buckets, each holding a second's worth. Demand may take all of a bucket; the other
 * classes leave a share to the more urgent ones, and reads that must wait do so in a fair queue. So a waiting guest has
 * the whole rate, whatever is read ahead. A bucket may go below zero by one read; the next read waits until the debt is
 * paid.
 */
import { deadlineError } from '../../async/deadline.ts';
import type { ReadClass, ReadContext } from '../../async/read-context.ts';
import { UrgencyQueue } from '../../async/urgency-queue.ts';
import { LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
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

  /** Milliseconds until the next read that leaves `keptShare` of the bucket may start; 0 means now. */
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
  readonly #queue = new UrgencyQueue<void>(() => this.admit());
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

  /** Rejects with TIMEOUT or ABORTED while it waits, OVERLOAD if too many wait, otherwise as the tier does. */
  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    if (this.#queue.size === 0 && this.#waitMs(ctx.class) === 0) this.#take(sealedBytes);
    else await this.#wait(sealedBytes, ctx);
    return this.inner.get(id, sealedBytes, ctx);
  }

  override close(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#queue.refuseAll(new LazydiskError('ABORTED', `${this.name}: closed`));
    return super.close();
  }

  /** Whether demand reads wait here. */
  get holdsDemand(): boolean {
    return this.#queue.urgency === 'demand';
  }

  stats(): RateStats {
    return { waits: this.#waits };
  }

  /** Admits the reads that may go now; called by a timer. */
  admit(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (let first = this.#queue.urgency; first; first = this.#queue.urgency) {
      const waitMs = this.#waitMs(first);
      if (waitMs > 0) {
        this.#timer = setTimeout(() => this.admit(), waitMs);
        return;
      }
      const next = this.#queue.next()!;
      this.#take(next.sealedBytes);
      next.give();
    }
  }

  async #wait(sealedBytes: number, ctx: ReadContext): Promise<void> {
    const waits = this.#queue.size;
    const waiting = this.#queue.wait(
      ctx,
      (why) => deadlineError(why, `${this.name}: the rate limit left no room`),
      sealedBytes,
    );
    // The timer may be set for a less urgent read, which has longer to wait.
    this.admit();
    if (this.#queue.size > waits) this.#waits++;
    if (this.#queue.size > QUEUE_MAX) {
      const why = `${this.name}: ${QUEUE_MAX} reads wait for the rate limit`;
      this.#queue.last()!.refuse(new LazydiskError('OVERLOAD', why));
    }
    return waiting;
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
}
