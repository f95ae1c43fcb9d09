/**
 * Error responses of S3 and compatible stores: one shape for all requests, and the errors that they become. Messages
 * quote only a response's code and status, because S3's messages quote requests, which hold access keys and signatures.
 */
import { LazydiskError } from '../../errors.ts';
import type { HttpAnswer } from '../../http-client/client.ts';

/** An error response. */
export interface S3Failure {
  readonly status: number;
  /** S3's own code, such as `NoSuchKey`; empty if there is none. */
  readonly code: string;
  /** The bucket's location according to the store. */
  readonly location: string | undefined;
  readonly region: string | undefined;
  /** The response's date, in milliseconds since 1970. */
  readonly dateMs: number | undefined;
}

/** Carries an error response to the code that knows the request. */
export class S3FailureError extends Error {
  readonly failure: S3Failure;

  constructor(failure: S3Failure) {
    super(`${failure.status} ${failure.code}`);
    this.failure = failure;
  }
}

/** Newer credentials may succeed. */
const STALE_CREDENTIALS: ReadonlySet<string> = new Set([
  'ExpiredToken',
  'ExpiredTokenException',
  'InvalidAccessKeyId',
  'InvalidClientTokenId',
  'InvalidToken',
  'InvalidSecurity',
  'TokenRefreshRequired',
  'SignatureDoesNotMatch',
  'AuthFailure',
]);

const ASKS_FOR_LESS: ReadonlySet<string> = new Set([
  'SlowDown',
  'ServiceUnavailable',
  'Throttling',
  'ThrottlingException',
  'RequestLimitExceeded',
  'BandwidthLimitExceeded',
  'TooManyRequests',
  'TooManyRequestsException',
]);

const FULL: ReadonlySet<string> = new Set(['QuotaExceeded', 'XMinioStorageFull', 'InsufficientStorage']);

/** 4xx codes for errors in transit. */
const MAY_PASS: ReadonlySet<string> = new Set([
  'RequestTimeout',
  'IncompleteBody',
  'BadDigest',
  'OperationAborted',
]);

const UNKNOWN_CALL: ReadonlySet<string> = new Set([
  'NotImplemented',
  'MethodNotAllowed',
  'MalformedXML',
  'InvalidRequest',
  'InvalidArgument',
  'InvalidDigest',
  'MissingContentMD5',
]);

/** Stands in for the missing code of a response without a body. */
const HEAD_404 = 'NotFound';

const CODE = /^[A-Za-z0-9]{1,64}$/;

export function failureOfAnswer({ status, headers, body }: HttpAnswer, method: string): S3Failure {
  const text = method === 'HEAD' ? `<Code>${HEAD_404}</Code>` : body.toString('latin1');
  return {
    status,
    code: codeOf(/<Code>([^<]*)<\/Code>/.exec(text)?.[1]),
    location: headers.location,
    region: headers['x-amz-bucket-region'] ?? /<Region>([^<]*)<\/Region>/.exec(text)?.[1],
    dateMs: dateOf(headers.date),
  };
}

/** The object certainly does not exist. For a HEAD, the bucket may be missing instead. */
export function isAbsent({ status, code }: S3Failure): boolean {
  return status === 404 && (code === 'NoSuchKey' || code === HEAD_404);
}

/** Whether newer credentials may succeed. RGW denies access to a key that was just removed. */
export function isStaleCredentials({ code }: S3Failure): boolean {
  return STALE_CREDENTIALS.has(code) || code === 'AccessDenied';
}

/** The object does not meet the request's condition. */
export function isConflict({ status, code }: S3Failure): boolean {
  return status === 412 || code === 'ConditionalRequestConflict' || code === 'ConcurrentModification';
}

/** The store does not support the call, or not this form of it. */
export function isUnknownCall({ status, code }: S3Failure): boolean {
  return status === 501 || status === 405 || UNKNOWN_CALL.has(code);
}

/** The error for a failed attempt. `what` is its text, with the store and the key; `operation` is S3's name for it. */
export function errorOfFailure(what: string, operation: string, failure: S3Failure): LazydiskError {
  const { status, code } = failure;
  const answer = `${status}${code && ` ${code}`}`;
  const error = (kind: 'OVERLOAD' | 'NO_SPACE' | 'BUSY' | 'UNAVAILABLE', why: string) =>
    new LazydiskError(kind, `${what}: ${why} (${answer})`);
  const refused = (why: string) =>
    new LazydiskError('UNAVAILABLE', `${what}: ${why} (${answer})`, { retryable: false });

  if (FULL.has(code) || status === 507) return error('NO_SPACE', 'the store is full');
  if (ASKS_FOR_LESS.has(code) || status === 429 || status === 503)
    return error('OVERLOAD', 'the store asks for less');
  if (isConflict(failure)) return error('BUSY', 'the object has changed meanwhile');
  if (code === 'NoSuchBucket') return refused('there is no such bucket');
  if (STALE_CREDENTIALS.has(code))
    return error('UNAVAILABLE', `the credentials were refused for ${operation}`);
  if (code === 'RequestTimeTooSkewed') return error('UNAVAILABLE', 'the clocks of store and client differ');
  if (status === 401 || status === 403) return refused(`access denied to ${operation}`);
  if (status === 501 || status === 405) return refused(`the store knows no ${operation}`);
  if (status >= 300 && status < 500 && !MAY_PASS.has(code)) return refused(`${operation} was refused`);
  return error('UNAVAILABLE', `${operation} failed`);
}

function codeOf(text: string | undefined): string {
  return text !== undefined && CODE.test(text) ? text : '';
}

function dateOf(text: string | undefined): number | undefined {
  const ms = Date.parse(text ?? '');
  return Number.isNaN(ms) ? undefined : ms;
}
