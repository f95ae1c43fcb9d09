/**
 * The `authorization` header for requests to a registry about one repository. No header is sent before the registry
 * sends a challenge; then it is the login for the repository, if there is one, or a token that a token server issues,
 * with or without the login. Source: distribution-spec, "Authentication"; distribution's "Token Authentication" and
 * "OAuth2 Token Authentication".
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
  /** Returns the body of a token server's response with status 200. Throws UNAVAILABLE, OVERLOAD, TIMEOUT, CORRUPT. */
  askTokenServer(request: TokenRequest): Promise<Buffer>;
  findCredential(): Promise<FoundCredential | undefined>;
}

/** The client id that token servers see. */
const CLIENT_ID = 'lazydisk';
/** Some tokens hold the user's permissions and are long. */
const TOKEN_LENGTH_MAX = 64 * 1024;
const TOKEN = /^[\x21-\x7e]+$/;

const tokenAnswer = openObject({ token: nullish(text()), access_token: nullish(text()) });

export class Authorizer {
  /** The header of the next request; undefined before a challenge. */
  header: string | undefined;
  /** Where the login comes from, for messages. */
  login = 'without a login';
  readonly #options: AuthorizerOptions;
  #found: Promise<FoundCredential | undefined> | undefined;
  #renewal: Promise<string> | undefined;

  constructor(options: AuthorizerOptions) {
    this.#options = options;
  }

  /**
   * To be called when a request with the header `used` got a 401 with this `www-authenticate`: sets another header for
   * the next try. A token server over plain HTTP is used only if `isPlainHttp`. Throws UNAVAILABLE if no header can be
   * obtained, CORRUPT for a response without a token, and as `askTokenServer` and `findCredential` do.
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
      throw refusal('unauthorised, and the registry offers no supported way to log in');
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
    // Only the scope that is needed, whatever the challenge asks for.
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

/** Throws UNAVAILABLE for a token server that must not receive a login. */
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

/** Throws CORRUPT for an invalid token; the message does not contain it. */
function bearerOf(token: string | null | undefined): string {
  if (token && token.length <= TOKEN_LENGTH_MAX && TOKEN.test(token)) return `Bearer ${token}`;
  throw new LazydiskError('CORRUPT', 'there is no valid token in the response of the token server');
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch {
    return undefined;
  }
}
