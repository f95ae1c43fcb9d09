/**
 * The wrapped keys of a store: objects `keys/KEYID.json`, each a tenant key that only KMS can open. They are next to
 * the images, so a host needs only access to the store and to the KMS key.
 */
import { pooled } from '../async/pooled.ts';
import { errorText, LazydiskError, withMessage } from '../errors.ts';
import { KEY_ID, type NewKeyOptions, TenantKey } from '../format/keys.ts';
import {
  decodeWrappedKey,
  encodeWrappedKey,
  encryptionContext,
  KMS_ALIAS_ARN,
  type WrappedKey,
} from '../format/wrapped-key.ts';
import type { AwsKms } from './kms.ts';

/** Objects that are read concurrently. */
const READS_MAX = 8;

/** The part of a store that holds wrapped keys. Reads and writes are as those of manifests. */
export interface WrappedKeyStore {
  /** For messages. */
  readonly url: string;
  /** The bytes of `keys/ID.json`, unverified, or undefined. Throws UNAVAILABLE. */
  getKey(id: string): Promise<Buffer | undefined>;
  /** The ids of all such objects. */
  listKeys(): Promise<string[]>;
  putKey(id: string, bytes: Uint8Array): Promise<void>;
}

/** One object of the list; `problem` says why it is not a valid wrapped key. */
export interface WrappedKeyListing {
  readonly id: string;
  readonly key?: WrappedKey;
  readonly problem?: string;
}

/**
 * Returns the wrapped key `id`, or undefined if the store has none. Throws CORRUPT, UNSUPPORTED, both with the store's
 * name.
 */
export async function readWrappedKey(store: WrappedKeyStore, id: string): Promise<WrappedKey | undefined> {
  const bytes = await store.getKey(id);
  if (!bytes) return undefined;
  try {
    return decodeWrappedKey(bytes, id);
  } catch (cause) {
    throw withMessage(cause, `${errorText(cause)} (in ${store.url})`);
  }
}

/**
 * Returns all wrapped keys of `store`, oldest first, then those that cannot be read: one corrupt object does not hide
 * the others. Those in `known` are not read again. Throws what the store throws.
 */
export async function listWrappedKeys(
  store: WrappedKeyStore,
  known: { get(id: string): WrappedKey | undefined } = new Map(),
): Promise<WrappedKeyListing[]> {
  const ids = (await store.listKeys()).filter((id) => KEY_ID.test(id));
  const listings: WrappedKeyListing[] = [];
  await pooled(READS_MAX, ids, async (id) => {
    const listing = await readListing(store, id, known);
    if (listing) listings.push(listing);
  });
  // '~' sorts after every digit, so an entry without a date is last.
  const order = ({ id, key }: WrappedKeyListing) => `${key?.created ?? '~'} ${id}`;
  return listings.sort((a, b) => (order(a) < order(b) ? -1 : 1));
}

async function readListing(
  store: WrappedKeyStore,
  id: string,
  known: { get(id: string): WrappedKey | undefined },
): Promise<WrappedKeyListing | undefined> {
  try {
    const key = known.get(id) ?? (await readWrappedKey(store, id));
    return key && { id, key };
  } catch (error) {
    if (error instanceof LazydiskError && (error.code === 'CORRUPT' || error.code === 'UNSUPPORTED'))
      return { id, problem: errorText(error) };
    throw error;
  }
}

/**
 * Creates a new random key, has KMS encrypt it under `arn` (a key's ARN or an alias's), and puts it into `store`. Its
 * secrets leave this process only for KMS. Throws KEY, UNAVAILABLE, USAGE for an invalid domain name.
 */
export async function newWrappedKey(
  store: WrappedKeyStore,
  kms: AwsKms,
  arn: string,
  options: NewKeyOptions = {},
): Promise<WrappedKey> {
  const key = TenantKey.generate(options);
  const names = { id: key.id, domain: key.domain, created: new Date().toISOString() };
  const plaintext = Buffer.from(key.secretText());
  try {
    const { blob, keyArn } = await kms.encrypt(arn, plaintext, encryptionContext(names));
    const wrapped: WrappedKey = { ...names, blob, keyArn, ...(KMS_ALIAS_ARN.test(arn) && { aliasArn: arn }) };
    await store.putKey(key.id, encodeWrappedKey(wrapped));
    return wrapped;
  } finally {
    plaintext.fill(0);
  }
}
