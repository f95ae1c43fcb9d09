/**
 * An AWS KMS on loopback: Encrypt and Decrypt over KMS's own JSON protocol, with master keys, aliases, key states and
 * an encryption context bound as in KMS. It verifies the signature of each request (sigv4.ts), counts requests, and
 * misbehaves on request.
 */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { type Signer, verifySignature } from './sigv4.ts';

export const KEY_A = 'arn:aws:kms:eu-central-1:111122223333:key/aaaaaaaa-0000-4000-8000-000000000001';
export const KEY_B = 'arn:aws:kms:us-west-2:111122223333:key/bbbbbbbb-0000-4000-8000-000000000002';
export const KEY_C = 'arn:aws:kms:eu-central-1:111122223333:key/cccccccc-0000-4000-8000-000000000003';
export const ALIAS = 'arn:aws:kms:eu-central-1:111122223333:alias/lazydisk';

export const ACCESS_KEY = 'AKIDSTANDIN';
export const SECRET_KEY = 'stand-in/secret+key';
export const SESSION_TOKEN = 'stand-in-session-token';

/** The fault of a request; each applies to `times` requests. */
export type Fault =
  | 'throttling'
  | 'server error'
  | 'key unavailable'
  | 'hang' // no response
  | 'half' // only the head of the response
  | 'reset'
  | 'wrong plaintext' // with another length and content
  | 'no plaintext'
  | 'other key' // reports that it used another key
  | 'not json';

export type KeyState = 'enabled' | 'disabled' | 'denied' | 'deleted' | 'pending deletion';

interface KmsRequest {
  readonly KeyId?: string;
  readonly Plaintext?: string;
  readonly CiphertextBlob?: string;
  readonly EncryptionContext?: Record<string, string>;
}

/** One call that passed the signature check, for tests to inspect. */
export interface KmsCall {
  readonly operation: string;
  readonly keyId: string | undefined;
  readonly context: Record<string, string>;
}

const STATE_ERRORS: Readonly<Record<Exclude<KeyState, 'enabled'>, string>> = {
  disabled: 'DisabledException',
  denied: 'AccessDeniedException',
  deleted: 'NotFoundException',
  'pending deletion': 'KMSInvalidStateException',
};

/** An error as KMS returns it. */
class Refusal extends Error {
  readonly type: string;
  readonly status: number;

  constructor(type: string, message: string, status = 400) {
    super(message);
    this.type = type;
    this.status = status;
  }
}

export class KmsStandIn {
  /** All calls with a valid signature, including those that met a fault. */
  readonly calls: KmsCall[] = [];
  /** Why requests were refused before they were processed. */
  readonly unsigned: string[] = [];
  readonly states = new Map<string, KeyState>();
  readonly aliases = new Map<string, string>([[ALIAS, KEY_A]]);
  readonly #masters = new Map([KEY_A, KEY_B, KEY_C].map((arn) => [arn, randomBytes(32)]));
  readonly #faults: Fault[] = [];
  readonly #server = http.createServer((request, response) => void this.#serve(request, response));

  /** Starts one, points this process's SDK at it with valid credentials, and stops it after the test. */
  static async start(t: Test): Promise<KmsStandIn> {
    const kms = new KmsStandIn();
    kms.#server.listen(0, '127.0.0.1');
    await once(kms.#server, 'listening');
    for (const [name, value] of Object.entries(kms.env())) {
      const before = process.env[name];
      process.env[name] = value;
      t.teardown(() => {
        if (before === undefined) delete process.env[name];
        else process.env[name] = before;
      });
    }
    t.teardown(async () => {
      kms.#server.closeAllConnections();
      kms.#server.close();
      await once(kms.#server, 'close');
    });
    return kms;
  }

  /** The environment for a program that uses it. */
  env(): Record<string, string> {
    return {
      AWS_ENDPOINT_URL_KMS: `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`,
      AWS_ACCESS_KEY_ID: ACCESS_KEY,
      AWS_SECRET_ACCESS_KEY: SECRET_KEY,
      AWS_SESSION_TOKEN: SESSION_TOKEN,
      AWS_EC2_METADATA_DISABLED: 'true',
      AWS_CONFIG_FILE: '/dev/null',
      AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
    };
  }

  fail(fault: Fault, times = 1): void {
    for (let n = 0; n < times; n++) this.#faults.push(fault);
  }

  /** Removes the faults that no request has met yet. */
  heal(): void {
    this.#faults.length = 0;
  }

  count(operation: string): number {
    return this.calls.filter((call) => call.operation === operation).length;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = Buffer.concat(await Array.fromAsync(request as AsyncIterable<Buffer>));
    try {
      const signer = this.#signer(request, body);
      if (request.headers['x-amz-security-token'] !== SESSION_TOKEN)
        throw new Refusal('ExpiredTokenException', 'another session');
      const operation = String(request.headers['x-amz-target']).replace(/^TrentService\./, '');
      const asked = JSON.parse(body.toString()) as KmsRequest;
      this.calls.push({ operation, keyId: asked.KeyId, context: asked.EncryptionContext ?? {} });
      const fault = this.#faults.shift();
      if (fault !== undefined && disturb(fault, request, response)) return;
      if (signer.service !== 'kms' || asked.KeyId?.split(':')[3] !== signer.region)
        throw new Refusal('InvalidArnException', `signed for ${signer.service} in ${signer.region}`);
      send(response, 200, this.#answer(operation, asked, fault));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      send(response, error.status, { __type: error.type, message: error.message });
    }
  }

  #signer(request: IncomingMessage, body: Buffer): Signer {
    const { method = '', url = '', headers } = request;
    try {
      return verifySignature({ method, url, headers, body }, (id) =>
        id === ACCESS_KEY ? SECRET_KEY : undefined,
      );
    } catch (error) {
      const { message } = error as Error;
      this.unsigned.push(message);
      const [type, why] = message.split(': ') as [string, string];
      throw new Refusal(type, why);
    }
  }

  #answer(operation: string, asked: KmsRequest, fault: Fault | undefined): Record<string, string> {
    const arn = this.aliases.get(asked.KeyId ?? '') ?? asked.KeyId ?? '';
    const state = this.#masters.has(arn) ? (this.states.get(arn) ?? 'enabled') : 'deleted';
    if (state !== 'enabled') throw new Refusal(STATE_ERRORS[state], `${arn} is ${state}`);
    const KeyId = fault === 'other key' ? KEY_C : arn;
    const context = asked.EncryptionContext ?? {};
    if (operation === 'Encrypt') {
      const plaintext = Buffer.from(asked.Plaintext ?? '', 'base64');
      if (plaintext.length < 1 || plaintext.length > 4096)
        throw new Refusal('ValidationException', '1 to 4096 bytes');
      return { KeyId, CiphertextBlob: this.#seal(arn, plaintext, context).toString('base64') };
    }
    if (operation !== 'Decrypt') throw new Refusal('UnknownOperationException', operation);
    const blob = Buffer.from(asked.CiphertextBlob ?? '', 'base64');
    const sealedBy = blob.toString('latin1', 1, 1 + (blob[0] ?? 0));
    if (this.#masters.has(sealedBy) && sealedBy !== arn)
      throw new Refusal(
        'IncorrectKeyException',
        'The key ID in the request does not identify a CMK that can',
      );
    const plaintext = this.#open(arn, blob, context);
    if (!plaintext) throw new Refusal('InvalidCiphertextException', 'null');
    if (fault === 'no plaintext') return { KeyId };
    const told = fault === 'wrong plaintext' ? randomBytes(300) : plaintext;
    return { KeyId, Plaintext: told.toString('base64') };
  }

  /** length of the ARN ‖ ARN ‖ nonce ‖ tag ‖ ciphertext: opaque to clients, as KMS's blobs are. */
  #seal(arn: string, plaintext: Buffer, context: Record<string, string>): Buffer {
    const nonce = randomBytes(12);
    const cipher = createCipheriv('aes-256-gcm', this.#masters.get(arn)!, nonce).setAAD(bound(context));
    const sealed = Buffer.concat([cipher.update(plaintext), cipher.final()]);
    return Buffer.concat([Buffer.of(arn.length), Buffer.from(arn), nonce, cipher.getAuthTag(), sealed]);
  }

  #open(arn: string, blob: Buffer, context: Record<string, string>): Buffer | undefined {
    const [nonce, tag, sealed] = [1 + arn.length, 13 + arn.length, 29 + arn.length] as const;
    if (blob.length < sealed || blob[0] !== arn.length) return undefined;
    const decipher = createDecipheriv('aes-256-gcm', this.#masters.get(arn)!, blob.subarray(nonce, tag));
    decipher.setAAD(bound(context)).setAuthTag(blob.subarray(tag, sealed));
    try {
      return Buffer.concat([decipher.update(blob.subarray(sealed)), decipher.final()]);
    } catch {
      return undefined;
    }
  }
}

/**
 * Applies `fault`: misbehaves, or throws its Refusal; returns false if the request is to be processed with a wrong
 * result.
 */
function disturb(fault: Fault, request: IncomingMessage, response: ServerResponse): boolean {
  switch (fault) {
    case 'throttling':
      throw new Refusal('ThrottlingException', 'Rate exceeded');
    case 'server error':
      throw new Refusal('KMSInternalException', 'oh no', 500);
    case 'key unavailable':
      throw new Refusal('KeyUnavailableException', 'try again', 500);
    case 'hang':
      return true;
    case 'half':
      response.writeHead(200, { 'content-type': 'application/x-amz-json-1.1', 'content-length': '500' });
      response.write('{"KeyId":');
      return true;
    case 'reset':
      request.socket.resetAndDestroy();
      return true;
    case 'not json':
      response.writeHead(200, { 'content-type': 'text/html' }).end('<html>captive portal</html>');
      return true;
    default:
      return false;
  }
}

/** The context in canonical form, whatever the order in which it was sent. */
function bound(context: Record<string, string>): Buffer {
  return Buffer.from(JSON.stringify(Object.entries(context).sort(([a], [b]) => (a < b ? -1 : 1))));
}

function send(response: ServerResponse, status: number, body: object): void {
  const bytes = Buffer.from(JSON.stringify(body));
  response.writeHead(status, {
    'content-type': 'application/x-amz-json-1.1',
    'content-length': bytes.length,
    'x-amzn-requestid': '00000000-1111-2222-3333-444444444444',
  });
  response.end(bytes);
}
