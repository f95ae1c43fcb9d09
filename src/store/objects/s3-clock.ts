/** The store's time, used to sign requests: the local time, corrected when the store rejects it. */
import type { S3Failure } from './s3-errors.ts';

/** A larger skew is corrected; a smaller one may be network delay, and S3 tolerates it. */
const SKEW_MS_MAX = 240_000;

export class S3Clock {
  /** How far the store's time is ahead of ours. */
  #offsetMs = 0;

  /** Milliseconds since 1970. */
  nowMs(): number {
    return Date.now() + this.#offsetMs;
  }

  /** Whether our corrected time was far from the store's when the request was signed. */
  learn({ status, code, dateMs }: S3Failure): boolean {
    if (dateMs === undefined || (status !== 403 && status !== 400)) return false;
    const offsetMs = dateMs - Date.now();
    const isOff = Math.abs(offsetMs - this.#offsetMs) > SKEW_MS_MAX;
    if (isOff) this.#offsetMs = offsetMs;
    // Another request may have corrected the offset meanwhile.
    return isOff || code === 'RequestTimeTooSkewed';
  }
}
