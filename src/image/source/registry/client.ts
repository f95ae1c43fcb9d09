/**
 * Requests to one registry about one repository: with the authorization that it asks for, and through redirects to
 * wherever it keeps its blobs, without that authorization.
 */
import { LazydiskError, withContext } from '../../../errors.ts';
import { type HttpClient, type HttpStream, targetOf } from '../../../http-client/client.ts';
import { VERSION } from '../../../version.ts';
import { causeCode, ERROR_BYTES_MAX, type ErrorAnswer, errorOfAnswer, refusal } from './answer-error.ts';
import { type AuthEnvironment, findCredential } from './auth-files.ts';
import { Authorizer, type TokenRequest } from './authorizer.ts';
import type { Endpoint } from './endpoint.ts';

export interface Get {
  /** After `/v2/REPOSITORY/`. */
  readonly path: string;
  /**
   * Where an earlier request for the same path was redirected to; tried first, and dropped if it no longer succeeds.
   */
  readonly location?: URL | undefined;
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal: AbortSignal;
}

export interface Answer extends HttpStream {
  /** Where it comes from, if not from the registry itself. */
  readonly location: URL | undefined;
}

const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);
const REDIRECTS_MAX = 5;
/** Bound for a successful response of a token server. */
const TOKEN_ANSWER_BYTES_MAX = 256 * 1024;
/** Error codes of a TLS connection to a server that does not speak TLS. */
const NO_TLS = /^(?:ERR_SSL_WRONG_VERSION_NUMBER|ERR_SSL_PACKET_LENGTH_TOO_LONG|EPROTO)$/;
/** Digests are of the stored bytes, so the transfer must not compress them. */
const COMMON_HEADERS = { 'user-agent': `lazydisk/${VERSION}`, 'accept-encoding': 'identity' };

export class RegistryClient {
  /** `HOST/REPOSITORY`. */
  readonly name: string;
  readonly #endpoint: Endpoint;
  readonly #http: HttpClient;
  readonly #authorizer: Authorizer;
  #origin: Promise<URL> | undefined;

  /** `signal` cancels work that several requests share. */
  constructor(endpoint: Endpoint, http: HttpClient, environment: AuthEnvironment, signal: AbortSignal) {
    this.name = `${endpoint.registry}/${endpoint.repository}`;
    this.#endpoint = endpoint;
    this.#http = http;
    this.#authorizer = new Authorizer({
      repository: endpoint.repository,
      askTokenServer: (request) => this.#askTokenServer(request, signal),
      findCredential: () => findCredential(endpoint, environment, signal),
    });
  }

  /**
   * Returns a successful response, status 200 or 206. Throws NOT_FOUND, OVERLOAD, UNAVAILABLE, TIMEOUT, ABORTED; the
   * message names neither the registry nor what was requested.
   */
  async get(get: Get): Promise<Answer> {
    if (get.location) {
      const [answer, location] = await this.#follow(get.location, get);
      if (isGood(answer.status)) return { ...answer, location };
      // Such URLs are often valid only for minutes.
      await beginningOf(answer);
    }
    return await this.#fromRegistry(get);
  }

  /** Sends the header that the registry asks for; an earlier one may have expired. */
  async #fromRegistry(get: Get): Promise<Answer> {
    const origin = await this.#originUrl(get.signal);
    const url = new URL(`/v2/${this.#endpoint.repository}/${get.path}`, origin);
    for (let isChallenged = false; ; isChallenged = true) {
      const used = this.#authorizer.header;
      const [answer, from] = await this.#follow(url, get, used);
      const isHome = from.origin === origin.origin;
      if (isGood(answer.status)) return { ...answer, location: isHome ? undefined : from };
      const body = await beginningOf(answer);
      const { status, headers } = answer;
      if (status !== 401 || !isHome || isChallenged)
        throw this.#failure({ status, headers, body }, isHome, from);
      await this.#authorizer.answer(headers['www-authenticate'] ?? '', used, origin.protocol === 'http:');
    }
  }

  #failure(answer: ErrorAnswer, isHome: boolean, from: URL): LazydiskError {
    const error = errorOfAnswer(answer);
    // The registry has the blob, and redirects to a new URL the next time.
    if (!isHome)
      return error.retryable
        ? withContext(error, from.host)
        : new LazydiskError('UNAVAILABLE', `${from.host}: ${error.message}`);
    if (answer.status !== 401 && answer.status !== 403) return error;
    return refusal(`${error.message}, ${this.#authorizer.login}`);
  }

  /**
   * Returns the first response that is not a redirect, and its URL. `authorization` is sent only to the first URL's
   * server.
   */
  async #follow(first: URL, { headers, signal }: Get, authorization?: string): Promise<[HttpStream, URL]> {
    let url = first;
    for (let redirects = 0; ; redirects++) {
      const isFirst = url.origin === first.origin;
      const answer = await this.#http.stream({
        method: 'GET',
        url: targetOf(url),
        headers: { ...COMMON_HEADERS, ...headers, ...(isFirst && authorization && { authorization }) },
        signal,
      });
      const { location } = answer.headers;
      if (!REDIRECTS.has(answer.status) || location === undefined) return [answer, url];
      await beginningOf(answer);
      if (redirects === REDIRECTS_MAX) throw refusal(`${url.host}: more than ${REDIRECTS_MAX} redirects`);
      url = redirected(url, location);
    }
  }

  async #askTokenServer(request: TokenRequest, signal: AbortSignal): Promise<Buffer> {
    const { status, headers, body } = await this.#http.request({
      ...request,
      url: targetOf(request.url),
      headers: { ...COMMON_HEADERS, ...request.headers },
      bytesMax: TOKEN_ANSWER_BYTES_MAX,
      signal,
    });
    if (status !== 200) throw errorOfAnswer({ status, headers, body });
    if (body.length > TOKEN_ANSWER_BYTES_MAX) throw new LazydiskError('CORRUPT', 'its response is too long');
    return body;
  }

  /** The URL of the registry, whose scheme may have to be probed first. */
  #originUrl(signal: AbortSignal): Promise<URL> {
    this.#origin ??= this.#findOrigin(signal);
    // After a failure the next caller tries again.
    this.#origin.catch(() => {
      this.#origin = undefined;
    });
    return this.#origin;
  }

  async #findOrigin(signal: AbortSignal): Promise<URL> {
    const { scheme, host } = this.#endpoint;
    if (scheme) return new URL(`${scheme}://${host}`);
    const url = new URL(`https://${host}`);
    try {
      await this.#http.request({
        method: 'GET',
        url: targetOf(new URL('/v2/', url)),
        headers: COMMON_HEADERS,
        bytesMax: ERROR_BYTES_MAX,
        signal,
      });
      return url;
    } catch (error) {
      if (NO_TLS.test(causeCode(error))) return new URL(`http://${host}`);
      throw error;
    }
  }
}

function isGood(status: number): boolean {
  return status === 200 || status === 206;
}

/** Throws UNAVAILABLE for a redirect from TLS to plain HTTP. */
function redirected(from: URL, location: string): URL {
  const url = URL.parse(location, from.href);
  if (url?.protocol === 'https:' || (url?.protocol === 'http:' && from.protocol === 'http:')) return url;
  throw refusal(`${from.host}: it redirects to a URL that is not https`);
}

/** Reads the beginning of a body and drops the rest. A short body frees its connection for the next request. */
async function beginningOf({ body }: HttpStream): Promise<Buffer> {
  const parts: Buffer[] = [];
  let sizeBytes = 0;
  try {
    for await (const part of body as AsyncIterable<Buffer>) {
      parts.push(part);
      sizeBytes += part.length;
      if (sizeBytes > ERROR_BYTES_MAX) break;
    }
  } catch (error) {
    if (error instanceof LazydiskError && error.code === 'ABORTED') throw error;
  }
  return Buffer.concat(parts);
}
