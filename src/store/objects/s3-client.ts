/**
 * Requests to S3. Calls go through the AWS SDK; reads, which are most of the work and for which the SDK takes a third
 * longer than the request itself, are signed by the SDK's signer and sent over the same connections. Around both is
 * what must not be an error of anybody's: an answer that only asks for other credentials, another host, another region
 * or the right time of day is followed, each once or twice, and the request is made again.
 */
import {
  type $Command,
  S3Client,
  type S3ClientResolvedConfig,
  type ServiceInputTypes,
  type ServiceOutputTypes,
} from '@aws-sdk/client-s3';
import { errorText, LazydiskError } from '../../errors.ts';
import { type HttpAnswer, HttpClient, type HttpClientOptions } from './http-client.ts';
import {
  failureOfAnswer,
  failureOfSdkError,
  isStaleCredentials,
  type S3Failure,
  S3FailureError,
} from './s3-errors.ts';
import type { S3Location } from './s3-url.ts';

const HOPS_MAX = 2;
/** Nobody is asked for other credentials more often than this. */
const REFRESH_MS_MIN = 500;
/** Beyond it S3 refuses; well below it is noise of the line. */
const SKEW_MS_MAX = 240_000;
/** For a call that is no read: this, and as long as its bytes take at the slowest line worth using. */
const CALL_MS = 60_000;
const BYTES_PER_MS_MIN = 64;
const SOCKET_IDLE_MS = 30_000;

const SHA256_OF_NOTHING = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';

type Command<I extends ServiceInputTypes, O extends ServiceOutputTypes> = $Command<
  I,
  O,
  S3ClientResolvedConfig,
  ServiceInputTypes,
  ServiceOutputTypes
>;

type Signer = Awaited<ReturnType<S3ClientResolvedConfig['signer']>>;

export class S3Requests {
  readonly #location: S3Location;
  readonly #http: HttpClient;
  readonly #sdk: S3Client;
  #region: string;
  #signer: { readonly region: string; readonly signer: Signer } | undefined;
  #expiryMs: number | undefined;
  /** Counts credentials: who was refused with older ones than there are now tries again at once. */
  #generation = 0;
  #refreshing: Promise<boolean> | undefined;
  #refreshedAt = Number.NEGATIVE_INFINITY;

  constructor(location: S3Location, options: HttpClientOptions = {}) {
    this.#location = location;
    this.#region = location.region;
    this.#http = new HttpClient(options);
    this.#sdk = new S3Client({
      region: async () => this.#region,
      ...(location.endpoint !== undefined && { endpoint: location.endpoint }),
      forcePathStyle: location.pathStyle,
      maxAttempts: 1,
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      // It would wait for the answer on a connection of its own.
      expectContinueHeader: false,
      requestHandler: {
        httpAgent: this.#http.httpAgent,
        httpsAgent: this.#http.httpsAgent,
        connectionTimeout: this.#http.connectMs,
        socketTimeout: SOCKET_IDLE_MS,
      },
    });
  }

  /** When the credentials that are used expire, in milliseconds since 1970, as far as they say and were used yet. */
  get credentialExpiry(): number | undefined {
    return this.#expiryMs;
  }

  /**
   * An object's bytes, or with HEAD only what is said of it. Throws S3FailureError
   * for an answer that is an error, else UNAVAILABLE, TIMEOUT, ABORTED.
   */
  read(
    method: 'GET' | 'HEAD',
    key: string,
    bytesMax: number,
    signal: AbortSignal | undefined,
  ): Promise<HttpAnswer> {
    return this.#attempt(async (target) => {
      const url = target ?? this.#urlOf(key);
      const answer = await this.#send(method, url, bytesMax, signal);
      if (answer.status === 200) return answer;
      if (method === 'GET' || answer.status === 404)
        throw new S3FailureError(failureOfAnswer(answer, method));
      // Only the body of an error says what it is, and to HEAD there is none.
      const withBody = await this.#send('GET', url, 0, signal);
      if (withBody.status === 200) return withBody;
      throw new S3FailureError(failureOfAnswer(withBody, 'GET'));
    });
  }

  /**
   * What the SDK gives for the command, which `make` makes anew for each try; `bytes` are those of its body. Throws
   * as `read` does.
   */
  call<I extends ServiceInputTypes, O extends ServiceOutputTypes>(
    make: () => Command<I, O>,
    { signal, bytes = 0 }: { signal?: AbortSignal | undefined; bytes?: number },
  ): Promise<O> {
    return this.#attempt(async (target) => {
      const command = make();
      if (target) redirect(command, target);
      const controller = new AbortController();
      const onAbort = () => controller.abort();
      const timer = setTimeout(onAbort, CALL_MS + bytes / BYTES_PER_MS_MIN);
      if (signal?.aborted) onAbort();
      signal?.addEventListener('abort', onAbort, { once: true });
      try {
        return await this.#sdk.send(command, { abortSignal: controller.signal });
      } catch (cause) {
        if (signal?.aborted) throw new LazydiskError('ABORTED', 'cancelled', { cause });
        const failure = failureOfSdkError(cause);
        if (failure) throw new S3FailureError(failure);
        const isLate = controller.signal.aborted || (cause as Error).name === 'TimeoutError';
        throw new LazydiskError(isLate ? 'TIMEOUT' : 'UNAVAILABLE', errorText(cause), { cause });
      } finally {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
      }
    });
  }

  close(): void {
    this.#sdk.destroy();
    this.#http.close();
  }

  /** Makes the request again where its answer asks for no more than that. `target` is where it was sent to. */
  async #attempt<T>(request: (target: URL | undefined) => Promise<T>): Promise<T> {
    let target: URL | undefined;
    let hops = 0;
    let isRefreshed = false;
    let isSkewed = false;
    for (;;) {
      const generation = this.#generation;
      const region = this.#region;
      try {
        return await request(target);
      } catch (error) {
        if (!(error instanceof S3FailureError)) throw error;
        const { failure } = error;
        const next = this.#redirection(failure, target);
        if ((next || this.#learnRegion(failure, region)) && hops < HOPS_MAX) {
          hops++;
          target = next;
        } else if (!isSkewed && this.#learnTime(failure)) isSkewed = true;
        else if (!isRefreshed && isStaleCredentials(failure) && (await this.#refresh(generation)))
          isRefreshed = true;
        else throw error;
      }
    }
  }

  async #send(
    method: 'GET' | 'HEAD',
    url: URL,
    bytesMax: number,
    signal: AbortSignal | undefined,
  ): Promise<HttpAnswer> {
    const headers = await this.#sign(method, url);
    const { protocol, hostname, port, pathname, search } = url;
    const target = { protocol, hostname, port, path: `${pathname}${search}` };
    return this.#http.request({ method, url: target, headers, bytesMax, signal });
  }

  /** Where to go instead; never from encrypted to plain. */
  #redirection({ status, location }: S3Failure, from: URL | undefined): URL | undefined {
    if (![301, 302, 307, 308].includes(status) || location === undefined) return undefined;
    const base = from ?? this.#urlOf('');
    const next = URL.canParse(location, base) ? new URL(location, base) : undefined;
    if (!next || !/^https?:$/.test(next.protocol)) return undefined;
    return base.protocol === 'https:' && next.protocol === 'http:' ? undefined : next;
  }

  /** Whether the bucket is in another region than the one that the request was for. */
  #learnRegion({ status, region }: S3Failure, used: string): boolean {
    if (region === undefined || (status !== 301 && status !== 307 && status !== 400) || region === used)
      return false;
    this.#region = region;
    return true;
  }

  /** Whether our clock, as far as it was corrected, was far from the store's. */
  #learnTime({ status, code, dateMs }: S3Failure): boolean {
    if (dateMs === undefined || (status !== 403 && status !== 400)) return false;
    const { config } = this.#sdk;
    const offset = dateMs - Date.now();
    // The SDK corrects itself before anybody sees the error.
    const isOff = Math.abs(offset - config.systemClockOffset) > SKEW_MS_MAX;
    if (isOff) config.systemClockOffset = offset;
    return isOff || code === 'RequestTimeTooSkewed';
  }

  /** Whether there are other credentials than those of `generation`. One asks for all who were refused. */
  async #refresh(generation: number): Promise<boolean> {
    if (generation !== this.#generation) return true;
    if (!this.#refreshing && performance.now() - this.#refreshedAt < REFRESH_MS_MIN) return false;
    this.#refreshing ??= this.#renew().finally(() => {
      this.#refreshing = undefined;
      this.#refreshedAt = performance.now();
    });
    return this.#refreshing;
  }

  async #renew(): Promise<boolean> {
    const { credentials } = this.#sdk.config;
    try {
      const before = await credentials();
      const after = await credentials({ forceRefresh: true });
      const isOther = after.accessKeyId !== before.accessKeyId || after.sessionToken !== before.sessionToken;
      if (isOther) this.#generation++;
      return isOther;
    } catch {
      // Then the answer stands that made us ask.
      return false;
    }
  }

  #urlOf(key: string): URL {
    const { bucket, endpoint, pathStyle } = this.#location;
    const { url } = this.#sdk.config.endpointProvider({
      Bucket: bucket,
      Region: this.#region,
      ForcePathStyle: pathStyle,
      ...(endpoint !== undefined && { Endpoint: endpoint }),
    });
    // Of what keys are made of, nothing else means something in a URL.
    return new URL(`${url.href.replace(/\/$/, '')}/${key.replaceAll('%', '%25')}`);
  }

  async #sign(
    method: string,
    { protocol, host, hostname, pathname, searchParams }: URL,
  ): Promise<Record<string, string>> {
    const { config } = this.#sdk;
    const region = this.#region;
    if (!this.#signer || this.#signer.region !== region)
      this.#signer = { region, signer: await newSigner(config, region) };
    try {
      const { expiration } = await config.credentials();
      this.#expiryMs = expiration?.getTime();
      const request = {
        method,
        protocol,
        hostname,
        path: pathname,
        query: Object.fromEntries(searchParams),
        headers: { host, 'x-amz-content-sha256': SHA256_OF_NOTHING },
      };
      const signingDate = new Date(Date.now() + config.systemClockOffset);
      const options = { signingDate, signingRegion: region, signingService: 's3' };
      return (await this.#signer.signer.sign(request, options)).headers;
    } catch (cause) {
      throw new LazydiskError('UNAVAILABLE', `no credentials: ${errorText(cause)}`, { cause });
    }
  }
}

function newSigner(config: S3ClientResolvedConfig, signingRegion: string): Promise<Signer> {
  return config.signer({ name: 'sigv4', signingName: 's3', signingRegion, properties: {} });
}

/** Sends the command to `target`, signed for it, in place of where the SDK would. */
function redirect<I extends ServiceInputTypes, O extends ServiceOutputTypes>(
  command: Command<I, O>,
  target: URL,
): void {
  command.middlewareStack.add(
    (next) => (args) => {
      const request = args.request as Record<string, unknown> & { headers: Record<string, string> };
      const { protocol, hostname, port, pathname, searchParams, host } = target;
      Object.assign(request, {
        protocol,
        hostname,
        port: port === '' ? undefined : Number(port),
        path: pathname,
        query: Object.fromEntries(searchParams),
      });
      request.headers.host = host;
      return next(args);
    },
    { step: 'build', name: 'redirect' },
  );
}
