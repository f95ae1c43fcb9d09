/**
 * The `authorization` header for requests to a registry about one repository. Nothing is sent before the registry asks for
 * it; then the login for the repository, if there is one, or a token that a token server gives for the login or without one.
 * Source: distribution-spec, "Authentication"; distribution's "Token Authentication" and "OAuth2 Token Authentication".
 */
import { errorText, isRetryable, LazydiskError, withMessage } from '../../../errors.ts';
import { nullish, openObject, type TypeOf, text } from '../../../shape.ts';
import { refusal } from './answer-error.ts';
import type { FoundCredential } from './auth-files.ts';
import { type Challenge, parseChallenges } from './challenge.ts';

export interface TokenRequest {
  readonly method: 'GET' | 'POST';
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Buffer;
}

export interface AuthorizerOptions {
  readonly repository: string;
  /** What a token server answers with status 200. Throws UNAVAILABLE, OVERLOAD, TIMEOUT, CORRUPT. */
  askTokenServer(request: TokenRequest): Promise<Buffer>;
  findCredential(): Promise<FoundCredential | undefined>;
}

/** As it knows us. */
const CLIENT_ID = 'lazydisk';
/** Some hold what a user may do, and are long. */
const TOKEN_LENGTH_MAX = 64 * 1024;
const TOKEN = /^[\x21-\x7e]+$/;

const tokenAnswer = openObject({ token: nullish(text()), access_token: nullish(text()) });

export class Authorizer {
  /** Of the next request; undefined before a challenge. */
  header: string | undefined;
  /** Where the login is from, for messages. */
  login = 'without a login';
  readonly #options: AuthorizerOptions;
  #found: Promise<FoundCredential | undefined> | undefined;
  #renewal: Promise<string> | undefined;

  constructor(options: AuthorizerOptions) {
    this.#options = options;
  }

  /**
   * After a request with the header `used` was answered 401 with this `www-authenticate`: sets another header for the next
   * try. A token server over plain HTTP is asked only if `isPlainHttp`. Throws UNAVAILABLE if there is no header to be
   * had, CORRUPT for an answer without a token, and as `askTokenServer` and `findCredential` do.
   */
  async answer(challenges: string, used: string | undefined, isPlainHttp: boolean): Promise<void> {
    // Another request may have met the same challenge before.
    if (this.header !== used) return;
    this.#renewal ??= this.#answer(parseChallenges(challenges), isPlainHttp).finally(() => {
      this.#renewal = undefined;
    });
    this.header = await this.#renewal;
  }

  async #answer(challenges: readonly Challenge[], isPlainHttp: boolean): Promise<string> {
    const bearer = challenges.find(
      ({ scheme, parameters }) => scheme === 'bearer' && parameters.has('realm'),
    );
    if (!bearer && !challenges.some(({ scheme }) => scheme === 'basic')) {
      throw refusal('unauthorised, and no way to log in that lazydisk knows is offered');
    }
    this.#found ??= this.#options.findCredential();
    const found = await this.#found;
    if (found) this.login = `with the login from ${found.from}`;
    if (found?.credential.kind === 'bearer') return bearerOf(found.credential.token);
    if (bearer) return bearerOf(await this.#askForToken(bearer.parameters, found, isPlainHttp));
    const header = basicOf(found);
    if (header) return header;
    throw refusal('unauthorised, and no login for it was found');
  }

  async #askForToken(
    parameters: ReadonlyMap<string, string>,
    found: FoundCredential | undefined,
    isPlainHttp: boolean,
  ): Promise<string | null | undefined> {
    const url = realmOf(parameters, isPlainHttp);
    // No more than is needed, whatever the challenge asks for.
    const words = new URLSearchParams({ scope: `repository:${this.#options.repository}:pull` });
    const service = parameters.get('service');
    if (service !== undefined) words.set('service', service);
    try {
      const bytes = await this.#options.askTokenServer(tokenRequest(url, words, found));
      const json = parseJson(bytes);
      if (tokenAnswer.problem(json, '') !== undefined) return undefined;
      const { token, access_token } = json as TypeOf<typeof tokenAnswer>;
      return token || access_token;
    } catch (error) {
      const login = isRetryable(error) ? '' : `, ${this.login}`;
      throw withMessage(error, `token server ${url.host}: ${errorText(error)}${login}`);
    }
  }
}

/** Throws UNAVAILABLE for a token server that a login is not to be sent to. */
function realmOf(parameters: ReadonlyMap<string, string>, isPlainHttp: boolean): URL {
  const url = URL.parse(parameters.get('realm')!);
  const isAllowed = url?.protocol === 'https:' || (isPlainHttp && url?.protocol === 'http:');
  if (url && isAllowed && url.username === '' && url.password === '') return url;
  throw refusal('it names a token server that is not an https URL');
}

function tokenRequest(url: URL, words: URLSearchParams, found: FoundCredential | undefined): TokenRequest {
  if (found?.credential.kind === 'identity') {
    words.set('grant_type', 'refresh_token');
    words.set('client_id', CLIENT_ID);
    words.set('refresh_token', found.credential.token);
    const headers = { 'content-type': 'application/x-www-form-urlencoded' };
    return { method: 'POST', url, headers, body: Buffer.from(words.toString()) };
  }
  for (const [name, value] of words) url.searchParams.append(name, value);
  const authorization = basicOf(found);
  return { method: 'GET', url, headers: authorization ? { authorization } : {} };
}

function basicOf(found: FoundCredential | undefined): string | undefined {
  if (found?.credential.kind !== 'password') return undefined;
  const { user, password } = found.credential;
  return `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
}

/** Throws CORRUPT for what is not a token; the text does not hold it. */
function bearerOf(token: string | null | undefined): string {
  if (token && token.length <= TOKEN_LENGTH_MAX && TOKEN.test(token)) return `Bearer ${token}`;
  throw new LazydiskError('CORRUPT', 'there is no valid token in the answer of the token server');
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch {
    return undefined;
  }
}
