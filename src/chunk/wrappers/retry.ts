/**
 * Retries a tier that could not tell (async/backoff.ts). Each try has its own time limit, and all of them stay within
 * the read's one deadline. A miss is an answer and is not retried, and neither is a refusal that would only repeat.
 */
import { type Pauses, retrying } from '../../async/backoff.ts';
import { type ReadContext, withNearerDeadline } from '../../async/read-context.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
import { WrapperTier } from './wrapper.ts';

export const RETRY_PAUSES: Pauses = { firstMs: 50, longestMs: 2_000 };

export interface RetryOptions {
  /** Tries in total, including the first. */
  readonly tries: number;
  /** How long one try may take. */
  readonly tryTimeoutMs: number;
  /** Default RETRY_PAUSES. */
  readonly pauses?: Pauses;
}

/** Goes inside LimitTier, so that a retried read does not take a second place. */
export class RetryTier extends WrapperTier {
  readonly #options: RetryOptions;

  constructor(inner: ChunkTier, options: RetryOptions) {
    super(inner);
    this.#options = options;
  }

  /** Rejects as the last try did; the message says how many there were. */
  get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    const { tries, tryTimeoutMs, pauses = RETRY_PAUSES } = this.#options;
    const { signal } = ctx;
    return retrying({ tries, pauses, deadline: () => ctx.deadline, signal }, () =>
      this.inner.get(id, sealedBytes, withNearerDeadline(ctx, performance.now() + tryTimeoutMs)),
    );
  }
}
