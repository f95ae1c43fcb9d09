/**
 * Stops asking a tier that fails. When the objects that a drive asked for lately have failed one after the other, its
 * reads are refused at once and by name of the cause, before all places wait for an origin that is gone. After a probe
 * interval one read is let through; its success ends the outage. The interval starts short and has an upper bound, so an
 * outage is never remembered longer than that.
 *
 * A failure reaches no further than what failed: an object that cannot be read counts once, however often it is asked
 * for, and is no probe; and each drive has a record of its own, so that one whose objects are all bad is refused alone.
 * In an outage every drive finds that out for itself, within its share of the places.
 */
import { LRUCache } from 'lru-cache';
import type { ReadContext } from '../../async/read-context.ts';
import { codeOf, errorText, LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { Health, type HealthOptions } from '../health.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
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
/** Drives with failures that are remembered, and bad objects of each. */
const RECORDS_MAX = 1024;
const BAD_MAX = 64;

export interface BreakerStats {
  /** `open` while some drive is refused and no read of another has succeeded since that began. */
  readonly state: 'closed' | 'open' | 'half-open';
  /** Times that it opened, for any drive. */
  readonly opened: number;
  /** Reads that were not let through. */
  readonly refused: number;
}

/** What is known of a drive of which something has failed. */
interface DriveRecord {
  readonly health: Health;
  /** Objects that failed when they were last asked for, and when that was. */
  readonly bad: LRUCache<ChunkId, number>;
  openedAt: string;
  cause: string;
  probing: boolean;
}

export class BreakerTier extends WrapperTier {
  readonly #options: HealthOptions;
  readonly #now: () => number;
  readonly #random: () => number;
  readonly #records = new LRUCache<string, DriveRecord>({
    max: RECORDS_MAX,
    dispose: (record) => this.#cutOff.delete(record),
  });
  /** Drives that are refused while no read of another succeeds. */
  readonly #cutOff = new Set<DriveRecord>();
  #succeededAt = Number.NEGATIVE_INFINITY;
  #opened = 0;
  #refused = 0;

  /** `now` is a clock in milliseconds, `random` gives 0 to 1; both for tests. */
  constructor(
    inner: ChunkTier,
    options: Partial<HealthOptions> = {},
    now: () => number = () => performance.now(),
    random: () => number = Math.random,
  ) {
    super(inner);
    this.#options = { ...BREAKER_DEFAULTS, ...options };
    this.#now = now;
    this.#random = random;
  }

  /** While open for the drive, rejects with UNAVAILABLE, not retryable before somebody has probed it; else as the tier does. */
  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    const drive = ctx.drive ?? '';
    const known = this.#records.get(drive);
    const isProbe = known !== undefined && !known.health.up;
    if (isProbe) {
      if (known.probing || this.#isBad(known, id) || !known.health.takeProbe()) throw this.#refusal(known);
      known.probing = true;
    }
    const hadMs = ctx.deadline - performance.now();
    try {
      const loan = await this.inner.get(id, sealedBytes, ctx);
      this.#answered(drive, id);
      return loan;
    } catch (error) {
      this.#failed(drive, id, error, hadMs);
      throw error;
    } finally {
      if (isProbe) known.probing = false;
    }
  }

  stats(): BreakerStats {
    const cutOff = [...this.#cutOff];
    const isProbed = cutOff.some(({ probing }) => probing);
    const state = cutOff.length === 0 ? 'closed' : isProbed ? 'half-open' : 'open';
    return { state, opened: this.#opened, refused: this.#refused };
  }

  #answered(drive: string, id: ChunkId): void {
    this.#succeededAt = this.#now();
    if (this.#records.size === 0) return;
    // The tier answers: whoever is refused may find out whether it answers them too.
    for (const { health } of this.#cutOff) health.probeNow();
    this.#cutOff.clear();
    const record = this.#records.get(drive);
    record?.health.success();
    record?.bad.delete(id);
  }

  /** `hadMs`: the time that the read had left when it was sent. */
  #failed(drive: string, id: ChunkId, error: unknown, hadMs: number): void {
    const code = codeOf(error, 'UNAVAILABLE');
    // An answer, whatever it answers.
    if (code === 'NOT_FOUND') {
      this.#answered(drive, id);
      return;
    }
    // These say that somebody lost interest, or that we ask too much; nothing of the tier.
    if (code === 'ABORTED' || code === 'OVERLOAD') return;
    // So does a read that had waited elsewhere until nobody could have answered it in time.
    if (code === 'TIMEOUT' && hadMs < FAIR_MS) return;
    const record = this.#recordOf(drive);
    const isKnown = this.#isBad(record, id);
    record.bad.set(id, this.#now());
    if (isKnown) return;
    const wasUp = record.health.up;
    record.health.failure();
    record.cause = errorText(error);
    if (record.health.up) return;
    if (wasUp) {
      record.openedAt = new Date().toISOString();
      this.#opened++;
    }
    if (wasUp || this.#now() - this.#succeededAt > this.#options.windowMs) this.#cutOff.add(record);
  }

  #recordOf(drive: string): DriveRecord {
    let record = this.#records.get(drive);
    if (!record) {
      const health = new Health(this.#options, this.#now, this.#random);
      record = { health, bad: new LRUCache({ max: BAD_MAX }), openedAt: '', cause: '', probing: false };
      this.#records.set(drive, record);
    }
    return record;
  }

  /** Not for ever: it may be well again, and the only one that anybody asks for. */
  #isBad({ bad }: DriveRecord, id: ChunkId): boolean {
    const failedAt = bad.peek(id);
    return failedAt !== undefined && this.#now() - failedAt < this.#options.probeMaxMs;
  }

  #refusal({ openedAt, cause }: DriveRecord): LazydiskError {
    this.#refused++;
    const text = `${this.name}: not asked, it has failed since ${openedAt} (${cause})`;
    return new LazydiskError('UNAVAILABLE', text, { retryable: false });
  }
}
