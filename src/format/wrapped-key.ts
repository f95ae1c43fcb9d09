/**
 * A tenant's key as a store may hold it: its text encrypted by AWS KMS, and around that, in the clear, which key it is
 * and which KMS key can decrypt it (FORMAT.md, "Wrapped keys"). The clear fields go into KMS's encryption context, so
 * an object that was edited, or put in another's place, does not decrypt. KMS alone controls access to a key.
 */
import { LazydiskError } from '../errors.ts';
import { DOMAIN_NAME } from './keys.ts';

const KIND = 'lazydisk wrapped key';
const VERSION = 1;

/** Largest wrapped key object; ordinary ones are under 2 KiB. */
export const WRAPPED_KEY_OBJECT_BYTES_MAX = 16 * 1024;

/** A KMS key's own ARN, which never means another key. Group 1 is its region. */
export const KMS_KEY_ARN = /^arn:aws[a-z-]*:kms:([a-z0-9-]+):\d{12}:key\/[A-Za-z0-9-]{1,128}$/;
/** An alias of a KMS key, which its owner may point at another key. Group 1 is its region. */
export const KMS_ALIAS_ARN = /^arn:aws[a-z-]*:kms:([a-z0-9-]+):\d{12}:alias\/[A-Za-z0-9/_-]{1,256}$/;

const BASE64 = /^[A-Za-z0-9+/]{2,}={0,2}$/;
const CREATED = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

export interface WrappedKey {
  /** The tenant key's public id. */
  readonly id: string;
  /** Name of its dedup domain. */
  readonly domain: string;
  /** The KMS key that encrypted it, by its own ARN. */
  readonly keyArn: string;
  /** The alias by which that key was named, if any. */
  readonly aliasArn?: string;
  /** KMS's ciphertext of the key's secret text. */
  readonly blob: Buffer;
  /** When it was created, ISO 8601 in UTC with milliseconds, so that the texts sort by time. */
  readonly created: string;
}

/** The object's bytes. */
export function encodeWrappedKey(key: WrappedKey): Buffer {
  const fields = {
    kind: KIND,
    version: VERSION,
    id: key.id,
    domain: key.domain,
    kms: 'aws',
    keyArn: key.keyArn,
    ...(key.aliasArn !== undefined && { aliasArn: key.aliasArn }),
    blob: key.blob.toString('base64'),
    created: key.created,
  };
  return Buffer.from(`${JSON.stringify(fields, null, 2)}\n`);
}

/** Parses the object of key `id`. Throws CORRUPT for bytes that no writer produces, UNSUPPORTED for another version. */
export function decodeWrappedKey(bytes: Buffer, id: string): WrappedKey {
  if (bytes.length > WRAPPED_KEY_OBJECT_BYTES_MAX) throw corrupt(id, 'it is too large');
  let fields: Record<string, unknown> | null;
  try {
    fields = JSON.parse(bytes.toString()) as Record<string, unknown> | null;
  } catch {
    throw corrupt(id, 'it is not JSON');
  }
  if (typeof fields !== 'object' || fields?.kind !== KIND) throw corrupt(id, `it has no "kind": "${KIND}"`);
  if (fields.version !== VERSION || fields.kms !== 'aws')
    throw new LazydiskError(
      'UNSUPPORTED',
      `wrapped key ${id}: this program does not support its version or its KMS`,
    );
  if (fields.id !== id) throw corrupt(id, 'it belongs to another key');
  const textOf = (name: string, form: RegExp): string => {
    const text = fields[name];
    if (typeof text !== 'string' || !form.test(text)) throw corrupt(id, `it has no valid "${name}"`);
    return text;
  };
  const blobText = textOf('blob', BASE64);
  const blob = Buffer.from(blobText, 'base64');
  if (blob.toString('base64') !== blobText) throw corrupt(id, 'it has no valid "blob"');
  return {
    id,
    domain: textOf('domain', DOMAIN_NAME),
    keyArn: textOf('keyArn', KMS_KEY_ARN),
    ...(fields.aliasArn !== undefined && { aliasArn: textOf('aliasArn', KMS_ALIAS_ARN) }),
    blob,
    created: textOf('created', CREATED),
  };
}

/** What KMS binds the blob to and writes to its audit trail; all of it is public. */
export function encryptionContext(
  key: Pick<WrappedKey, 'id' | 'domain' | 'created'>,
): Record<string, string> {
  return { 'lazydisk:key': key.id, 'lazydisk:domain': key.domain, 'lazydisk:created': key.created };
}

function corrupt(id: string, why: string): LazydiskError {
  return new LazydiskError('CORRUPT', `wrapped key ${id}: ${why}`);
}
