/**
 * Bounds how much is asked of a tier at once, and in which order the rest is asked. Some places are kept for
 * demand, so that a guest that waits never queues behind readahead; a place is held until the loan is released,
 * so the limit also bounds the sealed bytes in memory. When the queue is full the least urgent read is refused.
 */
import { LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { deadlineError, onDeadline } from '../deadline.ts';
import type { ChunkTier, ReadContext, SealedLoan } from '../tier.ts';
import { leastUrgent, mostUrgent } from '../urgency.ts';
import { WrapperTier } from './wrapper.ts';

export interface LimitOptions {
  /** Reads at the tier at once, all classes together. */
  readonly concurrency: number;
  /** Readahead and prefetch together may take no more. Default three quarters of `concurrency`. */
  readonly backgroundMax?: number;
  /** Prefetch may take no more. Default a quarter of `concurrency`. */
  readonly prefetchMax?: number;
  /** Reads that wait for a place; beyond it the least urgent is refused with OVERLOAD. Default 4096. */
  readonly queueMax?: number;
}

export interface LimitStats {
  readonly active: number;
  readonly queued: number;
}

/** One read at the tier; an object of its own, because one context may ask twice. */
interface Place {
  readonly ctx: ReadContext;
}

interface Waiter {
  readonly ctx: ReadContext;
  readonly enter: () => void;
  readonly refuse: (error: LazydiskError) => void;
}

export class LimitTier extends WrapperTier {
  readonly #concurrency: number;
  readonly #backgroundMax: number;
  readonly #prefetchMax: number;
  readonly #queueMax: number;
  readonly #active = new Set<Place>();
  readonly #queue: Waiter[] = [];

  constructor(inner: ChunkTier, options: LimitOptions) {
    const { concurrency } = options;
    super(inner);
    this.#concurrency = concurrency;
    this.#backgroundMax = options.backgroundMax ?? Math.max(1, Math.floor(concurrency * 0.75));
    this.#prefetchMax = options.prefetchMax ?? Math.max(1, Math.floor(concurrency * 0.25));
    this.#queueMax = options.queueMax ?? 4096;
  }

  /** Whether a guest waits for a read that waits here. */
  get holdsDemand(): boolean {
    return mostUrgent(this.#queue)?.ctx.class === 'demand';
  }

  stats(): LimitStats {
    return { active: this.#active.size, queued: this.#queue.length };
  }

  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    const place = await this.#enter(ctx);
    let loan: SealedLoan | undefined;
    try {
      loan = await this.inner.get(id, sealedBytes, ctx);
    } catch (error) {
      this.#leave(place);
      throw error;
    }
    if (!loan) {
      this.#leave(place);
      return undefined;
    }
    const { bytes } = loan;
    const given = loan;
    const release = () => {
      given.release();
      this.#leave(place);
    };
    return { bytes, release };
  }

  #enter(ctx: ReadContext): Promise<Place> {
    if (this.#queue.length === 0 && this.#hasPlace(ctx)) return Promise.resolve(this.#take(ctx));
    return new Promise((resolve, reject) => {
      const stopPromotions = ctx.onPromote?.(() => this.#admit());
      const stopDeadline = onDeadline(ctx, (why) => {
        this.#drop(waiter);
        waiter.refuse(deadlineError(why, `${this.name}: no place among ${this.#concurrency} reads`));
      });
      const stop = () => {
        stopPromotions?.();
        stopDeadline();
      };
      const waiter: Waiter = {
        ctx,
        enter: () => {
          stop();
          resolve(this.#take(ctx));
        },
        refuse: (error) => {
          stop();
          reject(error);
        },
      };
      this.#queue.push(waiter);
      this.#admit();
      if (this.#queue.length > this.#queueMax) this.#refuseOne();
    });
  }

  #take(ctx: ReadContext): Place {
    const place = { ctx };
    this.#active.add(place);
    return place;
  }

  #leave(place: Place): void {
    this.#active.delete(place);
    this.#admit();
  }

  /** Lets in whoever may, most urgent first. What the most urgent may not, the less urgent may not either. */
  #admit(): void {
    for (;;) {
      const next = mostUrgent(this.#queue);
      if (!next || !this.#hasPlace(next.ctx)) return;
      this.#drop(next);
      next.enter();
    }
  }

  #hasPlace({ class: readClass }: ReadContext): boolean {
    if (this.#active.size >= this.#concurrency) return false;
    if (readClass === 'demand') return true;
    // Counted now and not kept: reads at the tier may have been promoted since.
    let background = 0;
    let prefetches = 0;
    for (const { ctx } of this.#active) {
      if (ctx.class !== 'demand') background++;
      if (ctx.class === 'prefetch') prefetches++;
    }
    return background < this.#backgroundMax && (readClass !== 'prefetch' || prefetches < this.#prefetchMax);
  }

  #refuseOne(): void {
    const last = leastUrgent(this.#queue)!;
    this.#drop(last);
    last.refuse(new LazydiskError('OVERLOAD', `${this.name}: ${this.#queue.length} reads wait already`));
  }

  #drop(waiter: Waiter): void {
    this.#queue.splice(this.#queue.indexOf(waiter), 1);
  }
}
