/**
 * Objects on a web server: a store that was copied there, read with plain GETs. It cannot be written or listed. Nothing
 * that the server sends is trusted, except the length.
 */
import { LazydiskError, withContext } from '../../errors.ts';
import {
  type HttpAnswer,
  HttpClient,
  type HttpClientOptions,
  type HttpRequest,
  targetOf,
} from '../../http-client/client.ts';
import { HashedBytes } from './hashed-bytes.ts';
import {
  checkKey,
  type GetOptions,
  type ObjectBytes,
  type ObjectInfo,
  type ObjectOptions,
  type ObjectStore,
} from './object-store.ts';

const REDIRECTS_MAX = 5;
const REDIRECT_STATUSES: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

export class HttpObjects implements ObjectStore {
  readonly url: string;
  readonly isWritable = false;
  /** With a trailing slash in its path, and without credentials. */
  readonly #base: URL;
  readonly #authorization: string | undefined;
  readonly #http: HttpClient;

  /**
   * `url` is `https://HOST/PATH` or `http://HOST/PATH`, with `USER:PASSWORD@` for basic authentication. Throws USAGE.
   */
  constructor(url: string, options: HttpClientOptions = {}) {
    const base = URL.canParse(url) ? new URL(url) : undefined;
    if (!base || !/^https?:$/.test(base.protocol)) throw usage('want https://HOST/PATH');
    if (base.search !== '' || base.hash !== '') throw usage('want it without "?" and "#"');
    this.#authorization = authorizationOf(base);
    base.username = '';
    base.password = '';
    this.url = base.href;
    if (!base.pathname.endsWith('/')) base.pathname += '/';
    this.#base = base;
    this.#http = new HttpClient(options);
  }

  /** Throws UNAVAILABLE, TIMEOUT, OVERLOAD, ABORTED. */
  async get(key: string, bytesMax: number, options: GetOptions = {}): Promise<ObjectBytes | undefined> {
    const answer = await this.#read('GET', key, bytesMax, options);
    return answer && new HashedBytes(answer.body);
  }

  /** Throws as `get` does. Without a Last-Modified header, the object's time is 1970. */
  async head(key: string, options: ObjectOptions = {}): Promise<ObjectInfo | undefined> {
    const answer = await this.#read('HEAD', key, 0, options);
    if (!answer) return undefined;
    const { 'content-length': length, 'last-modified': modified } = answer.headers;
    if (length === undefined) throw this.#failure(key, 'the server does not say how long it is');
    return { key, sizeBytes: Number(length), modifiedMs: Date.parse(modified ?? '') || 0 };
  }

  put(): Promise<void> {
    return Promise.reject(this.#unsupported());
  }

  copy(): Promise<boolean> {
    return Promise.reject(this.#unsupported());
  }

  delete(): Promise<void> {
    return Promise.reject(this.#unsupported());
  }

  // biome-ignore lint/correctness/useYield: it has no pages to give
  async *list(): AsyncGenerator<readonly ObjectInfo[]> {
    throw this.#unsupported();
  }

  nowMs(): Promise<number> {
    return Promise.reject(this.#unsupported());
  }

  async canCompareAndSet(): Promise<boolean> {
    return false;
  }

  async close(): Promise<void> {
    this.#http.close();
  }

  async #read(
    method: 'GET' | 'HEAD',
    key: string,
    bytesMax: number,
    options: GetOptions,
  ): Promise<HttpAnswer | undefined> {
    checkKey(key);
    let url = new URL(`${this.#base.href}${key.replaceAll('%', '%25')}`);
    for (let hops = 0; ; hops++) {
      const answer = await this.#send(key, url, {
        method,
        bytesMax,
        into: options.into,
        signal: options.signal,
      });
      const { status, headers } = answer;
      if (status === 404 || status === 410) return undefined;
      if (status === 200) {
        const encoding = headers['content-encoding'] ?? 'identity';
        if (encoding === 'identity') return answer;
        throw this.#refused(key, `it comes encoded as ${JSON.stringify(encoding)}`);
      }
      if (!REDIRECT_STATUSES.has(status)) throw this.#failureOfStatus(key, status);
      const next = this.#redirection(key, url, headers.location, hops);
      // Web servers redirect this way for a folder, which is never a key.
      if (next.href === `${url.href}/`) return undefined;
      url = next;
    }
  }

  async #send(key: string, url: URL, request: Omit<HttpRequest, 'url' | 'headers'>): Promise<HttpAnswer> {
    const headers: Record<string, string> = { 'accept-encoding': 'identity' };
    // Other hosts must not see the password.
    if (this.#authorization && url.origin === this.#base.origin) headers.authorization = this.#authorization;
    try {
      return await this.#http.request({ ...request, url: targetOf(url), headers });
    } catch (cause) {
      throw withContext(cause, this.#what(key), 'UNAVAILABLE');
    }
  }

  #redirection(key: string, from: URL, location: string | undefined, hops: number): URL {
    const next = URL.canParse(location ?? '', from) ? new URL(location ?? '', from) : undefined;
    const refused = (why: string) => this.#refused(key, why);
    if (!location || !next || !/^https?:$/.test(next.protocol)) throw refused('a redirect to nowhere');
    if (from.protocol === 'https:' && next.protocol === 'http:')
      throw refused('a redirect from https to http');
    if (hops === REDIRECTS_MAX) throw refused(`more than ${REDIRECTS_MAX} redirects`);
    return next;
  }

  #failureOfStatus(key: string, status: number): LazydiskError {
    const text = `${this.#what(key)}: the server answers ${status}`;
    if (status === 429 || status === 503) return new LazydiskError('OVERLOAD', text);
    const isFinal = status >= 400 && status < 500 && status !== 408 && status !== 425;
    return new LazydiskError('UNAVAILABLE', text, { retryable: !isFinal });
  }

  #refused(key: string, why: string): LazydiskError {
    return new LazydiskError('UNAVAILABLE', `${this.#what(key)}: ${why}`, { retryable: false });
  }

  #failure(key: string, why: string): LazydiskError {
    return new LazydiskError('UNAVAILABLE', `${this.#what(key)}: ${why}`);
  }

  #what(key: string): string {
    return `${this.url}: cannot read ${key}`;
  }

  #unsupported(): LazydiskError {
    return new LazydiskError('UNSUPPORTED', `${this.url}: a store on a web server can only be read`);
  }
}

function authorizationOf({ username, password }: URL): string | undefined {
  if (username === '' && password === '') return undefined;
  const text = `${decoded(username)}:${decoded(password)}`;
  return `Basic ${Buffer.from(text).toString('base64')}`;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw usage('a user or password with a "%" that stands for nothing');
  }
}

function usage(text: string): LazydiskError {
  return new LazydiskError('USAGE', `store URL http…: ${text}`);
}
