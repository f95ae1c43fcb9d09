/**
 * Converts an error response of a registry, a token server or a blob store to an error. Of its text, only the codes
 * that the distribution-spec defines go into the message: the rest may quote the request.
 */
import { LazydiskError, withContext } from '../../../errors.ts';
import { formatDuration } from '../../../units.ts';

export interface ErrorAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | undefined>>;
  /** The beginning of the body. */
  readonly body: Buffer;
}

const REFUSALS = new Map([
  [401, 'unauthorised'],
  [403, 'access denied'],
]);
const BAD_CERTIFICATE = /CERT|UNABLE_TO_(?:GET|VERIFY)/;

/** How much of an error body is read. */
export const ERROR_BYTES_MAX = 64 * 1024;

/** The message does not say what was requested. */
export function errorOfAnswer({ status, headers, body }: ErrorAnswer): LazydiskError {
  const code = /"code"\s*:\s*"([A-Z_]{1,40})"/.exec(body.toString('latin1'))?.[1];
  const answer = code ? `(${status} ${code})` : `(${status})`;
  if (status === 404) return new LazydiskError('NOT_FOUND', `not found ${answer}`);
  if (status === 429 || status === 503) {
    const retryAfterMs = afterMs(headers['retry-after']);
    const what = status === 429 ? 'rate limit reached' : 'overloaded';
    const when = retryAfterMs ? `, retry after ${formatDuration(retryAfterMs)}` : '';
    return new LazydiskError('OVERLOAD', `${what} ${answer}${when}`, { retryAfterMs });
  }
  if (status >= 500 || status === 408) return new LazydiskError('UNAVAILABLE', `failed ${answer}`);
  return refusal(`${REFUSALS.get(status) ?? 'refused'} ${answer}`);
}

/** UNAVAILABLE and not retryable: someone has to change something first. */
export function refusal(message: string, cause?: unknown): LazydiskError {
  return new LazydiskError('UNAVAILABLE', message, { cause, retryable: false });
}

/** `retry-after` in either of its forms, as a time from now; RFC 9110, section 10.2.3. */
export function afterMs(header: string | undefined, nowMs = Date.now()): number | undefined {
  if (header === undefined) return undefined;
  if (/^\d{1,9}$/.test(header)) return Number(header) * 1000;
  const dateMs = /^[A-Z][a-z]+, /.test(header) ? Date.parse(header) : Number.NaN;
  return Number.isNaN(dateMs) ? undefined : Math.max(0, dateMs - nowMs);
}

/**
 * The same error with context: its message begins with the registry's name. Unchanged if it already does. Certificate
 * errors and unknown host names are not retryable.
 */
export function namedError(name: string, what: string, error: unknown): unknown {
  if (!(error instanceof LazydiskError) || error.message.startsWith(name)) return error;
  const where = what ? `${name}: ${what}` : name;
  const code = causeCode(error);
  if (code === 'ENOTFOUND') return refusal(`${where}: the host name does not exist`, error);
  if (!BAD_CERTIFICATE.test(code)) return withContext(error, where);
  return refusal(`${where}: ${error.message} (--registry-ca names an authority to trust)`, error);
}

/** The system's code of the cause of `error`; empty if there is none. */
export function causeCode(error: unknown): string {
  const cause = error instanceof Error ? (error.cause as NodeJS.ErrnoException | undefined) : undefined;
  return cause?.code ?? '';
}
