/**
 * Asks a tier again when it could not tell: each try has a time of its own, between tries there is a pause that
 * doubles and is jittered (a thousand workers must not come back in step), and all of it stays under the read's one
 * deadline. A miss is an answer and is not asked again, nor is a refusal that would only be repeated.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { deadlineError } from '../../async/deadline.ts';
import { type ReadContext, withNearerDeadline } from '../../async/read-context.ts';
import { type ErrorCode, errorText, LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
import { BreakerOpenError } from './breaker.ts';
import { WrapperTier } from './wrapper.ts';

/** What may be different the next time. Everything that is not a LazydiskError counts as UNAVAILABLE. */
const WORTH_RETRYING: ReadonlySet<ErrorCode> = new Set(['UNAVAILABLE', 'TIMEOUT', 'OVERLOAD', 'BUSY']);

const PAUSE_MS_MAX = 2_000;

export interface RetryOptions {
  /** Tries together, the first one included. */
  readonly tries: number;
  /** What one try may take. */
  readonly tryTimeoutMs: number;
  /** The first pause, before jitter; each next one is twice as long, up to 2 s. Default 50. */
  readonly pauseMs?: number;
}

/** Goes inside LimitTier, so that what is retried does not take a second place. */
export class RetryTier extends WrapperTier {
  readonly #options: RetryOptions;

  constructor(inner: ChunkTier, options: RetryOptions) {
    super(inner);
    this.#options = options;
  }

  /** Rejects as the last try did; the message says how many there were. */
  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    const { tries, tryTimeoutMs, pauseMs = 50 } = this.#options;
    for (let attempt = 1; ; attempt++) {
      const tryDeadline = performance.now() + tryTimeoutMs;
      try {
        return await this.inner.get(id, sealedBytes, withNearerDeadline(ctx, tryDeadline));
      } catch (error) {
        if (ctx.signal?.aborted) throw deadlineError('signal', `${this.name}: no answer`);
        const code = error instanceof LazydiskError ? error.code : 'UNAVAILABLE';
        const wait = Math.min(pauseMs * 2 ** (attempt - 1), PAUSE_MS_MAX) * (0.5 + Math.random() / 2);
        const isLast =
          attempt === tries ||
          !WORTH_RETRYING.has(code) ||
          error instanceof BreakerOpenError ||
          performance.now() + wait >= ctx.deadline;
        if (isLast) throw afterTries(error, code, attempt);
        await sleep(wait, undefined, ctx.signal && { signal: ctx.signal }).catch(() => {
          throw deadlineError('signal', `${this.name}: no answer (${errorText(error)})`);
        });
      }
    }
  }
}

function afterTries(error: unknown, code: ErrorCode, tries: number): unknown {
  if (tries === 1) return error;
  return new LazydiskError(code, `${errorText(error)} (tried ${tries} times)`, { cause: error });
}
