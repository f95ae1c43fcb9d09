/**
 * Requests to S3: signed, sent over kept connections, and made again where an answer only asks for other credentials,
 * another host, another region or the right time of day, each once or twice, for that must not be anybody's error.
 */

import {
  type HttpAnswer,
  HttpClient,
  type HttpClientOptions,
  type HttpRequest,
  type HttpTarget,
  hostOf,
  targetOf,
} from '../../http-client/client.ts';
import { sha256Of } from '../sha256.ts';
import { S3CredentialSource } from './s3-credentials.ts';
import { bucketUrl } from './s3-endpoint.ts';
import { failureOfAnswer, isStaleCredentials, type S3Failure, S3FailureError } from './s3-errors.ts';
import { encodePart, S3Signer } from './s3-signature.ts';
import type { S3Location } from './s3-url.ts';

const HOPS_MAX = 2;
/** Beyond it S3 refuses; well below it is noise of the line. */
const SKEW_MS_MAX = 240_000;
/** Without an answer, for what may be more work for the store than a read. */
const CALL_STALL_MS = 60_000;
/** An answer that is no object: a page of a list is the largest. */
const ANSWER_BYTES_MAX = 8 * 1024 * 1024;

const SHA256_OF_NOTHING = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';

/** What S3 and its likenesses begin an answer with that has 200 for its status and is an error. */
const ERROR_ROOT = /^\s*(?:<\?xml[^>]*>\s*)?<Error[\s>]/;

export interface S3Call extends Partial<Pick<HttpRequest, 'headers' | 'body' | 'isOnce'>> {
  readonly method: 'GET' | 'PUT' | 'POST' | 'DELETE';
  /** In the bucket; empty for the bucket itself. */
  readonly key: string;
  readonly query?: Readonly<Record<string, string>>;
  /** Of the body, 64 hex digits, where the caller knows it. */
  readonly sha256?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface S3Read extends Pick<HttpRequest, 'bytesMax' | 'signal' | 'into'> {
  readonly method: 'GET' | 'HEAD';
  readonly key: string;
}

/** A request without its URL. */
type Sent = Omit<HttpRequest, 'url' | 'headers'> & Pick<S3Call, 'headers' | 'sha256'>;

export class S3Requests {
  readonly #location: S3Location;
  readonly #http: HttpClient;
  readonly #credentials: S3CredentialSource;
  readonly #signer = new S3Signer();
  #region: string;
  /** Where the bucket is in the region. */
  #bucket: { readonly region: string; readonly target: HttpTarget } | undefined;
  /** What the store's time of day is ahead of ours. */
  #clockOffsetMs = 0;

  constructor(location: S3Location, options: HttpClientOptions = {}) {
    this.#location = location;
    this.#region = location.region;
    this.#http = new HttpClient(options);
    this.#credentials = new S3CredentialSource(() => this.#region);
  }

  /** When the credentials that are used expire, in milliseconds since 1970, as far as they say and were used yet. */
  get credentialExpiry(): number | undefined {
    return this.#credentials.expiryMs;
  }

  /**
   * An object's bytes, or with HEAD only what is said of it. Throws S3FailureError
   * for an answer that is an error, else UNAVAILABLE, TIMEOUT, ABORTED.
   */
  read({ key, method, ...rest }: S3Read): Promise<HttpAnswer> {
    return this.#attempt(pathOf(key), async (url) => {
      const answer = await this.#send(url, { method, ...rest });
      if (answer.status === 200) return answer;
      if (method === 'GET' || answer.status === 404)
        throw new S3FailureError(failureOfAnswer(answer, method));
      // Only the body of an error says what it is, and to HEAD there is none.
      const withBody = await this.#send(url, { method: 'GET', ...rest, bytesMax: 0 });
      if (withBody.status === 200) return withBody;
      throw new S3FailureError(failureOfAnswer(withBody, 'GET'));
    });
  }

  /** Everything that is no read of an object; its answer is good, and not over 8 MiB. Throws as `read` does. */
  async call({ key, query, body, sha256, signal, ...rest }: S3Call): Promise<HttpAnswer> {
    const known = sha256 ?? (body && (await sha256Of(body)));
    const request = {
      ...{ ...rest, body, sha256: known, signal },
      ...{ bytesMax: ANSWER_BYTES_MAX, stallMs: CALL_STALL_MS },
    };
    return this.#attempt(pathOf(key, query), async (url) => {
      const answer = await this.#send(url, request);
      const isGood = answer.status === 200 || answer.status === 204;
      if (!isGood || ERROR_ROOT.test(answer.body.toString('latin1', 0, 1024)))
        throw new S3FailureError(failureOfAnswer(answer, request.method));
      return answer;
    });
  }

  close(): void {
    this.#http.close();
  }

  /** Makes the request again where its answer asks for no more than that. `path` is that in the bucket, with the query. */
  async #attempt<T>(path: string, request: (url: HttpTarget) => Promise<T>): Promise<T> {
    let target: HttpTarget | undefined;
    let hops = 0;
    let isRefreshed = false;
    let isSkewed = false;
    for (;;) {
      const { generation } = this.#credentials;
      const region = this.#region;
      const to = target ?? this.#targetOf(path);
      try {
        return await request(to);
      } catch (error) {
        if (!(error instanceof S3FailureError)) throw error;
        const { failure } = error;
        const next = redirection(failure, to);
        if ((next || this.#learnRegion(failure, region)) && hops < HOPS_MAX) {
          hops++;
          target = next;
        } else if (!isSkewed && this.#learnTime(failure)) isSkewed = true;
        else if (!isRefreshed && isStaleCredentials(failure) && (await this.#credentials.refresh(generation)))
          isRefreshed = true;
        else throw error;
      }
    }
  }

  async #send(
    url: HttpTarget,
    { headers = {}, sha256 = SHA256_OF_NOTHING, ...rest }: Sent,
  ): Promise<HttpAnswer> {
    const credentials = await this.#credentials.get();
    const unsigned = { method: rest.method, url, headers, sha256 };
    const signed = this.#signer.sign(unsigned, credentials, this.#region, Date.now() + this.#clockOffsetMs);
    return this.#http.request({ ...rest, url, headers: signed });
  }

  /** Whether the bucket is in another region than the one that the request was for. */
  #learnRegion({ status, region }: S3Failure, used: string): boolean {
    if (region === undefined || (status !== 301 && status !== 307 && status !== 400) || region === used)
      return false;
    this.#region = region;
    return true;
  }

  /** Whether our clock, as far as it was corrected, was far from the store's when the request was signed. */
  #learnTime({ status, code, dateMs }: S3Failure): boolean {
    if (dateMs === undefined || (status !== 403 && status !== 400)) return false;
    const offsetMs = dateMs - Date.now();
    const isOff = Math.abs(offsetMs - this.#clockOffsetMs) > SKEW_MS_MAX;
    if (isOff) this.#clockOffsetMs = offsetMs;
    // Another request may have corrected it meanwhile.
    return isOff || code === 'RequestTimeTooSkewed';
  }

  #targetOf(path: string): HttpTarget {
    const region = this.#region;
    if (this.#bucket?.region !== region)
      this.#bucket = { region, target: targetOf(new URL(bucketUrl(this.#location, region))) };
    const { target } = this.#bucket;
    return { ...target, path: `${target.path.replace(/\/$/, '')}${path}` };
  }
}

function pathOf(key: string, query?: Readonly<Record<string, string>>): string {
  // Of what keys are made of, nothing else means something in a URL.
  const path = `/${key.replaceAll('%', '%25')}`;
  if (!query) return path;
  const pairs = Object.entries(query).map(([name, value]) => `${name}=${encodePart(value)}`);
  return `${path}?${pairs.join('&')}`;
}

/** Where to go instead; never from encrypted to plain. */
function redirection({ status, location }: S3Failure, from: HttpTarget): HttpTarget | undefined {
  if (![301, 302, 307, 308].includes(status) || location === undefined) return undefined;
  const base = `${from.protocol}//${hostOf(from)}${from.path}`;
  const next = URL.canParse(location, base) ? new URL(location, base) : undefined;
  if (!next || !/^https?:$/.test(next.protocol)) return undefined;
  return from.protocol === 'https:' && next.protocol === 'http:' ? undefined : targetOf(next);
}
