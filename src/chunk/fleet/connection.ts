/**
 * One pipelined connection to a memcached node. Requests are written in batches (all of one turn of the event
 * loop in one writev) and answered in order. Every request has a deadline; one that misses it is answered with
 * TIMEOUT at once, and its late reply is read and thrown away without touching its buffers. A server that
 * answers anything but the protocol, or nothing for long, loses the connection, and all that waited on it fails. What
 * was only late behind our own other requests, which it went on answering, is told apart: that is OVERLOAD.
 *
 * Reads land in one buffer that is reused for ever (`onread`), and a value is copied out of it once, into its
 * place in the chunk.
 */
import { readFileSync } from 'node:fs';
import net from 'node:net';
import type { TLSSocket } from 'node:tls';
import { errorText, LazydiskError } from '../../errors.ts';
import { SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import { type MetaReply, ReplyParser, type ValueSink } from './meta-protocol.ts';
import { SHARD_HEADER_BYTES } from './shard.ts';

const READ_BUFFER_BYTES = 256 * 1024;
/** Deadlines of one connection are looked at this often, not one timer each. */
const TICK_MS = 5;
/** A connection whose oldest request is overdue by this much answers nobody any more. */
const STALL_MS = 2_000;
/** When a look at the deadlines comes so late, this process was busy, and answers may lie in the socket unread. */
const LATE_TICK_MS = 25;
/** More requests before one than this make it late by themselves. */
const AHEAD_MAX = 4;
/** No shard is longer; a value that is would be read for nothing. */
const VALUE_BYTES_MAX = SHARD_HEADER_BYTES + SEALED_BYTES_MAX;

const nobody = () => {};

export interface ConnectionOptions {
  readonly host: string;
  readonly port: number;
  /** TLS, with this CA file, or the system's CAs if `true`. */
  readonly tls?: string | true;
  /** For memcached's authfile: sent as the first request. */
  readonly login?: { readonly user: string; readonly password: string };
  readonly connectTimeoutMs: number;
  readonly inflightMax: number;
  readonly queuedBytesMax: number;
}

/**
 * Once it is settled it holds nothing but its place in the order: the buffers of a chunk must not wait for a node that
 * hangs.
 */
interface Pending {
  readonly deadline: number;
  readonly wantsValue: boolean;
  /** Requests that were before it when it was sent, and replies that had come by then. */
  readonly ahead: number;
  readonly repliesBefore: number;
  sink: ValueSink | undefined;
  settled: boolean;
  resolve(reply: MetaReply): void;
  reject(error: LazydiskError): void;
}

export class Connection {
  readonly #options: ConnectionOptions;
  readonly #socket: net.Socket;
  readonly #parser: ReplyParser;
  /** In the order of their replies; settled ones stay until their reply has come. */
  readonly #waiting: Pending[] = [];
  #head = 0;
  #outbox: Uint8Array[] = [];
  #flushing = false;
  #ticker: NodeJS.Timeout | undefined;
  #tickedAt = 0;
  #replies = 0;
  #dead: LazydiskError | undefined;
  readonly closed: Promise<LazydiskError>;
  #tellClosed: (error: LazydiskError) => void = () => {};

  private constructor(options: ConnectionOptions, socket: net.Socket) {
    this.#options = options;
    this.#socket = socket;
    this.closed = new Promise((resolve) => {
      this.#tellClosed = resolve;
    });
    this.#parser = new ReplyParser({
      sink: (valueBytes) => this.#sinkFor(valueBytes),
      reply: (reply) => this.#take((pending) => pending.resolve(reply)),
      refused: (text) => this.#take((pending) => pending.reject(new LazydiskError('UNAVAILABLE', text))),
    });
  }

  /** Connects (TLS, login included) within connectTimeoutMs, or rejects with UNAVAILABLE or TIMEOUT. */
  static async open(options: ConnectionOptions): Promise<Connection> {
    let connection: Connection | undefined;
    const buffer = Buffer.allocUnsafeSlow(READ_BUFFER_BYTES);
    const onread = {
      buffer,
      callback: (bytesRead: number) => {
        connection?.received(buffer.subarray(0, bytesRead));
        return true;
      },
    };
    const { host, port } = options;
    const socket = options.tls ? connectTls(host, port, options.tls) : net.connect({ host, port, onread });
    connection = new Connection(options, socket);
    // TLS sockets have no onread; their bytes come as events.
    if (options.tls) socket.on('data', (bytes: Buffer) => connection.received(bytes));
    await connection.#opened(options.tls ? 'secureConnect' : 'connect');
    if (options.login) await connection.#login(options.login);
    return connection;
  }

  get usable(): boolean {
    return this.#dead === undefined;
  }

  get inflight(): number {
    return this.#waiting.length - this.#head;
  }

  /**
   * Sends `parts` as one request. Resolves with its reply, a value having been copied into `sink`. Rejects with
   * OVERLOAD when too much is in flight or was before it, TIMEOUT, ABORTED, UNAVAILABLE, CORRUPT. `parts` must stay as
   * they are until then, and `sink` is never touched afterwards. A value that does not fit into `sink` is thrown away;
   * its length is in the reply.
   */
  request(
    parts: readonly Uint8Array[],
    deadline: number,
    sink?: ValueSink,
    signal?: AbortSignal,
  ): Promise<MetaReply> {
    if (this.#dead) return Promise.reject(this.#dead);
    // It may have been aborted while the connection was being made, and an aborted signal tells nobody again.
    if (signal?.aborted) return Promise.reject(notNeeded());
    const { inflightMax, queuedBytesMax } = this.#options;
    if (this.inflight >= inflightMax || this.#socket.writableLength > queuedBytesMax) {
      return Promise.reject(new LazydiskError('OVERLOAD', 'too many requests in flight'));
    }
    const { promise, resolve, reject } = Promise.withResolvers<MetaReply>();
    const pending: Pending = {
      ...{ deadline, sink, resolve, reject, settled: false, wantsValue: sink !== undefined },
      ...{ ahead: this.inflight, repliesBefore: this.#replies },
    };
    this.#waiting.push(pending);
    this.#outbox.push(...parts);
    this.#start(pending, signal);
    return promise;
  }

  /** For the socket's reader only. */
  received(bytes: Uint8Array): void {
    if (this.#dead) return;
    try {
      this.#parser.feed(bytes);
    } catch (error) {
      this.destroy(error instanceof LazydiskError ? error : new LazydiskError('CORRUPT', errorText(error)));
    }
  }

  destroy(error: LazydiskError): void {
    if (this.#dead) return;
    this.#dead = error;
    clearInterval(this.#ticker);
    this.#socket.destroy();
    this.#outbox = [];
    for (const pending of this.#waiting.splice(0).slice(this.#head))
      this.#settle(pending, () => pending.reject(error));
    this.#head = 0;
    this.#tellClosed(error);
  }

  /** Apart from `request`, whose arguments the functions that are made here would otherwise keep. */
  #start(pending: Pending, signal: AbortSignal | undefined): void {
    signal?.addEventListener('abort', () => this.#abandon(pending), { once: true });
    if (!this.#flushing) {
      this.#flushing = true;
      process.nextTick(() => this.#flush());
    }
    if (this.#ticker) return;
    this.#tickedAt = performance.now();
    this.#ticker = setInterval(() => this.#tick(), TICK_MS).unref();
  }

  async #opened(event: 'connect' | 'secureConnect'): Promise<void> {
    const { host, port, connectTimeoutMs } = this.#options;
    this.#socket.setNoDelay(true);
    await new Promise<void>((resolve, reject) => {
      const late = setTimeout(() => {
        this.destroy(
          new LazydiskError('TIMEOUT', `${host}:${port}: no connection in ${connectTimeoutMs} ms`),
        );
      }, connectTimeoutMs);
      const lost = (why: string) => {
        this.destroy(new LazydiskError('UNAVAILABLE', `${host}:${port}: ${why}`));
      };
      this.#socket.once(event, () => {
        clearTimeout(late);
        resolve();
      });
      this.#socket.on('error', (error) => lost(errorText(error)));
      this.#socket.on('close', () => lost('connection closed'));
      void this.closed.then((error) => {
        clearTimeout(late);
        reject(error);
      });
    });
  }

  /** memcached's authfile takes the login as the value of a `set` of any key, and answers it as a set. */
  async #login(login: { user: string; password: string }): Promise<void> {
    const value = Buffer.from(`${login.user} ${login.password}`, 'utf8');
    const text = Buffer.concat([Buffer.from(`set auth 0 0 ${value.length}\r\n`), value, Buffer.from('\r\n')]);
    const deadline = performance.now() + this.#options.connectTimeoutMs;
    const answered = this.request([text], deadline);
    await answered.catch((error: LazydiskError) => {
      const why = new LazydiskError('UNAVAILABLE', `${this.#options.host}: login refused (${error.code})`);
      this.destroy(why);
      throw why;
    });
  }

  #flush(): void {
    this.#flushing = false;
    if (this.#dead) return;
    const parts = this.#outbox;
    this.#outbox = [];
    this.#socket.cork();
    for (const part of parts) this.#socket.write(part);
    this.#socket.uncork();
  }

  #sinkFor(valueBytes: number): ValueSink | 'discard' | undefined {
    const pending = this.#waiting[this.#head];
    if (!pending?.wantsValue || valueBytes > VALUE_BYTES_MAX) return undefined;
    const { sink } = pending;
    return sink && valueBytes <= sink.head.length + sink.body.length ? sink : 'discard';
  }

  #take(settle: (pending: Pending) => void): void {
    const pending = this.#waiting[this.#head];
    if (!pending) throw new LazydiskError('CORRUPT', 'memcached answered a question that nobody asked');
    this.#head++;
    this.#replies++;
    if (this.#head === this.#waiting.length) {
      this.#waiting.length = 0;
      this.#head = 0;
    } else if (this.#head > 256) {
      this.#waiting.splice(0, this.#head);
      this.#head = 0;
    }
    this.#settle(pending, () => settle(pending));
  }

  #settle(pending: Pending, how: () => void): void {
    if (pending.settled) return;
    pending.settled = true;
    how();
    pending.sink = undefined;
    pending.resolve = nobody;
    pending.reject = nobody;
  }

  #abandon(pending: Pending): void {
    // Only the oldest can be receiving its value just now.
    if (this.#waiting[this.#head] === pending) this.#parser.abandonValue();
    this.#settle(pending, () => pending.reject(notNeeded()));
  }

  #tick(): void {
    const now = performance.now();
    const isLate = now - this.#tickedAt > TICK_MS + LATE_TICK_MS;
    this.#tickedAt = now;
    // The next look comes when what the socket holds has been read.
    if (isLate) return;
    for (let at = this.#head; at < this.#waiting.length; at++) {
      const pending = this.#waiting[at]!;
      if (now < pending.deadline) continue;
      if (at === this.#head) this.#parser.abandonValue();
      this.#settle(pending, () => pending.reject(this.#overdue(pending)));
    }
    const oldest = this.#waiting[this.#head];
    if (oldest && now > oldest.deadline + STALL_MS) {
      const { host, port } = this.#options;
      this.destroy(new LazydiskError('TIMEOUT', `${host}:${port}: silent for ${STALL_MS} ms`));
    }
    if (!oldest) {
      clearInterval(this.#ticker);
      this.#ticker = undefined;
    }
  }

  #overdue({ ahead, repliesBefore }: Pending): LazydiskError {
    const { host, port } = this.#options;
    const isQueued = ahead > AHEAD_MAX && this.#replies > repliesBefore;
    return isQueued
      ? new LazydiskError('OVERLOAD', `${host}:${port}: ${ahead} requests of ours were before it`)
      : new LazydiskError('TIMEOUT', `${host}:${port}: no answer in time`);
  }
}

function notNeeded(): LazydiskError {
  return new LazydiskError('ABORTED', 'the answer is not needed any more');
}

/** TLS is loaded here, as it doubles the time of a start. */
function connectTls(host: string, port: number, ca: string | true): TLSSocket {
  const tls = process.getBuiltinModule('node:tls');
  return tls.connect({ host, port, ...(ca === true ? {} : { ca: readFileSync(ca) }) });
}
