/** The requests to S3, and which responses are successful. */
import type { HttpAnswer, HttpClientOptions, HttpRequest } from '../../http-client/client.ts';
import { sha256Of } from '../sha256.ts';
import { S3Clock } from './s3-clock.ts';
import { S3CredentialSource } from './s3-credentials.ts';
import { failureOfAnswer, S3FailureError } from './s3-errors.ts';
import { following } from './s3-following.ts';
import { pathOf, S3Place } from './s3-place.ts';
import { type S3Identity, S3Transport } from './s3-transport.ts';
import type { S3Location } from './s3-url.ts';

/** Maximum time without a response for calls that may take the store longer than a read. */
const CALL_STALL_MS = 60_000;
/** Maximum response that is not an object; a list page is the largest. */
const ANSWER_BYTES_MAX = 8 * 1024 * 1024;

/** The start of an error response that S3 and compatible stores send with status 200. */
const ERROR_ROOT = /^\s*(?:<\?xml[^>]*>\s*)?<Error[\s>]/;

export interface S3Call extends Partial<Pick<HttpRequest, 'headers' | 'body' | 'isOnce'>> {
  readonly method: 'GET' | 'PUT' | 'POST' | 'DELETE';
  /** The key in the bucket; empty for the bucket itself. */
  readonly key: string;
  readonly query?: Readonly<Record<string, string>>;
  /** Of the body, 64 hex digits, if the caller knows it. */
  readonly sha256?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface S3Read extends Pick<HttpRequest, 'bytesMax' | 'signal' | 'into'> {
  readonly method: 'GET' | 'HEAD';
  readonly key: string;
}

export class S3Requests {
  readonly #identity: S3Identity;
  readonly #transport: S3Transport;

  constructor(location: S3Location, options: HttpClientOptions = {}) {
    const place = new S3Place(location);
    const credentials = new S3CredentialSource(() => place.region);
    this.#identity = { place, credentials, clock: new S3Clock() };
    this.#transport = new S3Transport(this.#identity, options);
  }

  /**
   * When the credentials in use expire, in milliseconds since 1970; undefined before first use, or if they do not say.
   */
  get credentialExpiry(): number | undefined {
    return this.#identity.credentials.expiryMs;
  }

  /**
   * An object's bytes, or with HEAD only its headers. Throws S3FailureError for an error response, otherwise
   * UNAVAILABLE, TIMEOUT, ABORTED.
   */
  read({ key, method, ...rest }: S3Read): Promise<HttpAnswer> {
    return following(this.#identity, pathOf(key), async (url) => {
      const answer = await this.#transport.send(url, { method, ...rest });
      if (answer.status === 200) return answer;
      if (method === 'GET' || answer.status === 404)
        throw new S3FailureError(failureOfAnswer(answer, method));
      // Only the body of an error response has the code, and HEAD has no body.
      const withBody = await this.#transport.send(url, { method: 'GET', ...rest, bytesMax: 0 });
      if (withBody.status === 200) return withBody;
      throw new S3FailureError(failureOfAnswer(withBody, 'GET'));
    });
  }

  /** Every call that does not read an object. Returns a successful response of at most 8 MiB. Throws as `read` does. */
  async call({ key, query, body, sha256, signal, ...rest }: S3Call): Promise<HttpAnswer> {
    const known = sha256 ?? (body && (await sha256Of(body)));
    const limits = { bytesMax: ANSWER_BYTES_MAX, stallMs: CALL_STALL_MS };
    const message = { ...rest, ...limits, body, sha256: known, signal };
    return following(this.#identity, pathOf(key, query), async (url) => {
      const answer = await this.#transport.send(url, message);
      const isGood = answer.status === 200 || answer.status === 204;
      if (!isGood || ERROR_ROOT.test(answer.body.toString('latin1', 0, 1024)))
        throw new S3FailureError(failureOfAnswer(answer, rest.method));
      return answer;
    });
  }

  close(): void {
    this.#transport.close();
  }
}
