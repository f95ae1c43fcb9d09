/**
 * Requests over persistent connections: a whole response in one buffer of the right size, a body as a stream, or an
 * error that says what went wrong. A response that is shorter than its declared length is an error. Instead of a
 * deadline, which would have to be long for a big object over a slow network, a timer checks every few seconds whether
 * bytes still arrive.
 *
 * It needs a third of the CPU time of undici or node:http for objects as large as chunks; those spend most of it on
 * copies and streams (`npm run bench:origin` compares the whole programs).
 */
import type { LookupFunction } from 'node:net';
import type { Readable } from 'node:stream';
import { LazydiskError } from '../errors.ts';
import { HttpBody } from './body.ts';
import { type HttpConnection, type HttpOrigin, StaleConnectionError } from './connection.ts';
import { HttpPool, type HttpPoolOptions } from './pool.ts';
import { type HttpHeaders, HttpResponse } from './response.ts';

/** Bytes that must move within `stallMs`; a slower peer is treated as hung. */
const STALL_BYTES_MIN = 16 * 1024;

export interface HttpClientOptions {
  /** Timeout for connecting, TLS included. Default 3 s. */
  readonly connectMs?: number;
  /** Timeout without a response, or with hardly any bytes of it. Default 10 s. */
  readonly stallMs?: number;
  /** Certificates in PEM of the authorities that are trusted, instead of the system's. */
  readonly ca?: string;
  /** Resolver of host names; for tests. */
  readonly lookup?: LookupFunction;
}

/** A request whose whole body is wanted, as a stream. */
export interface HttpStreamRequest {
  readonly method: 'GET' | 'HEAD' | 'PUT' | 'POST' | 'DELETE';
  readonly url: HttpTarget;
  /** Names in lower case; `host` and `content-length` may be omitted. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | undefined;
  /** Instead of the client's. */
  readonly stallMs?: number;
  /** Never sent a second time, even if the server seems not to have seen it. */
  readonly isOnce?: boolean;
  readonly signal: AbortSignal | undefined;
}

export interface HttpRequest extends HttpStreamRequest {
  /** Of a longer response body, this many bytes and one more are read. */
  readonly bytesMax: number;
  /** Buffer for the body of a successful response, if it fits. Not touched after the request has settled. */
  readonly into?: Buffer | undefined;
}

/** A URL whose path is sent as it is. */
export interface HttpTarget {
  readonly protocol: string;
  /** An IPv6 address in brackets. */
  readonly hostname: string;
  /** Empty for the protocol's default. */
  readonly port: string;
  /** With the query, if any. */
  readonly path: string;
}

/** The value of the `host` header. */
export function hostOf({ hostname, port }: HttpTarget): string {
  return port === '' ? hostname : `${hostname}:${port}`;
}

export function targetOf({ protocol, hostname, port, pathname, search }: URL): HttpTarget {
  return { protocol, hostname, port, path: `${pathname}${search}` };
}

export interface HttpAnswer {
  readonly status: number;
  readonly headers: HttpHeaders;
  readonly body: Buffer;
}

export interface HttpStream {
  readonly status: number;
  readonly headers: HttpHeaders;
  /**
   * Its bytes as received, whatever the status. Read it to its end or destroy it, because it occupies a connection. A
   * slow consumer makes the server wait. Fails as a request does, with UNAVAILABLE for a truncated body.
   */
  readonly body: Readable;
}

/** Creates the reader of a response that comes over `connection`. */
type Begin = (connection: HttpConnection) => HttpResponse;

export class HttpClient {
  readonly #connectMs: number;
  readonly #stallMs: number;
  readonly #poolOptions: HttpPoolOptions;
  /** By protocol and host. */
  readonly #pools = new Map<string, HttpPool>();
  #isClosed = false;

  constructor({ connectMs = 3_000, stallMs = 10_000, ...options }: HttpClientOptions = {}) {
    this.#connectMs = connectMs;
    this.#stallMs = stallMs;
    this.#poolOptions = options;
  }

  /** Throws UNAVAILABLE, TIMEOUT, ABORTED; of the request, the message holds only the host. */
  async request(request: HttpRequest): Promise<HttpAnswer> {
    const { method, bytesMax, into } = request;
    const { status, headers, body } = await this.#send(
      request,
      () => new HttpResponse({ isHead: method === 'HEAD', bytesMax, into }),
    );
    return { status, headers, body };
  }

  /**
   * Resolves when status and headers have arrived; `signal` and `stallMs` then apply to the body, the latter only while
   * its consumer wants more. Redirects are not followed. Rejects as `request` does.
   */
  stream(request: HttpStreamRequest): Promise<HttpStream> {
    return new Promise((resolve, reject) => {
      let body: HttpBody | undefined;
      const begin = (connection: HttpConnection): HttpResponse => {
        const sink = new HttpBody({
          pause: () => connection.pause(),
          // Once the response has ended, another request may be using the connection.
          resume: () => response.isDone || connection.resume(),
          abandon: () => response.isDone || connection.destroy(abandonedError(request)),
        });
        body = sink;
        const onHead = () => resolve({ status: response.status, headers: response.headers, body: sink });
        const response = new HttpResponse({ isHead: request.method === 'HEAD', sink, onHead });
        return response;
      };
      this.#send(request, begin).then(
        () => body!.push(null),
        (error) => {
          reject(error);
          body?.destroy(error);
        },
      );
    });
  }

  close(): void {
    this.#isClosed = true;
    for (const pool of this.#pools.values()) pool.close();
  }

  async #send(request: HttpStreamRequest, begin: Begin): Promise<HttpResponse> {
    try {
      return await this.#once(request, begin, false);
    } catch (error) {
      // A server may close an idle connection just as it is used again.
      if (error instanceof StaleConnectionError && !request.isOnce) return this.#once(request, begin, true);
      throw error;
    }
  }

  async #once(request: HttpStreamRequest, begin: Begin, isFresh: boolean): Promise<HttpResponse> {
    const { url, body, signal } = request;
    const host = hostOf(url);
    const head = headOf(request, host);
    if (signal?.aborted) throw new LazydiskError('ABORTED', `${host}: cancelled`);
    if (this.#isClosed) throw new LazydiskError('ABORTED', `${host}: the client is closed`);
    const pool = this.#poolOf(url, host);
    const connection = await pool.take(isFresh, signal);
    const response = begin(connection);
    const onAbort = () => connection.destroy(new LazydiskError('ABORTED', `${host}: cancelled`));
    signal?.addEventListener('abort', onAbort, { once: true });
    // It may have been aborted while we waited for the connection.
    if (signal?.aborted) onAbort();
    let stopWatch: (() => void) | undefined;
    try {
      if (!connection.isConnected) await this.#connected(connection, host);
      stopWatch = watchFlow(connection, request.stallMs ?? this.#stallMs, () =>
        connection.destroy(
          new LazydiskError('TIMEOUT', `${host}: no more bytes, ${response.received} received`),
        ),
      );
      await connection.exchange(head, body, response);
      return response;
    } finally {
      stopWatch?.();
      signal?.removeEventListener('abort', onAbort);
      pool.give(connection);
    }
  }

  async #connected(connection: HttpConnection, host: string): Promise<void> {
    const text = `${host}: no connection within ${this.#connectMs} ms`;
    const timer = setTimeout(() => connection.destroy(new LazydiskError('TIMEOUT', text)), this.#connectMs);
    await connection.connected.finally(() => clearTimeout(timer));
  }

  #poolOf(url: HttpTarget, host: string): HttpPool {
    const name = `${url.protocol}//${host}`;
    let pool = this.#pools.get(name);
    if (pool) return pool;
    // Drop the pools of hosts that redirects once led to.
    for (const [other, { isEmpty }] of this.#pools) if (isEmpty) this.#pools.delete(other);
    pool = new HttpPool(originOf(url, host), this.#poolOptions);
    this.#pools.set(name, pool);
    return pool;
  }
}

function abandonedError({ url }: HttpStreamRequest): LazydiskError {
  return new LazydiskError('ABORTED', `${hostOf(url)}: the rest of the body is not wanted`);
}

function originOf({ protocol, hostname, port }: HttpTarget, host: string): HttpOrigin {
  const isTls = protocol === 'https:';
  return {
    isTls,
    host,
    hostname: hostname.replace(/^\[(.*)\]$/, '$1'),
    port: port === '' ? (isTls ? 443 : 80) : Number(port),
  };
}

/**
 * Calls `onStall` when fewer than STALL_BYTES_MIN have moved within `stallMs` of not being paused, until the returned
 * function is called.
 */
function watchFlow(connection: HttpConnection, stallMs: number, onStall: () => void): () => void {
  let before = connection.movedBytes;
  const look = (): void => {
    const { movedBytes, isPaused, resumedMs } = connection;
    const flowedMs = isPaused ? 0 : performance.now() - resumedMs;
    if (movedBytes - before >= STALL_BYTES_MIN || flowedMs === 0) timer = setTimeout(look, stallMs);
    else if (flowedMs < stallMs) timer = setTimeout(look, stallMs - flowedMs);
    else onStall();
    before = movedBytes;
  };
  let timer = setTimeout(look, stallMs);
  return () => clearTimeout(timer);
}

/** Throws INTERNAL for a path or value that would not form a single header line; the message does not hold it. */
function headOf({ method, url, headers, body }: HttpStreamRequest, host: string): string {
  if (!/^\/[\x21-\x7e]*$/.test(url.path)) throw new LazydiskError('INTERNAL', `${host}: a malformed path`);
  let head = `${method} ${url.path} HTTP/1.1\r\nconnection: keep-alive\r\n`;
  if (headers.host === undefined) head += `host: ${host}\r\n`;
  for (const name of Object.keys(headers)) {
    const value = headers[name]!;
    if (!/^[\x20-\x7e]*$/.test(value)) throw new LazydiskError('INTERNAL', `${host}: a malformed ${name}`);
    head += `${name}: ${value}\r\n`;
  }
  if (body) head += `content-length: ${body.length}\r\n`;
  return `${head}\r\n`;
}
