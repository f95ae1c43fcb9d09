/**
 * Stops asking a tier that fails. When enough of what was asked lately has failed, reads are refused at once and by
 * name of the cause, so that they go to whoever else can answer, or fail before all threads and connections wait for
 * an origin that is gone. After a probe interval one read is let through; its success ends the outage for all. The
 * interval starts short and has an upper bound, so an outage is never remembered longer than that.
 */
import { errorText, LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { Health, type HealthOptions } from '../health.ts';
import type { ChunkTier, ReadContext, SealedLoan } from '../tier.ts';
import { WrapperTier } from './wrapper.ts';

/** The health of something that has no stand-in: it takes more to give up on an origin than on a cache node. */
export const BREAKER_DEFAULTS: HealthOptions = {
  windowMs: 10_000,
  failuresInRow: 8,
  failureShare: 0.5,
  requestsMin: 20,
  probeMinMs: 500,
  probeMaxMs: 5_000,
};

/** A read with less time than this left says little when it runs out. */
const FAIR_MS = 250;

/** The tier was not asked: UNAVAILABLE at once, and no use to try again before somebody has probed it. */
export class BreakerOpenError extends LazydiskError {
  constructor(message: string) {
    super('UNAVAILABLE', message);
  }
}

export interface BreakerStats {
  readonly state: 'closed' | 'open' | 'half-open';
  /** Times that it opened. */
  readonly opened: number;
  /** Reads that were not let through. */
  readonly refused: number;
}

export class BreakerTier extends WrapperTier {
  readonly #health: Health;
  #openedAt = '';
  #cause = '';
  #probing = false;
  #refused = 0;

  /** `now` is a clock in milliseconds, `random` gives 0 to 1; both for tests. */
  constructor(
    inner: ChunkTier,
    options: Partial<HealthOptions> = {},
    now?: () => number,
    random?: () => number,
  ) {
    super(inner);
    this.#health = new Health({ ...BREAKER_DEFAULTS, ...options }, now, random);
  }

  /** Rejects with BreakerOpenError while open, else as the tier does. */
  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    const isProbe = !this.#health.up;
    if (isProbe) {
      if (this.#probing || !this.#health.takeProbe()) throw this.#refusal();
      this.#probing = true;
    }
    const hadMs = ctx.deadline - performance.now();
    try {
      const loan = await this.inner.get(id, sealedBytes, ctx);
      this.#health.success();
      return loan;
    } catch (error) {
      this.#failed(error, hadMs);
      throw error;
    } finally {
      if (isProbe) this.#probing = false;
    }
  }

  stats(): BreakerStats {
    const state = this.#health.up ? 'closed' : this.#probing ? 'half-open' : 'open';
    return { state, opened: this.#health.ejections, refused: this.#refused };
  }

  /** `hadMs`: the time that the read had left when it was sent. */
  #failed(error: unknown, hadMs: number): void {
    const code = error instanceof LazydiskError ? error.code : 'UNAVAILABLE';
    // An answer, whatever it answers.
    if (code === 'NOT_FOUND') {
      this.#health.success();
      return;
    }
    // These say that somebody lost interest, or that we ask too much; nothing of the tier.
    if (code === 'ABORTED' || code === 'OVERLOAD') return;
    // So does a read that had waited elsewhere until nobody could have answered it in time.
    if (code === 'TIMEOUT' && hadMs < FAIR_MS) return;
    const wasUp = this.#health.up;
    this.#health.failure();
    this.#cause = errorText(error);
    if (wasUp && !this.#health.up) this.#openedAt = new Date().toISOString();
  }

  #refusal(): BreakerOpenError {
    this.#refused++;
    return new BreakerOpenError(
      `${this.name}: not asked, it has failed since ${this.#openedAt} (${this.#cause})`,
    );
  }
}
