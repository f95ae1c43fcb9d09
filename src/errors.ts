/**
 * The project's one error class. Every failure that a person can meet carries a stable `code`, so that the
 * command line maps it to an exit code, the daemon to an HTTP status, and tests to an expectation, without
 * any of them reading the message.
 */

/** Stable codes; the exit code of the command line is derived from them (src/cli/exit-codes.ts). */
export type ErrorCode =
  | 'USAGE' // the words of a call are wrong: unknown flag, malformed value
  | 'NOT_FOUND' // no such image, drive, file, blob
  | 'EXISTS' // a name that is taken
  | 'KEY' // missing, unreadable, world-readable, or the wrong key
  | 'CORRUPT' // bytes that fail their digest, tag or format
  | 'UNSUPPORTED' // well formed, and nothing that we do
  | 'NO_SPACE' // does not fit: disk, cache, or the image into its disk
  | 'TIMEOUT' // the deadline passed
  | 'UNAVAILABLE' // a tier, a daemon or a tool that does not answer or is not installed
  | 'OVERLOAD' // a bounded queue is full
  | 'BUSY' // the thing is in use
  | 'ABORTED' // cancelled by the caller
  | 'INTERNAL';

/** Codes of what may end otherwise when it is asked again a moment later. */
const RETRYABLE: ReadonlySet<ErrorCode> = new Set(['UNAVAILABLE', 'TIMEOUT', 'OVERLOAD']);

export interface LazydiskErrorOptions {
  readonly cause?: unknown;
  /** Default: as its code says. */
  readonly retryable?: boolean;
  readonly retryAfterMs?: number | undefined;
}

/** An error with a stable code. The message names the thing, never a key or a secret. */
export class LazydiskError extends Error {
  readonly code: ErrorCode;
  /**
   * Whether asking again can help. Not where the answer would be the same until somebody changes something: access
   * denied, no such bucket, a breaker that is open.
   */
  readonly retryable: boolean;
  /** How long to wait before asking again, at least, where whoever was asked said so. */
  readonly retryAfterMs: number | undefined;

  constructor(
    code: ErrorCode,
    message: string,
    { retryable, retryAfterMs, ...options }: LazydiskErrorOptions = {},
  ) {
    super(message, options);
    this.name = 'LazydiskError';
    this.code = code;
    this.retryAfterMs = retryAfterMs;
    this.retryable = retryable ?? RETRYABLE.has(code);
  }
}

/** Whatever was thrown, as a short text for a log line or a person. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The code of whatever was thrown; `otherwise` for what is not a LazydiskError. */
export function codeOf(error: unknown, otherwise: ErrorCode = 'INTERNAL'): ErrorCode {
  return error instanceof LazydiskError ? error.code : otherwise;
}

/** Whether asking again can help. What is not a LazydiskError is the system's, and may pass. */
export function isRetryable(error: unknown): boolean {
  return error instanceof LazydiskError ? error.retryable : true;
}

/** Whether a store could answer and will not, until a person changes something. */
export function isRefusal(error: unknown): boolean {
  return codeOf(error) === 'UNAVAILABLE' && !isRetryable(error);
}

/** `error` with `where` before its text, and the rest of it; `otherwise` as for `codeOf`. */
export function withContext(error: unknown, where: string, otherwise?: ErrorCode): LazydiskError {
  return withMessage(error, `${where}: ${errorText(error)}`, otherwise);
}

/** The same with a whole new text. */
export function withMessage(error: unknown, message: string, otherwise?: ErrorCode): LazydiskError {
  const { retryable, retryAfterMs } = error instanceof LazydiskError ? error : {};
  return new LazydiskError(codeOf(error, otherwise), message, {
    cause: error,
    ...(retryable !== undefined && { retryable }),
    retryAfterMs,
  });
}
