/**
 * The command line's exit codes: one for each stable error code, listed by `lazydisk --help`. Scripts rely on them, so
 * codes may be added, but never renumbered or given another meaning.
 */
import { codeOf, type ErrorCode } from '../errors.ts';

export const EXIT_CODES: Readonly<Record<ErrorCode, number>> = {
  INTERNAL: 1,
  USAGE: 2,
  NOT_FOUND: 3,
  EXISTS: 4,
  KEY: 5,
  CORRUPT: 6,
  UNSUPPORTED: 7,
  NO_SPACE: 8,
  TIMEOUT: 9,
  UNAVAILABLE: 10,
  OVERLOAD: 11,
  BUSY: 12,
  ABORTED: 13,
};

const MEANINGS: Readonly<Record<ErrorCode, string>> = {
  INTERNAL: 'a fault of lazydisk itself',
  USAGE: 'wrong words or values on the command line',
  NOT_FOUND: 'no such image, drive or file',
  EXISTS: 'the name is taken',
  KEY: 'the key is missing, readable by others, or the wrong one',
  CORRUPT: 'bytes that fail their digest, tag or format',
  UNSUPPORTED: 'well formed, but nothing that lazydisk does',
  NO_SPACE: 'it does not fit',
  TIMEOUT: 'a deadline passed',
  UNAVAILABLE: 'a daemon, store or tool does not answer or is not installed',
  OVERLOAD: 'too much at once',
  BUSY: 'it is in use, or not what was expected',
  ABORTED: 'interrupted',
};

/** The exit code for any thrown value. */
export function exitCodeOf(error: unknown): number {
  return EXIT_CODES[codeOf(error)];
}

/** For `--help`: one line per code. */
export function exitCodesHelp(): string {
  const lines = Object.entries(EXIT_CODES).map(
    ([code, exit]) => `  ${String(exit).padStart(2)}  ${code.padEnd(12)} ${MEANINGS[code as ErrorCode]}`,
  );
  return ['Exit codes:', '   0               done', ...lines].join('\n');
}
