/** SHA-256 on the thread pool, for inputs that would block the event loop for too long. */
import { sha256 } from '../../native/index.ts';
import { LazydiskError } from '../errors.ts';
import { ID_BYTES } from '../format/chunk-id.ts';

/** Returns 64 hex digits. `bytes` must stay untouched until it resolves. */
export function sha256Of(bytes: Uint8Array): Promise<string> {
  return new Promise((resolve, reject) => {
    const digest = Buffer.allocUnsafe(ID_BYTES);
    sha256(bytes, digest, (isDone) => {
      if (isDone) resolve(digest.toString('hex'));
      else reject(new LazydiskError('INTERNAL', 'a hash could not be made: memory ran out'));
    });
  });
}
