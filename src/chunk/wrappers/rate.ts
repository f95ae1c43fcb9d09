/**
 * Bounds how many reads and bytes a second are asked of a tier, for an origin that is billed by the request, or shared
 * with others. Two token buckets of a second's worth; while one is empty reads wait, most urgent first, so what is
 * short is kept for demand. A bucket may go below zero by one read, and the next read waits until it is paid for.
 */
import { LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { deadlineError, onDeadline } from '../deadline.ts';
import type { ChunkTier, ReadContext, SealedLoan } from '../tier.ts';
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

  /** Milliseconds until the next read may start; 0: now. */
  waitMs(nowMs: number): number {
    this.#tokens = Math.min(this.#burst, this.#tokens + (nowMs - this.#atMs) * this.#perMs);
    this.#atMs = nowMs;
    return this.#tokens > 0 ? 0 : Math.max(1, Math.ceil(-this.#tokens / this.#perMs) + 1);
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
    if (this.#queue.length === 0 && this.#waitMs() === 0) this.#take(sealedBytes);
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

  stats(): RateStats {
    return { waits: this.#waits };
  }

  /** Lets in whoever may now; a timer calls it. */
  admit(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (let next = mostUrgent(this.#queue); next; next = mostUrgent(this.#queue)) {
      const waitMs = this.#waitMs();
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
    this.#waits++;
    return new Promise((resolve, reject) => {
      const stop = onDeadline(ctx, (why) => {
        this.#drop(waiter);
        reject(deadlineError(why, `${this.name}: the rate limit left no room`));
      });
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
      if (this.#queue.length > QUEUE_MAX) {
        const last = leastUrgent(this.#queue)!;
        this.#drop(last);
        last.refuse(
          new LazydiskError('OVERLOAD', `${this.name}: ${QUEUE_MAX} reads wait for the rate limit`),
        );
      }
      if (!this.#timer) this.admit();
    });
  }

  #waitMs(): number {
    const nowMs = this.#now();
    return Math.max(this.#requests?.waitMs(nowMs) ?? 0, this.#bytes?.waitMs(nowMs) ?? 0);
  }

  #take(sealedBytes: number): void {
    this.#requests?.take(1);
    this.#bytes?.take(sealedBytes);
  }

  #drop(waiter: Waiter): void {
    this.#queue.splice(this.#queue.indexOf(waiter), 1);
  }
}
