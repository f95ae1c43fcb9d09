/**
 * The project's error class. Every failure that reaches a person has a stable `code`, which the command line maps to an
 * exit code, the daemon to an HTTP status, and tests to an expectation, without reading the message.
 */

/** Stable codes; the exit code of the command line is derived from them (src/cli/exit-codes.ts). */
export type ErrorCode =
  | 'USAGE' // wrong arguments: unknown flag, malformed value
  | 'NOT_FOUND' // no such image, drive, file, blob
  | 'EXISTS' // the name is taken
  | 'KEY' // missing, unreadable, world-readable, or the wrong key
  | 'CORRUPT' // bytes that fail their digest, tag or format
  | 'UNSUPPORTED' // well formed, but not supported
  | 'NO_SPACE' // does not fit: disk or cache is full, or the image exceeds its disk
  | 'TIMEOUT' // the deadline passed
  | 'UNAVAILABLE' // a tier, a daemon or a tool does not respond or is not installed
  | 'OVERLOAD' // a bounded queue is full
  | 'BUSY' // in use
  | 'ABORTED' // cancelled by the caller
  | 'INTERNAL';

/** Codes of failures that may succeed when they are retried a moment later. */
const RETRYABLE: ReadonlySet<ErrorCode> = new Set(['UNAVAILABLE', 'TIMEOUT', 'OVERLOAD']);

export interface LazydiskErrorOptions {
  readonly cause?: unknown;
  /** Default: by the code. */
  readonly retryable?: boolean;
  readonly retryAfterMs?: number | undefined;
}

/** An error with a stable code. The message names the object concerned, never a key or a secret. */
export class LazydiskError extends Error {
  readonly code: ErrorCode;
  /**
   * Whether a retry can help. False where the result stays the same until someone changes something: access denied, no
   * such bucket, an open circuit breaker.
   */
  readonly retryable: boolean;
  /** The least time to wait before a retry, if the server stated one. */
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

/** The short text of anything thrown, for a log line or a person. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The code of anything thrown; `otherwise` if it is not a LazydiskError. */
export function codeOf(error: unknown, otherwise: ErrorCode = 'INTERNAL'): ErrorCode {
  return error instanceof LazydiskError ? error.code : otherwise;
}

/** Whether a retry can help. Errors other than LazydiskErrors come from the system, and may be transient. */
export function isRetryable(error: unknown): boolean {
  return error instanceof LazydiskError ? error.retryable : true;
}

/** Whether a store responded with a refusal that stays until a person changes something. */
export function isRefusal(error: unknown): boolean {
  return codeOf(error) === 'UNAVAILABLE' && !isRetryable(error);
}

/** Returns `error` with `where` before its text and everything else kept; `otherwise` as for `codeOf`. */
export function withContext(error: unknown, where: string, otherwise?: ErrorCode): LazydiskError {
  return withMessage(error, `${where}: ${errorText(error)}`, otherwise);
}

/** The same with a new text. */
export function withMessage(error: unknown, message: string, otherwise?: ErrorCode): LazydiskError {
  const { retryable, retryAfterMs } = error instanceof LazydiskError ? error : {};
  return new LazydiskError(codeOf(error, otherwise), message, {
    cause: error,
    ...(retryable !== undefined && { retryable }),
    retryAfterMs,
  });
}
