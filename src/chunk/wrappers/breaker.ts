/**
 * Stops asking a tier that fails. When the objects that a drive asked for lately have failed one after the other, its
 * reads are refused at once, with the cause, before all places wait for an unreachable origin. After a probe interval
 * one read is let through; its success ends the outage. The interval starts short and has an upper bound, so an outage
 * is never remembered longer than that.
 *
 * A failure affects only what failed. An object that cannot be read counts once, however often it is asked for, and is
 * no probe. Each drive has its own record, so that a drive whose objects are all bad is refused alone. In an outage
 * every drive finds out for itself, within its share of the places.
 */
import { LRUCache } from 'lru-cache';
import type { ReadContext } from '../../async/read-context.ts';
import { codeOf, errorText, LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { Health, type HealthOptions } from '../health.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
import { WrapperTier } from './wrapper.ts';

/** Giving up on an origin takes more than on a cache node, because nothing can replace it. */
export const BREAKER_DEFAULTS: HealthOptions = {
  windowMs: 10_000,
  failuresInRow: 8,
  failureShare: 0.5,
  requestsMin: 20,
  probeMinMs: 500,
  probeMaxMs: 5_000,
};

/** A timeout of a read with less time than this left says little about the tier. */
const FAIR_MS = 250;
/** The number of drives with failures that are remembered, and of bad objects for each. */
const RECORDS_MAX = 1024;
const BAD_MAX = 64;

export interface BreakerStats {
  /** `open` while a drive is refused and no read of another has succeeded since that began. */
  readonly state: 'closed' | 'open' | 'half-open';
  /** Times that it opened, for all drives. */
  readonly opened: number;
  /** Reads that were not let through. */
  readonly refused: number;
}

/** The record of a drive with failures. */
interface DriveRecord {
  readonly health: Health;
  /** Objects that failed when last asked for, and when that was. */
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
  /** Drives that are refused while no other drive's read succeeds. */
  readonly #cutOff = new Set<DriveRecord>();
  #succeededAt = Number.NEGATIVE_INFINITY;
  #opened = 0;
  #refused = 0;

  /** `now` is a clock in milliseconds, `random` returns 0 to 1; both for tests. */
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

  /**
   * While open for the drive, rejects with UNAVAILABLE, which is not retryable until a probe; otherwise as the tier
   * does.
   */
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
    // The tier answers, so the refused drives may probe whether it answers them too.
    for (const { health } of this.#cutOff) health.probeNow();
    this.#cutOff.clear();
    const record = this.#records.get(drive);
    record?.health.success();
    record?.bad.delete(id);
  }

  /** `hadMs`: the time that the read had left when it was sent. */
  #failed(drive: string, id: ChunkId, error: unknown, hadMs: number): void {
    const code = codeOf(error, 'UNAVAILABLE');
    // NOT_FOUND is an answer, so the tier works.
    if (code === 'NOT_FOUND') {
      this.#answered(drive, id);
      return;
    }
    // The caller lost interest, or we ask too much: neither says anything about the tier.
    if (code === 'ABORTED' || code === 'OVERLOAD') return;
    // Nor does a read that had waited elsewhere until it was too late for any answer.
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

  /** Expires, because the object may be well again and the only one that is asked for. */
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
