/**
 * What the tiers answered for one chunk, and the error when none had it: the text names every tier and its cause, and
 * the code says what an operator can do about it.
 */
import { errorText, LazydiskError, withMessage } from '../errors.ts';
import type { ChunkId } from '../format/chunk-id.ts';
import type { TierName } from './tier.ts';

/** Why a tier did not return the chunk. */
export type TierFailure =
  | { readonly tier: TierName; readonly kind: 'miss' }
  /** It returned bytes that are not the chunk's. */
  | { readonly tier: TierName; readonly kind: 'bad'; readonly why: string }
  | { readonly tier: TierName; readonly kind: 'error'; readonly error: unknown };

/** `disk: not there; origin: bad copy (SHA-256 is not its id)`. */
export function failuresText(failures: readonly TierFailure[]): string {
  return failures.map((failure) => `${failure.tier}: ${failureText(failure)}`).join('; ');
}

function failureText(failure: TierFailure): string {
  if (failure.kind === 'miss') return 'not there';
  if (failure.kind === 'bad') return `bad copy (${failure.why})`;
  return errorText(failure.error);
}

/**
 * The error for a chunk that no tier returned. Only the last tier must have it, so if that tier failed, its code and
 * retryability stand; otherwise CORRUPT if there were bad copies; otherwise NOT_FOUND.
 */
export function readFailure(id: ChunkId, failures: readonly TierFailure[]): LazydiskError {
  const text = `chunk ${id}: ${failuresText(failures)}`;
  const last = failures.at(-1);
  if (last?.kind === 'error') return withMessage(last.error, text, 'UNAVAILABLE');
  const cause = failures.findLast((failure) => failure.kind === 'error')?.error;
  const code = failures.some((failure) => failure.kind === 'bad') ? 'CORRUPT' : 'NOT_FOUND';
  return new LazydiskError(code, text, cause === undefined ? undefined : { cause });
}
