/**
 * The one small interface under every image store: bytes by key, as S3, a directory or a web server have them. What
 * the keys mean is layout.ts's; retries and faults are wrappers. The conformance suite (test/store/objects/objects-suite.ts)
 * runs against each implementation and each wrapper.
 *
 * Contract:
 * - `put` is atomic (readers see nothing, or all of it, or all of what was there before), durable when it resolves, and
 *   visible to every `get` and `head` that starts after that. A `list` may lag behind writes by the store's settle time.
 * - what is not there is undefined, or nothing to delete; a call rejects only when the store could not tell:
 *   UNAVAILABLE, TIMEOUT, ABORTED (by `signal`), NO_SPACE for writes, and OVERLOAD when the store asks for less. What
 *   only a person can change (access denied, no such bucket) is UNAVAILABLE and not retryable.
 * - keys are 1 to 512 characters of `A-Z a-z 0-9 . _ % - /`, in parts between slashes that are not empty, `.` or `..`;
 *   anything else is INTERNAL, since no key comes from outside as it is.
 * - `close` may be called twice; a wrapper closes what it wraps.
 */

import { LazydiskError } from '../../errors.ts';

export interface ObjectInfo {
  readonly key: string;
  readonly sizeBytes: number;
  /** When the object was written, by the store's own clock, in milliseconds since 1970. Seconds may be all it knows. */
  readonly modifiedMs: number;
}

export interface ObjectBytes {
  /** Of an object over `bytesMax`, that much and one byte more: too long for whoever checks it next. */
  readonly bytes: Buffer;
  /** Opaque; another content has another version. For `ifVersion`. */
  readonly version: string;
}

export interface ObjectOptions {
  readonly signal?: AbortSignal;
}

export interface GetOptions extends ObjectOptions {
  /**
   * Memory that `bytes` may lie in if they fit, up to the whole of it; else they have their own. It must not be used for
   * anything else until the call has settled, after which the store does not touch it.
   */
  readonly into?: Buffer | undefined;
}

export interface PutOptions extends ObjectOptions {
  /**
   * Write only over this version (null: only where nothing is), else reject with BUSY. A store that cannot compare and
   * set ignores it. After a retried write BUSY may also mean that the first try came through after all.
   */
  readonly ifVersion?: string | null;
  /** SHA-256 of the bytes, 64 hex digits, where the caller knows it; S3 signs it, and need not compute it then. */
  readonly sha256?: string;
}

export interface ListOptions extends ObjectOptions {
  /** Objects a page at most; pages may be shorter, and empty. */
  readonly pageMax?: number;
  /**
   * Folders in the folder are of interest, and not what lies in them: each may come as one key that ends in a slash, 0
   * bytes long. A hint, to which a store need pay no heed.
   */
  readonly shallow?: boolean;
}

export interface ObjectStore {
  /** As the user wrote it, without secrets; for messages. */
  readonly url: string;
  /** False for a store that is only read: then it cannot be listed either. */
  readonly isWritable: boolean;
  /** True where `head` is a call of this machine's kernel, and no round trip that a listing could save. */
  readonly isLocal?: boolean;
  /** How long a call is tried again while the store does not answer, in milliseconds, for who gives calls up sooner. */
  readonly retryForMs?: number | undefined;
  /** The same store, where calls are tried again here: for whoever decides themselves when to ask again. */
  readonly withoutRetries?: ObjectStore;
  /** When the credentials in use expire, in milliseconds since 1970; undefined if they do not, or before the first read. */
  readonly credentialExpiry?: number | undefined;

  get(key: string, bytesMax: number, options?: GetOptions): Promise<ObjectBytes | undefined>;
  head(key: string, options?: ObjectOptions): Promise<ObjectInfo | undefined>;
  /** `bytes` must stay untouched until this resolves. */
  put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<void>;
  /** Within the store, the bytes not passing through here where that can be. False if there is nothing at `from`. */
  copy(from: string, to: string, options?: ObjectOptions): Promise<boolean>;
  /** All of `keys`, any number; those that are not there are no error. */
  delete(keys: readonly string[], options?: ObjectOptions): Promise<void>;
  /**
   * Pages of everything whose key starts with `prefix` (a whole folder, ending in a slash; '' for the whole store), in no
   * certain order.
   */
  list(prefix: string, options?: ListOptions): AsyncIterable<readonly ObjectInfo[]>;
  /**
   * The time now by the clock that gives objects their times, in milliseconds since 1970. Whole seconds, rounded down, may
   * be all that the store tells.
   */
  nowMs(options?: ObjectOptions): Promise<number>;
  /** Whether `ifVersion` is kept to. May ask the store, once. */
  canCompareAndSet(): Promise<boolean>;

  close(): Promise<void>;
}

const KEY_PART = /^[A-Za-z0-9._%-]+$/;

export function isKey(text: string): boolean {
  const parts = text.split('/');
  return text.length <= 512 && parts.every((part) => KEY_PART.test(part) && part !== '.' && part !== '..');
}

/** Throws INTERNAL for what is no key, or (`prefix`) no folder of keys. */
export function checkKey(key: string, kind: 'key' | 'prefix' = 'key'): void {
  if (kind === 'prefix' && key === '') return;
  const isRight = kind === 'key' ? isKey(key) : key.endsWith('/') && isKey(key.slice(0, -1));
  if (!isRight) throw new LazydiskError('INTERNAL', `${kind} ${JSON.stringify(key)}`);
}
