/**
 * The two calls of AWS KMS that are needed: encrypt a tenant's key once, decrypt it when a host needs it. Every failure
 * is either a refusal by KMS (KEY: a retry will not help) or a failure to respond (UNAVAILABLE, after bounded tries).
 * The SDK is loaded at the first call, so hosts with key files never load it; region and endpoint come from the ARN and
 * from the SDK's own AWS_ENDPOINT_URL_KMS, credentials from wherever the SDK finds them.
 */
import type { KMSClient } from '@aws-sdk/client-kms';
import { LazydiskError } from '../errors.ts';
import { KMS_ALIAS_ARN, KMS_KEY_ARN } from '../format/wrapped-key.ts';

/** Most characters of a KMS error that go into a message. */
const MESSAGE_CHARS_MAX = 300;

export interface AwsKmsOptions {
  /** Deadline of one request in milliseconds. */
  readonly requestMs?: number;
  /** Requests for one call, the first one included, if KMS throttles, fails or does not respond. */
  readonly tries?: number;
}

/** `blob` is KMS's ciphertext; `keyArn` is the own ARN of the key that KMS says it used. */
export interface Encrypted {
  readonly blob: Buffer;
  readonly keyArn: string;
}

/** `plaintext` is secret; the caller must overwrite it. */
export interface Decrypted {
  readonly plaintext: Buffer;
  readonly keyArn: string;
}

type Context = Record<string, string>;

export class AwsKms {
  readonly #requestMs: number;
  readonly #tries: number;
  /** One for each region. */
  readonly #clients = new Map<string, KMSClient>();

  constructor(options: AwsKmsOptions = {}) {
    this.#requestMs = options.requestMs ?? 3000;
    this.#tries = options.tries ?? 3;
  }

  /** Throws KEY, UNAVAILABLE; `plaintext` is in no error. */
  async encrypt(arn: string, plaintext: Uint8Array, context: Context): Promise<Encrypted> {
    const { EncryptCommand } = await import('@aws-sdk/client-kms');
    const command = new EncryptCommand({ KeyId: arn, Plaintext: plaintext, EncryptionContext: context });
    const answer = await this.#call(arn, (client, options) => client.send(command, options));
    return { blob: part(arn, answer.CiphertextBlob), keyArn: keyOf(arn, answer.KeyId) };
  }

  /**
   * Decrypts what `encrypt` returned for `arn` and `context`. The request names the key, and KMS refuses a blob of any
   * other, so an attacker cannot substitute a key of their own. Throws KEY, UNAVAILABLE.
   */
  async decrypt(arn: string, blob: Uint8Array, context: Context): Promise<Decrypted> {
    const { DecryptCommand } = await import('@aws-sdk/client-kms');
    const command = new DecryptCommand({ KeyId: arn, CiphertextBlob: blob, EncryptionContext: context });
    const answer = await this.#call(arn, (client, options) => client.send(command, options));
    return { plaintext: part(arn, answer.Plaintext), keyArn: keyOf(arn, answer.KeyId) };
  }

  close(): void {
    for (const client of this.#clients.values()) client.destroy();
    this.#clients.clear();
  }

  async #call<T>(
    arn: string,
    send: (client: KMSClient, options: { abortSignal: AbortSignal }) => Promise<T>,
  ): Promise<T> {
    const client = await this.#client(arn);
    // The client's own timeouts bound one request; this one bounds the whole call, credentials included.
    const abortSignal = AbortSignal.timeout(2 * this.#requestMs * this.#tries);
    try {
      return await send(client, { abortSignal });
    } catch (error) {
      throw failure(arn, error);
    }
  }

  async #client(arn: string): Promise<KMSClient> {
    const region = (KMS_KEY_ARN.exec(arn) ?? KMS_ALIAS_ARN.exec(arn))?.[1];
    if (region === undefined) throw new LazydiskError('INTERNAL', `KMS key ${JSON.stringify(arn)}`);
    const { KMSClient } = await import('@aws-sdk/client-kms');
    const known = this.#clients.get(region);
    if (known) return known;
    const timeouts = {
      connectionTimeout: this.#requestMs,
      requestTimeout: this.#requestMs,
      socketTimeout: this.#requestMs,
      throwOnRequestTimeout: true,
    };
    const client = new KMSClient({ region, maxAttempts: this.#tries, requestHandler: timeouts });
    this.#clients.set(region, client);
    return client;
  }
}

/** The ARN of the key that KMS used. A key has one ARN, so a different ARN is a different key. */
function keyOf(arn: string, answered: string | undefined): string {
  if (answered === undefined || !KMS_KEY_ARN.test(answered) || (KMS_KEY_ARN.test(arn) && answered !== arn))
    throw new LazydiskError('KEY', `KMS key ${arn}: KMS used another key`);
  return answered;
}

/** The bytes of a response; not copied, so that overwriting them leaves no copy behind. */
function part(arn: string, bytes: Uint8Array | undefined): Buffer {
  if (bytes === undefined || bytes.length === 0)
    throw new LazydiskError('UNAVAILABLE', `KMS key ${arn}: KMS responded without a result`);
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** The parts of an SDK error that are used. */
interface SdkError extends Error {
  readonly $metadata?: { readonly httpStatusCode?: number; readonly requestId?: string };
}

function failure(arn: string, thrown: unknown): LazydiskError {
  const error = thrown as SdkError;
  const { httpStatusCode: status, requestId } = error.$metadata ?? {};
  const message = String(error.message).slice(0, MESSAGE_CHARS_MAX);
  // The SDK's error references the connection, with session token and signature, so only its text is kept.
  const cause = new Error(`${error.name}: ${message}${requestId ? ` (request ${requestId})` : ''}`);
  const why = `KMS key ${arn}: ${error.name}: ${message}`;
  if (error.name === 'CredentialsProviderError')
    return new LazydiskError('KEY', `KMS key ${arn}: this host has no AWS credentials: ${message}`, {
      cause,
    });
  return new LazydiskError(isRefusal(error.name, status) ? 'KEY' : 'UNAVAILABLE', why, { cause });
}

/** KMS refuses with 400, also for a bad signature; some gateways with 403. Any other status is not a refusal by KMS. */
function isRefusal(name: string, status: number | undefined): boolean {
  return (status === 400 || status === 403) && !/Throttl|LimitExceeded|TooManyRequests|SlowDown/.test(name);
}
