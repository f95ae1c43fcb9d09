/**
 * Bytes of an object whose store has no versions: the version is a hash, computed on demand, which chunk readers never
 * do.
 */
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
