/**
 * GET and HEAD over connections that are kept: a whole answer in one buffer of the right size, or an error that says
 * what was wrong with it. No answer is given that is shorter than it said it is. In place of a deadline, which a big
 * object and a slow line would need to be long, somebody looks every few seconds whether bytes still come.
 */
import http, { type IncomingHttpHeaders, type IncomingMessage } from 'node:http';
import https from 'node:https';
import type { LookupFunction } from 'node:net';
import { errorText, LazydiskError } from '../../errors.ts';

const SOCKETS_MAX = 64;
/** Of an answer that is an error. */
const ERROR_BYTES_MAX = 64 * 1024;
/** What must come within `stallMs`: anybody who sends less is as good as dead. */
const STALL_BYTES_MIN = 16 * 1024;

export interface HttpClientOptions {
  /** For a connection, TLS included. Default 3 s. */
  readonly connectMs?: number;
  /** Without an answer, or with hardly any bytes of it. Default 10 s. */
  readonly stallMs?: number;
  /** Of host names; for tests. */
  readonly lookup?: LookupFunction;
}

export interface HttpRequest {
  readonly method: 'GET' | 'HEAD';
  readonly url: HttpTarget;
  readonly headers: Record<string, string>;
  /** Of a body over it, that much and one byte more is read. */
  readonly bytesMax: number;
  readonly signal: AbortSignal | undefined;
}

/** A URL whose path is sent as it is. */
export interface HttpTarget {
  readonly protocol: string;
  /** An IPv6 address in brackets. */
  readonly hostname: string;
  /** Empty for the protocol's own. */
  readonly port: string;
  /** With the query, if any. */
  readonly path: string;
}

export interface HttpAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

export class HttpClient {
  readonly httpAgent: http.Agent;
  readonly httpsAgent: https.Agent;
  readonly connectMs: number;
  readonly #stallMs: number;

  constructor({ connectMs = 3_000, stallMs = 10_000, lookup }: HttpClientOptions = {}) {
    const options = { keepAlive: true, maxSockets: SOCKETS_MAX, maxTotalSockets: 2 * SOCKETS_MAX };
    this.httpAgent = new http.Agent({ ...options, ...(lookup && { lookup }) });
    this.httpsAgent = new https.Agent({ ...options, ...(lookup && { lookup }) });
    this.connectMs = connectMs;
    this.#stallMs = stallMs;
  }

  /** Throws UNAVAILABLE, TIMEOUT, ABORTED, with the host in the text and nothing else of the request. */
  async request(request: HttpRequest): Promise<HttpAnswer> {
    try {
      return await this.#once(request);
    } catch (error) {
      // A server may close a connection that was idle at the moment when it is used again.
      if (error instanceof StaleSocketError) return this.#once(request);
      throw error;
    }
  }

  close(): void {
    this.httpAgent.destroy();
    this.httpsAgent.destroy();
  }

  #once({ method, url, headers, bytesMax, signal }: HttpRequest): Promise<HttpAnswer> {
    return new Promise((resolve, reject) => {
      const host = `${url.hostname}${url.port && `:${url.port}`}`;
      if (signal?.aborted) {
        reject(new LazydiskError('ABORTED', `${host}: cancelled`));
        return;
      }
      const isTls = url.protocol === 'https:';
      const request = (isTls ? https : http).request({
        method,
        agent: isTls ? this.httpsAgent : this.httpAgent,
        hostname: url.hostname.replace(/^\[(.*)\]$/, '$1'),
        ...(url.port !== '' && { port: url.port }),
        path: url.path,
        headers,
      });
      let received = 0;
      let timer: NodeJS.Timeout | undefined;
      const stop = () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
      };
      const fail = (error: LazydiskError) => {
        stop();
        reject(error);
        request.destroy();
      };
      const onAbort = () => fail(new LazydiskError('ABORTED', `${host}: cancelled`));
      signal?.addEventListener('abort', onAbort, { once: true });

      // From the time that there is a socket: before, the request waits for others of ours.
      request.on('socket', (socket) => {
        const watchFlow = () => {
          const before = received;
          timer = setTimeout(() => {
            if (received - before >= STALL_BYTES_MIN) watchFlow();
            else fail(new LazydiskError('TIMEOUT', `${host}: no more bytes, ${received} came`));
          }, this.#stallMs);
        };
        if (!socket.connecting) {
          watchFlow();
          return;
        }
        timer = setTimeout(
          () => fail(new LazydiskError('TIMEOUT', `${host}: no connection within ${this.connectMs} ms`)),
          this.connectMs,
        );
        socket.once(isTls ? 'secureConnect' : 'connect', () => {
          clearTimeout(timer);
          watchFlow();
        });
      });
      request.on('error', (cause) => {
        const isStale = request.reusedSocket && received === 0 && isReset(cause);
        fail(
          new (isStale ? StaleSocketError : LazydiskError)('UNAVAILABLE', `${host}: ${errorText(cause)}`, {
            cause,
          }),
        );
      });
      request.on('response', (response) => {
        const status = response.statusCode ?? 0;
        const isGood = status >= 200 && status < 300;
        const body = new Body(response, isGood ? bytesMax : ERROR_BYTES_MAX, method === 'HEAD');
        const finish = () => {
          stop();
          resolve({ status, headers: response.headers, body: body.bytes() });
        };
        response.on('data', (part: Buffer) => {
          received += part.length;
          if (!body.add(part)) return;
          finish();
          // There is more than anybody wants.
          response.destroy();
        });
        response.on('end', () => {
          if (body.isWhole && response.complete) finish();
          else fail(new LazydiskError('UNAVAILABLE', `${host}: answer truncated, ${body.text}`));
        });
        // Of a connection that breaks under the answer; after the end it says nothing.
        response.on('error', (cause) =>
          fail(
            new LazydiskError('UNAVAILABLE', `${host}: answer truncated, ${body.text}: ${errorText(cause)}`, {
              cause,
            }),
          ),
        );
      });
      request.end();
    });
  }
}

/** The connection was closed before it was used. */
class StaleSocketError extends LazydiskError {}

/** Collects up to `bytesMax` + 1 bytes. */
class Body {
  readonly #lengthBytes: number | undefined;
  /** Of the length that it will have if that is known: in place. */
  readonly #whole: Buffer | undefined;
  readonly #parts: Buffer[] = [];
  readonly #wanted: number;
  #filled = 0;
  #received = 0;

  constructor({ headers }: IncomingMessage, bytesMax: number, isHead: boolean) {
    const length = headers['content-length'];
    this.#lengthBytes = isHead ? 0 : length === undefined ? undefined : Number(length);
    this.#wanted = Math.min(bytesMax + 1, this.#lengthBytes ?? Number.POSITIVE_INFINITY);
    if (this.#lengthBytes !== undefined) this.#whole = Buffer.allocUnsafe(this.#wanted);
  }

  /** True once that is enough, and not all. */
  add(part: Buffer): boolean {
    this.#received += part.length;
    const rest = this.#wanted - this.#filled;
    const used = part.length > rest ? part.subarray(0, rest) : part;
    if (this.#whole) used.copy(this.#whole, this.#filled);
    else this.#parts.push(used);
    this.#filled += used.length;
    return this.#filled === this.#wanted && this.#wanted !== this.#lengthBytes;
  }

  get isWhole(): boolean {
    return this.#lengthBytes === undefined || this.#received === this.#lengthBytes;
  }

  /** How much came. */
  get text(): string {
    return `${this.#received} of ${this.#lengthBytes ?? 'unknown many'} bytes`;
  }

  bytes(): Buffer {
    return this.#whole ?? Buffer.concat(this.#parts);
  }
}

function isReset(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ECONNRESET' || code === 'EPIPE';
}
