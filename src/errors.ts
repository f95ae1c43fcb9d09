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

/** An error with a stable code. The message names the thing, never a key or a secret. */
export class LazydiskError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'LazydiskError';
    this.code = code;
  }
}

/** Whatever was thrown, as a short text for a log line or a person. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
