/** What an object store says when it could answer and will not. */
import { LazydiskError } from '../../errors.ts';

/**
 * UNAVAILABLE, and of no use to try again: access denied, no such bucket, a call that the store does not know. A
 * person has to change something first.
 */
export class RefusedError extends LazydiskError {
  constructor(message: string, options?: { cause?: unknown }) {
    super('UNAVAILABLE', message, options);
  }
}
