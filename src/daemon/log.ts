/**
 * The daemon's log: JSON lines on stderr, one writer, never in the way of a read (log-stream.ts). `flushLog` waits for
 * what is left when the process ends. Whatever could hold a secret is redacted by its field name as well, though no
 * code should pass one here.
 */
import { type DestinationStream, type Logger, pino } from 'pino';
import { codeOf, errorText } from '../errors.ts';
import type { ServeConfig } from './config.ts';
import { LogStream } from './log-stream.ts';

export type { Logger } from 'pino';

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
export function createLog(
  level: ServeConfig['logLevel'],
  stream: DestinationStream = new LogStream(),
): Logger {
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
    stream,
  );
}

/** Our own errors say what is wrong in their text; where in the code they were made is of use for faults alone. */
function describeError(error: unknown): unknown {
  const code = codeOf(error);
  if (code !== 'INTERNAL') return { code, message: errorText(error) };
  return error instanceof Error ? pino.stdSerializers.err(error) : error;
}

/** Resolves when what was logged is written, or soon after if it cannot be. */
export function flushLog(stream: LogStream): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 500);
    stream.flush(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
