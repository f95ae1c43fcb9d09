/**
 * What the tiers gave for one chunk, tier by tier, and the one error that it makes when none gave the chunk: its
 * text names every tier and its cause, its code says what a person can do about it.
 */
import { errorText, LazydiskError, withMessage } from '../errors.ts';
import type { ChunkId } from '../format/chunk-id.ts';
import type { TierName } from './tier.ts';

/** Why a tier did not give the chunk. */
export type TierFailure =
  | { readonly tier: TierName; readonly kind: 'miss' }
  /** It gave bytes that are not the chunk's. */
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
 * The error of a chunk that no tier gave. Only the last tier is bound to have it, so if that one could not tell, its code
 * stands, and whether asking again can help; else CORRUPT if there were bad copies; else NOT_FOUND.
 */
export function readFailure(id: ChunkId, failures: readonly TierFailure[]): LazydiskError {
  const text = `chunk ${id}: ${failuresText(failures)}`;
  const last = failures.at(-1);
  if (last?.kind === 'error') return withMessage(last.error, text, 'UNAVAILABLE');
  const cause = failures.findLast((failure) => failure.kind === 'error')?.error;
  const code = failures.some((failure) => failure.kind === 'bad') ? 'CORRUPT' : 'NOT_FOUND';
  return new LazydiskError(code, text, cause === undefined ? undefined : { cause });
}
