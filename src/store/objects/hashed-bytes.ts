/** An object's bytes where the store gives no version of them: a hash, computed when asked for, which readers of chunks never do. */
import { hash } from 'node:crypto';
import type { ObjectBytes } from './object-store.ts';

export class HashedBytes implements ObjectBytes {
  readonly bytes: Buffer;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  get version(): string {
    return hash('sha256', this.bytes, 'hex');
  }
}
