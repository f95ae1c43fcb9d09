/**
 * What the tiers gave for one chunk, tier by tier, and the one error that it makes when none gave the chunk: its
 * text names every tier and its cause, its code says what a person can do about it.
 */
import { type ErrorCode, errorText, LazydiskError } from '../errors.ts';
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
 * The error of a chunk that no tier gave. Only the last tier is bound to have it, so if that one could not tell,
 * its code stands; else CORRUPT if there were bad copies; else NOT_FOUND.
 */
export function readFailure(id: ChunkId, failures: readonly TierFailure[]): LazydiskError {
  const cause = failures.findLast((failure) => failure.kind === 'error')?.error;
  const text = `chunk ${id}: ${failuresText(failures)}`;
  return new LazydiskError(codeOf(failures), text, cause === undefined ? undefined : { cause });
}

function codeOf(failures: readonly TierFailure[]): ErrorCode {
  const last = failures.at(-1);
  if (last?.kind === 'error') return last.error instanceof LazydiskError ? last.error.code : 'UNAVAILABLE';
  return failures.some((failure) => failure.kind === 'bad') ? 'CORRUPT' : 'NOT_FOUND';
}
