/**
 * The small interface under every image store: bytes by key, as S3, a directory or a web server store them. layout.ts
 * defines what the keys mean; retries and injected faults are wrappers. The conformance suite
 * (test/store/objects/objects-suite.ts) runs against each implementation and each wrapper.
 *
 * Contract:
 * - `put` is atomic (readers see the previous state or the whole new object), durable when it resolves, and visible to
 *   every `get` and `head` that starts after that. A `list` may lag behind writes by the store's settle time.
 * - A missing object reads as undefined, and deleting it is no error. A call rejects only when the store's state is
 *   unknown: UNAVAILABLE, TIMEOUT, ABORTED (by `signal`), NO_SPACE for writes, and OVERLOAD when the store throttles.
 *   What only a person can fix (access denied, no such bucket) is UNAVAILABLE and not retryable.
 * - Keys are 1 to 512 characters of `A-Z a-z 0-9 . _ % - /`, in parts between slashes that are not empty, `.` or `..`;
 *   anything else is INTERNAL, because no key comes from outside unchecked.
 * - `close` may be called twice; a wrapper closes what it wraps.
 */

import { LazydiskError } from '../../errors.ts';

export interface ObjectInfo {
  readonly key: string;
  readonly sizeBytes: number;
  /** When the object was written, by the store's own clock, in milliseconds since 1970; may be whole seconds. */
  readonly modifiedMs: number;
}

export interface ObjectBytes {
  /**
   * Of an object larger than `bytesMax`, the first `bytesMax` + 1 bytes, so that the caller sees that it is too long.
   */
  readonly bytes: Buffer;
  /** Opaque; different content has a different version. For `ifVersion`. */
  readonly version: string;
}

export interface ObjectOptions {
  readonly signal?: AbortSignal;
}

export interface GetOptions extends ObjectOptions {
  /**
   * A buffer for `bytes`, used if they fit; otherwise they get their own. The caller must not use it for anything else
   * until the call has settled, after which the store does not touch it.
   */
  readonly into?: Buffer | undefined;
}

export interface PutOptions extends ObjectOptions {
  /**
   * Write only over this version (null: only if there is no object), otherwise reject with BUSY. Ignored by a store
   * without compare-and-set. After a retried write, BUSY may also mean that the first try succeeded after all.
   */
  readonly ifVersion?: string | null;
  /** SHA-256 of the bytes, 64 hex digits, if the caller knows it; saves S3 computing it for the signature. */
  readonly sha256?: string;
}

export interface ListOptions extends ObjectOptions {
  /** Maximum number of objects in a page; pages may be shorter, and empty. */
  readonly pageMax?: number;
  /**
   * Only the folder's direct subfolders are of interest, not what they contain: each may be listed as one key that ends
   * in a slash, 0 bytes long. A hint, which a store may ignore.
   */
  readonly shallow?: boolean;
}

export interface ObjectStore {
  /** As the user wrote it, without secrets; for messages. */
  readonly url: string;
  /** False for a read-only store, which cannot be listed either. */
  readonly isWritable: boolean;
  /** True if `head` is a local system call, rather than a round trip that a listing could save. */
  readonly isLocal?: boolean;
  /** How long calls are retried while the store does not answer, in milliseconds; for callers that give up sooner. */
  readonly retryForMs?: number | undefined;
  /** The same store without the retries of this wrapper, for callers that do their own. */
  readonly withoutRetries?: ObjectStore;
  /** When the current credentials expire, in milliseconds since 1970; undefined if they do not, or before first use. */
  readonly credentialExpiry?: number | undefined;

  get(key: string, bytesMax: number, options?: GetOptions): Promise<ObjectBytes | undefined>;
  head(key: string, options?: ObjectOptions): Promise<ObjectInfo | undefined>;
  /** `bytes` must stay untouched until this resolves. */
  put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<void>;
  /**
   * Copies within the store, without passing the bytes through this process if possible. False if `from` does not
   * exist.
   */
  copy(from: string, to: string, options?: ObjectOptions): Promise<boolean>;
  /** Deletes all of `keys`, any number; missing ones are no error. */
  delete(keys: readonly string[], options?: ObjectOptions): Promise<void>;
  /**
   * Pages of all objects whose keys start with `prefix` (a whole folder, ending in a slash; '' for the whole store), in
   * no particular order.
   */
  list(prefix: string, options?: ListOptions): AsyncIterable<readonly ObjectInfo[]>;
  /**
   * The current time by the clock that stamps objects, in milliseconds since 1970; may be rounded down to whole
   * seconds.
   */
  nowMs(options?: ObjectOptions): Promise<number>;
  /** Whether the store honours `ifVersion`. May ask the store, once. */
  canCompareAndSet(): Promise<boolean>;

  close(): Promise<void>;
}

const KEY_PART = /^[A-Za-z0-9._%-]+$/;

export function isKey(text: string): boolean {
  const parts = text.split('/');
  return text.length <= 512 && parts.every((part) => KEY_PART.test(part) && part !== '.' && part !== '..');
}

/** Throws INTERNAL for an invalid key, or (`prefix`) an invalid folder. */
export function checkKey(key: string, kind: 'key' | 'prefix' = 'key'): void {
  if (kind === 'prefix' && key === '') return;
  const isRight = kind === 'key' ? isKey(key) : key.endsWith('/') && isKey(key.slice(0, -1));
  if (!isRight) throw new LazydiskError('INTERNAL', `${kind} ${JSON.stringify(key)}`);
}
