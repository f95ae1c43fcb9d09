/**
 * A tenant's key: the wrapping key for the data keys of its manifests, and the secret of the dedup domain whose salts
 * derive its chunk keys (FORMAT.md, "Keys"). Both secrets are private fields, so no log line, error or inspection can
 * show them; the only way out as text is `secretText`, for the key file and for KMS to encrypt (wrapped-key.ts).
 */
import { createCipheriv, createDecipheriv, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { inspect } from 'node:util';
import { errorText, LazydiskError } from '../errors.ts';
import { KEY_BYTES } from './chunk-id.ts';

/** A dedup domain's name; every manifest holds it in the clear. */
export const DOMAIN_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;

/** A key's public name: 16 lower-case hex digits, derived one-way from the wrapping key. */
export const KEY_ID = /^[0-9a-f]{16}$/;

const KEY_FILE_KIND = 'lazydisk key';
const KEY_FILE_VERSION = 1;

const NONCE_BYTES = 12;
const TAG_BYTES = 16;

/** Bytes of a wrapped data key: nonce, AES-256-GCM ciphertext, tag. */
export const WRAPPED_KEY_BYTES = NONCE_BYTES + KEY_BYTES + TAG_BYTES;

export interface NewKeyOptions {
  /** Name of a new dedup domain; default `default`. */
  readonly domain?: string;
  /** Join this key's dedup domain, with its name and secret, instead of creating one: the two keys share chunks. */
  readonly sharing?: TenantKey;
}

export class TenantKey {
  /** Public: names the key in manifests, paths and messages. */
  readonly id: string;
  /** Public: the dedup domain's name. */
  readonly domain: string;
  readonly #wrapKey: Buffer;
  readonly #domainSecret: Buffer;

  private constructor(wrapKey: Buffer, domain: string, domainSecret: Buffer) {
    this.#wrapKey = wrapKey;
    this.#domainSecret = domainSecret;
    this.domain = domain;
    this.id = createHmac('sha256', wrapKey).update('lazydisk key id').digest('hex').slice(0, 16);
  }

  /** Returns a new random key. Throws USAGE for an invalid domain name. */
  static generate(options: NewKeyOptions = {}): TenantKey {
    if (options.sharing) {
      return new TenantKey(randomBytes(KEY_BYTES), options.sharing.domain, options.sharing.#domainSecret);
    }
    const domain = options.domain ?? 'default';
    if (!DOMAIN_NAME.test(domain))
      throw new LazydiskError(
        'USAGE',
        `invalid domain name ${JSON.stringify(domain)}: want ${DOMAIN_NAME.source}`,
      );
    return new TenantKey(randomBytes(KEY_BYTES), domain, randomBytes(KEY_BYTES));
  }

  /** Returns the key that `secretText` wrote. Throws KEY, without quoting any of the text. */
  static parse(text: string): TenantKey {
    let fields: Record<string, unknown>;
    try {
      fields = JSON.parse(text) as Record<string, unknown>;
    } catch {
      throw new LazydiskError('KEY', 'not a lazydisk key: not JSON');
    }
    if (fields === null || typeof fields !== 'object' || fields.kind !== KEY_FILE_KIND)
      throw new LazydiskError('KEY', `not a lazydisk key: no "kind": "${KEY_FILE_KIND}"`);
    if (fields.version !== KEY_FILE_VERSION)
      throw new LazydiskError(
        'KEY',
        `a key of version ${Number(fields.version)}, which this program does not support`,
      );
    if (typeof fields.domain !== 'string' || !DOMAIN_NAME.test(fields.domain))
      throw new LazydiskError('KEY', 'a key without a valid "domain"');
    const key = new TenantKey(secretOf(fields, 'wrapKey'), fields.domain, secretOf(fields, 'domainSecret'));
    if (fields.id !== key.id)
      throw new LazydiskError('KEY', 'a corrupt key: its id does not match its bytes');
    return key;
  }

  /** The text of a key file: the secrets themselves. For that file and KMS only. */
  secretText(): string {
    const fields = {
      kind: KEY_FILE_KIND,
      version: KEY_FILE_VERSION,
      id: this.id,
      wrapKey: this.#wrapKey.toString('base64'),
      domain: this.domain,
      domainSecret: this.#domainSecret.toString('base64'),
    };
    return `${JSON.stringify(fields, null, 2)}\n`;
  }

  /** Whether the two keys are of one dedup domain, by name and secret: images that they seal share chunks. */
  sharesDomain(other: TenantKey): boolean {
    return this.domain === other.domain && timingSafeEqual(this.#domainSecret, other.#domainSecret);
  }

  /** The secret that chunk keys of this domain and epoch are derived with, KEY_BYTES long. */
  salt(epoch: number): Buffer {
    const tail = Buffer.alloc(4);
    tail.writeUInt32LE(epoch);
    return createHmac('sha256', this.#domainSecret)
      .update('lazydisk salt\0')
      .update(this.domain)
      .update('\0')
      .update(tail)
      .digest();
  }

  /**
   * Returns `dataKey` encrypted under this key: nonce ‖ ciphertext ‖ tag, WRAPPED_KEY_BYTES long. `unwrap` needs the
   * same `bound`.
   */
  wrap(dataKey: Uint8Array, bound: Uint8Array): Buffer {
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv('aes-256-gcm', this.#wrapKey, nonce).setAAD(bound);
    return Buffer.concat([nonce, cipher.update(dataKey), cipher.final(), cipher.getAuthTag()]);
  }

  /** Returns the data key in `wrapped`. Throws KEY. */
  unwrap(wrapped: Uint8Array, bound: Uint8Array): Buffer {
    const decipher = createDecipheriv('aes-256-gcm', this.#wrapKey, wrapped.subarray(0, NONCE_BYTES));
    decipher.setAAD(bound).setAuthTag(wrapped.subarray(NONCE_BYTES + KEY_BYTES));
    try {
      const dataKey = decipher.update(wrapped.subarray(NONCE_BYTES, NONCE_BYTES + KEY_BYTES));
      return Buffer.concat([dataKey, decipher.final()]);
    } catch (cause) {
      throw new LazydiskError('KEY', `key ${this.id} does not decrypt this data key: ${errorText(cause)}`, {
        cause,
      });
    }
  }

  toJSON(): { id: string; domain: string } {
    return { id: this.id, domain: this.domain };
  }

  [inspect.custom](): string {
    return `TenantKey ${this.id} (domain ${this.domain})`;
  }
}

function secretOf(fields: Record<string, unknown>, name: string): Buffer {
  const text = fields[name];
  const bytes = typeof text === 'string' ? Buffer.from(text, 'base64') : Buffer.alloc(0);
  if (bytes.length !== KEY_BYTES || bytes.toString('base64') !== text)
    throw new LazydiskError('KEY', `a key whose "${name}" is not ${KEY_BYTES} bytes in base64`);
  return bytes;
}
