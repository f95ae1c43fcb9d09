/**
 * A second request for a read that is slower than most. It is sent after the 95th percentile of recent latencies; the
 * first good answer of the two wins, and the other request is cancelled. A budget keeps this from doubling the load on
 * a tier that is slow because it is loaded: at most one hedge in twenty requests.
 * Source of the idea: Dean and Barroso, "The Tail at Scale", CACM 2013.
 */
import { type ReadContext, withSignal } from '../../async/read-context.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { Histogram } from '../histogram.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
import { WrapperTier } from './wrapper.ts';

export interface HedgeOptions {
  /** Hedges per request, at most; 0 disables them. Default 0.05. */
  readonly shareMax?: number;
  /** A read is never hedged earlier than this. Default 20. */
  readonly floorMs?: number;
}

export interface HedgeStats {
  /** Hedges that returned the chunk first, that did not, and that the budget did not allow. */
  readonly won: number;
  readonly lost: number;
  readonly skipped: number;
}

/** Latencies are measured in windows of this many reads; the last complete window decides. */
const WINDOW_READS = 200;
/** Hedging starts once this many reads have been measured. */
const READS_MIN = 20;
/** Hedges that may be sent in a row after a time without any. */
const BURST = 10;

type Outcome = { readonly loan: SealedLoan | undefined } | { readonly error: unknown };

export class HedgeTier extends WrapperTier {
  readonly #shareMax: number;
  readonly #floorMs: number;
  #window = new Histogram();
  #windowReads = 0;
  #delayMs: number | undefined;
  #tokens = 0;
  #won = 0;
  #lost = 0;
  #skipped = 0;

  constructor(inner: ChunkTier, { shareMax = 0.05, floorMs = 20 }: HedgeOptions = {}) {
    super(inner);
    this.#shareMax = shareMax;
    this.#floorMs = floorMs;
  }

  /** Rejects with the error of the request that answered last. */
  get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    this.#tokens = Math.min(BURST, this.#tokens + this.#shareMax);
    return new Promise((resolve, reject) => {
      const startedAt = performance.now();
      const controllers: AbortController[] = [];
      let pending = 0;
      let settled = false;
      let timer: NodeJS.Timeout | undefined;
      const cancel = () => {
        clearTimeout(timer);
        for (const controller of controllers) controller.abort();
      };
      ctx.signal?.addEventListener('abort', cancel, { once: true });

      const settle = (outcome: Outcome, which: number) => {
        settled = true;
        clearTimeout(timer);
        ctx.signal?.removeEventListener('abort', cancel);
        for (const [n, controller] of controllers.entries()) if (n !== which) controller.abort();
        if (controllers.length > 1) {
          if (which === 1 && 'loan' in outcome && outcome.loan) this.#won++;
          else this.#lost++;
        }
        if ('error' in outcome) {
          reject(outcome.error);
          return;
        }
        if (outcome.loan) this.#record(performance.now() - startedAt);
        resolve(outcome.loan);
      };

      const ask = () => {
        const which = controllers.length;
        const controller = new AbortController();
        controllers.push(controller);
        pending++;
        if (ctx.signal?.aborted) controller.abort();
        const take = (outcome: Outcome) => {
          pending--;
          const loan = 'loan' in outcome ? outcome.loan : undefined;
          if (settled) loan?.release();
          // A miss or an error counts only when no other request is pending.
          else if (loan || pending === 0) settle(outcome, which);
        };
        this.inner.get(id, sealedBytes, withSignal(ctx, controller.signal)).then(
          (loan) => take({ loan }),
          (error: unknown) => take({ error }),
        );
      };

      ask();
      if (this.#delayMs === undefined || ctx.signal?.aborted) return;
      timer = setTimeout(() => {
        // The class is read now: a readahead may have become a read that a guest waits for.
        if (settled || ctx.class !== 'demand') return;
        if (this.#tokens < 1) {
          this.#skipped++;
          return;
        }
        this.#tokens--;
        ask();
      }, this.#delayMs);
    });
  }

  stats(): HedgeStats {
    return { won: this.#won, lost: this.#lost, skipped: this.#skipped };
  }

  #record(durationMs: number): void {
    this.#window.record(durationMs);
    this.#windowReads++;
    const isFirst = this.#delayMs === undefined && this.#windowReads === READS_MIN;
    if (!isFirst && this.#windowReads < WINDOW_READS) return;
    this.#delayMs = Math.max(this.#floorMs, this.#window.percentileMs(0.95));
    if (this.#windowReads < WINDOW_READS) return;
    this.#window = new Histogram();
    this.#windowReads = 0;
  }
}
