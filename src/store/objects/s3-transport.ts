/** Sends one signed request to S3 over a persistent connection, and returns the response, whatever its status. */
import {
  type HttpAnswer,
  HttpClient,
  type HttpClientOptions,
  type HttpRequest,
  type HttpTarget,
} from '../../http-client/client.ts';
import type { S3Clock } from './s3-clock.ts';
import type { S3CredentialSource } from './s3-credentials.ts';
import type { S3Place } from './s3-place.ts';
import { S3Signer } from './s3-signature.ts';

const SHA256_OF_NOTHING = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';

/** A request without its URL. */
export interface S3Message extends Omit<HttpRequest, 'url' | 'headers'> {
  readonly headers?: HttpRequest['headers'];
  /** Of the body, 64 hex digits; omitted if there is none. */
  readonly sha256?: string | undefined;
}

/** What a signature depends on. */
export interface S3Identity {
  readonly credentials: S3CredentialSource;
  readonly clock: S3Clock;
  readonly place: S3Place;
}

export class S3Transport {
  readonly #http: HttpClient;
  readonly #identity: S3Identity;
  readonly #signer = new S3Signer();

  constructor(identity: S3Identity, options: HttpClientOptions) {
    this.#http = new HttpClient(options);
    this.#identity = identity;
  }

  /** Throws UNAVAILABLE, TIMEOUT, ABORTED. */
  async send(
    url: HttpTarget,
    { headers = {}, sha256 = SHA256_OF_NOTHING, ...rest }: S3Message,
  ): Promise<HttpAnswer> {
    const { credentials, clock, place } = this.#identity;
    const unsigned = { method: rest.method, url, headers, sha256 };
    const signed = this.#signer.sign(unsigned, await credentials.get(), place.region, clock.nowMs());
    return this.#http.request({ ...rest, url, headers: signed });
  }

  close(): void {
    this.#http.close();
  }
}
