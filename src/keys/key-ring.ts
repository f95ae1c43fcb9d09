/**
 * The tenant keys of this host, from files and from KMS. Files are read at startup. Keys of KMS are in the store,
 * wrapped, and KMS decrypts one when an image needs it. The decrypted key is kept for a bounded time, so that access
 * revoked in KMS ends here too, without a restart. What is open by then stays open: an attached drive has its chunk
 * keys.
 */
import { LRUCache } from 'lru-cache';
import { errorText, LazydiskError, withMessage } from '../errors.ts';
import { KEY_ID, TenantKey } from '../format/keys.ts';
import { encryptionContext, type WrappedKey } from '../format/wrapped-key.ts';
import { loadKeyFile } from './key-file.ts';
import { type KeySpec, keySpecText, parseKeySpec } from './key-spec.ts';
import { AwsKms, type AwsKmsOptions } from './kms.ts';
import {
  listWrappedKeys,
  readWrappedKey,
  type WrappedKeyListing,
  type WrappedKeyStore,
} from './wrapped-keys.ts';

/** Wrapped keys whose objects are cached, so that a list reads only new ones. */
const OBJECTS_MAX = 1024;

export interface KeyRingOptions {
  /** Where wrapped keys are. KMS specs need it. */
  readonly wrappedKeys?: WrappedKeyStore;
  /**
   * Keys from KMS that are kept in the clear at once; beyond that, the least recently used one is dropped and decrypted
   * again when needed.
   */
  readonly keysMax?: number;
  /** How long such a key is kept, in milliseconds from KMS's response, used or not. */
  readonly ttlMs?: number;
  readonly kms?: AwsKmsOptions;
}

/** A source of keys: a file, read at startup, or all keys that KMS can decrypt under this ARN. */
type Source =
  | { readonly kind: 'file'; readonly spec: string; readonly key: TenantKey }
  | { readonly kind: 'awskms'; readonly spec: string; readonly arn: string };

export class KeyRing {
  readonly #sources: readonly Source[];
  readonly #wrappedKeys: WrappedKeyStore | undefined;
  readonly #kms: AwsKms;
  /** Keys that KMS decrypted. Concurrent callers share one fetch. */
  readonly #opened: LRUCache<string, TenantKey>;
  readonly #objects = new LRUCache<string, WrappedKey>({ max: OBJECTS_MAX });

  private constructor(sources: readonly Source[], options: KeyRingOptions) {
    this.#sources = sources;
    this.#wrappedKeys = options.wrappedKeys;
    this.#kms = new AwsKms(options.kms);
    this.#opened = new LRUCache({
      max: options.keysMax ?? 256,
      ttl: options.ttlMs ?? 5 * 60_000,
      // An expired key is dropped at once, not only when it is next requested.
      ttlAutopurge: true,
      // A caller that waits for a key gets it, even if others have evicted it meanwhile.
      ignoreFetchAbort: true,
      fetchMethod: (id) => this.#open(id),
    });
  }

  /**
   * Returns the ring of `specs` (key-spec.ts); builds seal with the first. Reads the key files; calls neither the store
   * nor KMS. Throws USAGE, KEY for a file that is not a private key file.
   */
  static async open(specs: readonly string[], options: KeyRingOptions = {}): Promise<KeyRing> {
    if (specs.length === 0) throw new LazydiskError('USAGE', 'no key is given');
    const sources: Source[] = [];
    for (const spec of specs.map(parseKeySpec)) sources.push(await openSource(spec, options));
    return new KeyRing(sources, options);
  }

  /** Returns a ring of the given keys. */
  static of(...keys: readonly TenantKey[]): KeyRing {
    return new KeyRing(
      keys.map((key) => ({ kind: 'file', spec: 'in memory', key })),
      {},
    );
  }

  /**
   * The key that builds seal with: that of the first spec; for KMS, the newest of its ARN. Throws KEY if there is none
   * or KMS refuses it, UNAVAILABLE, CORRUPT.
   */
  async primary(): Promise<TenantKey> {
    const source = this.#sources[0]!;
    if (source.kind === 'file') return source.key;
    const newest = (await this.#listed()).findLast(({ key }) => key && isOf(key, source.arn));
    const key = newest && (await this.get(newest.id));
    if (!key) {
      const how = `\`lazydisk key new ${source.spec} --store …\` creates one`;
      throw new LazydiskError('KEY', `${this.#wrappedKeys!.url} has no key of ${source.spec}; ${how}`);
    }
    return key;
  }

  /**
   * Returns the key `id`, or undefined if this host has no such key. Throws KEY if KMS refuses it or it does not match
   * its object, CORRUPT for a corrupt object, UNAVAILABLE if the store or KMS does not respond.
   */
  async get(id: string): Promise<TenantKey | undefined> {
    for (const source of this.#sources) if (source.kind === 'file' && source.key.id === id) return source.key;
    return this.#hasKms() && KEY_ID.test(id) ? this.#opened.fetch(id) : undefined;
  }

  /**
   * Returns the public ids of all keys, in the order of the specs, and within one ARN the newest first; last, those
   * whose objects cannot be read. Calls the store if there are KMS specs, and never KMS.
   */
  async ids(): Promise<string[]> {
    const listed = await this.#listed();
    const ids = this.#sources.flatMap((source) => idsOf(source, listed));
    const unread = listed.filter(({ key }) => !key).map(({ id }) => id);
    return [...new Set([...ids, ...unread])];
  }

  /** The same for a message: `key 0123456789abcdef (file:/etc/key)`. */
  async describe(): Promise<string> {
    const listed = await this.#listed();
    return this.#sources
      .map((source) => {
        const ids = idsOf(source, listed).map((id) => `key ${id}`);
        return `${ids.length > 0 ? ids.join(', ') : 'no key'} (${source.spec})`;
      })
      .join(', ');
  }

  /** Drops the keys of KMS. */
  close(): void {
    this.#opened.clear();
    this.#kms.close();
  }

  #hasKms(): boolean {
    return this.#sources.some(({ kind }) => kind === 'awskms');
  }

  async #listed(): Promise<WrappedKeyListing[]> {
    if (!this.#hasKms()) return [];
    const listed = await listWrappedKeys(this.#wrappedKeys!, this.#objects);
    for (const { key } of listed) if (key) this.#objects.set(key.id, key);
    return listed;
  }

  /** Calls the store and KMS. The object is read again, so that a key removed from the store is gone, too. */
  async #open(id: string): Promise<TenantKey | undefined> {
    const wrapped = await readWrappedKey(this.#wrappedKeys!, id);
    const arn = wrapped && this.#arnFor(wrapped);
    if (!wrapped || arn === undefined) return undefined;
    const { plaintext, keyArn } = await this.#kms
      .decrypt(arn, wrapped.blob, encryptionContext(wrapped))
      .catch((cause) => {
        const moved = arn === wrapped.keyArn ? '' : `; it was encrypted by ${wrapped.keyArn}`;
        throw withMessage(cause, `key ${id}: ${errorText(cause)}${moved}`);
      });
    try {
      const key = TenantKey.parse(plaintext.toString());
      if (key.id === id && key.domain === wrapped.domain && keyArn === wrapped.keyArn) return key;
    } catch {
      // Reported below, without quoting the plaintext.
    } finally {
      plaintext.fill(0);
    }
    throw new LazydiskError('KEY', `key ${id}: what KMS key ${arn} decrypted is not that key`);
  }

  /**
   * Returns the ARN for KMS to decrypt `key` with: the key's own ARN if a spec has it, because an alias may have been
   * moved.
   */
  #arnFor(key: WrappedKey): string | undefined {
    const arns = this.#sources.flatMap((source) => (source.kind === 'awskms' ? [source.arn] : []));
    return [key.keyArn, key.aliasArn].find((arn) => arn !== undefined && arns.includes(arn));
  }
}

async function openSource(spec: KeySpec, options: KeyRingOptions): Promise<Source> {
  const text = keySpecText(spec);
  if (spec.kind === 'file') return { kind: 'file', spec: text, key: await loadKeyFile(spec.path) };
  if (!options.wrappedKeys)
    throw new LazydiskError('USAGE', `key ${text}: such keys are in a store; name one`);
  return { kind: 'awskms', spec: text, arn: spec.arn };
}

function idsOf(source: Source, listed: readonly WrappedKeyListing[]): string[] {
  if (source.kind === 'file') return [source.key.id];
  return listed
    .filter(({ key }) => key && isOf(key, source.arn))
    .map(({ id }) => id)
    .reverse();
}

function isOf(key: WrappedKey, arn: string): boolean {
  return key.keyArn === arn || key.aliasArn === arn;
}
