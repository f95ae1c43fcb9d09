/**
 * The daemon's log: JSON lines on stderr, one writer, never delaying a read (log-stream.ts). `flushLog` waits for the
 * remaining lines when the process exits. Fields that could hold a secret are also redacted by name, though no code
 * should pass one here.
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

/** Creates a logger that writes to `stream`, by default stderr. */
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

/** The text of our own errors says what is wrong; a stack is useful for internal faults only. */
function describeError(error: unknown): unknown {
  const code = codeOf(error);
  if (code !== 'INTERNAL') return { code, message: errorText(error) };
  return error instanceof Error ? pino.stdSerializers.err(error) : error;
}

/** Resolves when everything logged has been written, or after half a second. */
export function flushLog(stream: LogStream): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 500);
    stream.flush(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
