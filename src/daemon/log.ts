/**
 * The daemon's log: JSON lines on stderr, one writer, never in the way of a read. Writing is asynchronous and the
 * buffer bounded, so that a reader of the log who stops reading costs lines and not the drives; `flushLog` writes
 * what is left when the process ends. Whatever could hold a secret is redacted by its field name as well, though
 * no code should pass one here.
 */

import { type DestinationStream, destination, type Logger, pino } from 'pino';
import { LazydiskError } from '../errors.ts';

export type { Logger } from 'pino';

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Bytes of log that may wait for a slow reader; what is above is dropped. */
const PENDING_BYTES_MAX = 4 * 1024 * 1024;

const SECRET_FIELDS = [
  'key',
  'keys',
  'wrapKey',
  'domainSecret',
  'dataKey',
  'salt',
  'env',
  'Env',
  'secret',
  'token',
  'password',
];

/** A logger to `stream`, by default stderr. */
export function createLog(level: LogLevel, stream?: DestinationStream): Logger {
  const paths = SECRET_FIELDS.flatMap((field) => [field, `*.${field}`, `*.*.${field}`]);
  return pino(
    {
      level,
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: { paths, censor: '[secret]' },
      serializers: { error: describeError },
    },
    stream ?? destination({ fd: 2, sync: false, maxLength: PENDING_BYTES_MAX }),
  );
}

/** Our own errors say what is wrong in their text; where in the code they were made is of use for faults alone. */
function describeError(error: unknown): unknown {
  if (error instanceof LazydiskError && error.code !== 'INTERNAL')
    return { code: error.code, message: error.message };
  return error instanceof Error ? pino.stdSerializers.err(error) : error;
}

/** Resolves when what was logged is written, or soon after if it cannot be. */
export function flushLog(log: Logger): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 500);
    log.flush(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
