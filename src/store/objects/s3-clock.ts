/** The store's time of day, with which requests are signed: ours, corrected where the store refuses it. */
import type { S3Failure } from './s3-errors.ts';

/** Beyond it S3 refuses; well below it is noise of the line. */
const SKEW_MS_MAX = 240_000;

export class S3Clock {
  /** What the store's time is ahead of ours. */
  #offsetMs = 0;

  /** Milliseconds since 1970. */
  nowMs(): number {
    return Date.now() + this.#offsetMs;
  }

  /** Whether our time, as far as it was corrected, was far from the store's when the request was signed. */
  learn({ status, code, dateMs }: S3Failure): boolean {
    if (dateMs === undefined || (status !== 403 && status !== 400)) return false;
    const offsetMs = dateMs - Date.now();
    const isOff = Math.abs(offsetMs - this.#offsetMs) > SKEW_MS_MAX;
    if (isOff) this.#offsetMs = offsetMs;
    // Another request may have corrected it meanwhile.
    return isOff || code === 'RequestTimeTooSkewed';
  }
}
