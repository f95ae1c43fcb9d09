/**
 * One persistent connection to a web server, with one exchange of request and response at a time. The body of a
 * response is read from the socket directly into its buffer (`onread`, also over TLS), so that a chunk costs no extra
 * memory and no copy.
 */
import net, { type LookupFunction } from 'node:net';
import { errorText, LazydiskError } from '../errors.ts';
import { HEAD_BYTES_MAX, type HttpResponse, HttpSyntaxError } from './response.ts';

/** A request body is passed to the socket in pieces, so that progress is visible. */
const PIECE_BYTES = 1024 * 1024;
/** How long an idle connection is kept if the server does not say. */
const IDLE_MS = 30_000;
/** Margin before the server's own timeout, because a request takes time to arrive. */
const IDLE_MARGIN_MS = 1_000;

/** Where a connection goes. */
export interface HttpOrigin {
  readonly isTls: boolean;
  /** An IPv6 address without brackets. */
  readonly hostname: string;
  readonly port: number;
  /** For error texts. */
  readonly host: string;
}

export interface HttpConnectionOptions {
  readonly lookup?: LookupFunction | undefined;
  /** Certificates in PEM of the authorities that are trusted, instead of the system's. */
  readonly ca?: string | undefined;
  /** TLS session of an earlier connection to the same origin, to connect faster. */
  readonly session?: Buffer | undefined;
  onSession?(session: Buffer): void;
  /** Called once, when the connection is closed by either side. */
  onClose(connection: HttpConnection): void;
}

/** The server had closed the connection before it saw the request. */
export class StaleConnectionError extends LazydiskError {}

interface Exchange {
  readonly response: HttpResponse;
  resolve(): void;
  reject(error: LazydiskError): void;
}

export class HttpConnection {
  /** Rejects as `exchange` does. */
  readonly connected: Promise<void>;
  isConnected = false;
  /** Bytes of responses received and of request bodies that the kernel accepted. */
  movedBytes = 0;
  /** Whether reading is paused, because the consumer of the response has not taken what is there. */
  isPaused = false;
  /** When reading last resumed, by performance.now(). */
  resumedMs = Number.NEGATIVE_INFINITY;
  readonly #origin: HttpOrigin;
  readonly #socket: net.Socket;
  /** Its front holds what was read and is not parsed yet. */
  readonly #scratch = Buffer.allocUnsafeSlow(2 * HEAD_BYTES_MAX);
  #filled = 0;
  /** Whether the socket is reading into the response's body. */
  #isInPlace = false;
  #exchange: Exchange | undefined;
  #isUsed = false;
  #isSending = false;
  #isKept = true;
  #idleUntilMs = Number.POSITIVE_INFINITY;
  #failure: LazydiskError | undefined;

  constructor(origin: HttpOrigin, options: HttpConnectionOptions) {
    this.#origin = origin;
    const { hostname: host, port, isTls } = origin;
    const { lookup, session, ca } = options;
    const onread = {
      buffer: () => this.#nextBuffer(),
      callback: (bytes: number) => {
        this.#onBytes(bytes);
        return true;
      },
    };
    const target = { host, port, noDelay: true, keepAlive: true, onread, ...(lookup && { lookup }) };
    this.#socket = isTls
      ? // Loaded only when needed: it doubles the startup time.
        process.getBuiltinModule('node:tls').connect({
          ...target,
          ALPNProtocols: ['http/1.1'],
          ...(net.isIP(host) === 0 && { servername: host }),
          ...(session && { session }),
          ...(ca !== undefined && { ca }),
        })
      : net.connect(target);
    this.#socket.on('session', (fresh: Buffer) => options.onSession?.(fresh));
    this.connected = new Promise((resolve, reject) => {
      this.#socket.once(isTls ? 'secureConnect' : 'connect', () => {
        this.isConnected = true;
        resolve();
      });
      this.#socket.once('close', () => reject(this.#failure ?? this.#error('connection closed')));
    });
    // The caller that opened it may no longer be waiting.
    this.connected.catch(() => undefined);
    this.#socket.on('end', () => this.#onEnd());
    this.#socket.on('error', (cause) => this.#onError(cause));
    this.#socket.on('close', () => {
      this.#fail(this.#brokenError());
      options.onClose(this);
    });
  }

  /** Whether another exchange may begin. */
  get isReusable(): boolean {
    const isFree = !this.#exchange && !this.#isSending && this.#filled === 0;
    return isFree && this.#isKept && !this.#socket.destroyed && performance.now() < this.#idleUntilMs;
  }

  /**
   * Sends `head`, complete, and `body`, and reads the response; one exchange at a time, once connected. Rejects with
   * UNAVAILABLE, a StaleConnectionError if the server closed the connection before it could see the request, or the
   * error passed to `destroy`. Once it has settled, neither `body` nor the response's memory is touched any more,
   * provided that a connection that is not reusable is destroyed.
   */
  exchange(head: string, body: Uint8Array | undefined, response: HttpResponse): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#exchange = { response, resolve, reject };
      if (this.#failure || this.#socket.destroyed) return this.#fail(this.#failure ?? this.#brokenError());
      this.#socket.ref();
      if (body && body.length > 0) this.#send(head, body);
      else this.#socket.write(head, 'latin1');
    });
  }

  /** Stops reading the response until `resume`. */
  pause(): void {
    this.isPaused = true;
    this.#socket.pause();
  }

  resume(): void {
    if (!this.isPaused) return;
    this.isPaused = false;
    this.resumedMs = performance.now();
    this.#socket.resume();
  }

  /** Does not keep the process alive: it may exit while the connection is open. */
  idle(): void {
    this.#socket.unref();
  }

  destroy(error?: LazydiskError): void {
    this.#failure ??= error;
    this.#socket.destroy();
    if (error) this.#fail(error);
  }

  #send(head: string, body: Uint8Array): void {
    this.#isSending = true;
    let at = 0;
    const sendPiece = (): void => {
      const piece = body.subarray(at, at + PIECE_BYTES);
      at += piece.length;
      this.#socket.write(piece, (error) => {
        if (error) return;
        this.movedBytes += piece.length;
        if (at === body.length) this.#isSending = false;
        // The server may have responded by now, in which case it refused the request.
        else if (this.#exchange) sendPiece();
      });
    };
    this.#socket.cork();
    this.#socket.write(head, 'latin1');
    sendPiece();
    this.#socket.uncork();
  }

  #nextBuffer(): Buffer {
    const room = this.#exchange?.response.room;
    this.#isInPlace = room !== undefined;
    return room ?? this.#scratch.subarray(this.#filled);
  }

  #onBytes(bytes: number): void {
    this.movedBytes += bytes;
    const response = this.#exchange?.response;
    if (!response) {
      // There is no request, so this is not a response.
      this.destroy();
      return;
    }
    try {
      if (this.#isInPlace) response.placed(bytes);
      else this.#take(response, bytes);
    } catch (cause) {
      if (!(cause instanceof HttpSyntaxError)) throw cause;
      this.destroy(this.#error(`not valid HTTP: ${cause.message}`, cause));
      return;
    }
    if (response.isDone) this.#finish();
  }

  #take(response: HttpResponse, bytes: number): void {
    this.#filled += bytes;
    const used = response.take(this.#scratch.subarray(0, this.#filled));
    this.#scratch.copyWithin(0, used, this.#filled);
    this.#filled -= used;
  }

  #finish(): void {
    const { response, resolve } = this.#exchange!;
    this.#exchange = undefined;
    this.resume();
    this.#isUsed = true;
    this.#isKept &&= response.isKept;
    const seconds = /(?:^|[\s,])timeout=(\d{1,6})/i.exec(response.headers['keep-alive'] ?? '')?.[1];
    const idleMs = seconds === undefined ? IDLE_MS : Number(seconds) * 1_000 - IDLE_MARGIN_MS;
    this.#idleUntilMs = performance.now() + Math.min(idleMs, IDLE_MS);
    resolve();
  }

  #onEnd(): void {
    const exchange = this.#exchange;
    if (exchange?.response.end()) this.#finish();
    this.#isKept = false;
    this.#fail(this.#brokenError());
    this.#socket.destroy();
  }

  #onError(cause: Error): void {
    this.#failure ??= this.#brokenError(cause);
    this.#fail(this.#failure);
  }

  /** The error of an exchange that the end of the connection cut short. */
  #brokenError(cause?: Error): LazydiskError {
    const code = (cause as NodeJS.ErrnoException | undefined)?.code;
    // If a host has several addresses and none responds, there is a code and no message.
    const why = cause ? errorText(cause) || `${code}` : 'the server closed the connection';
    const response = this.#exchange?.response;
    if (response && response.status > 0)
      return this.#error(`response truncated, ${response.text}${cause ? `: ${why}` : ''}`, cause);
    const isClosed = cause === undefined || code === 'ECONNRESET' || code === 'EPIPE';
    if (!this.#isUsed || !isClosed || this.#filled > 0) return this.#error(why, cause);
    return new StaleConnectionError('UNAVAILABLE', `${this.#origin.host}: ${why}`, { cause });
  }

  #error(text: string, cause?: unknown): LazydiskError {
    return new LazydiskError('UNAVAILABLE', `${this.#origin.host}: ${text}`, { cause });
  }

  #fail(error: LazydiskError): void {
    const exchange = this.#exchange;
    this.#exchange = undefined;
    exchange?.reject(error);
  }
}
