/**
 * One pipelined connection to a memcached node. Requests are written in batches (all of one turn of the event loop in
 * one writev) and answered in order. Every request has a deadline; one that misses it fails with TIMEOUT at once, and
 * its late reply is read and discarded without touching its buffers. A connection to a server that breaks the protocol
 * or stays silent is dropped, and all its requests fail. A request that was late only behind our own other requests,
 * which the server kept answering, fails with OVERLOAD instead.
 *
 * Reads land in one buffer that is reused forever (`onread`), and a value is copied out of it once, into its place in
 * the chunk.
 */
import { readFileSync } from 'node:fs';
import net from 'node:net';
import type { TLSSocket } from 'node:tls';
import { errorText, LazydiskError } from '../../errors.ts';
import { SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import { type MetaReply, ReplyParser, type ValueSink } from './meta-protocol.ts';
import { SHARD_HEADER_BYTES } from './shard.ts';

const READ_BUFFER_BYTES = 256 * 1024;
/** How often the deadlines of a connection are checked, instead of one timer each. */
const TICK_MS = 5;
/** A connection whose oldest request is overdue by this much is dropped. */
const STALL_MS = 2_000;
/** If a deadline check comes this late, this process was busy, and replies may be unread in the socket. */
const LATE_TICK_MS = 25;
/** A request with more than this many others ahead of it may be late because of them. */
const AHEAD_MAX = 4;
/** No shard is longer; a longer value is not worth reading. */
const VALUE_BYTES_MAX = SHARD_HEADER_BYTES + SEALED_BYTES_MAX;

const nobody = () => {};

export interface ConnectionOptions {
  readonly host: string;
  readonly port: number;
  /** Use TLS, with this CA file, or with the system's CAs if `true`. */
  readonly tls?: string | true;
  /** For memcached's authfile: sent as the first request. */
  readonly login?: { readonly user: string; readonly password: string };
  readonly connectTimeoutMs: number;
  readonly inflightMax: number;
  readonly queuedBytesMax: number;
}

/**
 * A request in flight. Once it is settled it keeps only its place in the order, so that a hung node does not hold the
 * buffers of a chunk.
 */
interface Pending {
  readonly deadline: number;
  readonly wantsValue: boolean;
  /** Requests ahead of it when it was sent, and replies received by then. */
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
  /** In the order of their replies; settled ones stay until their reply arrives. */
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
    // TLS sockets have no onread; their bytes arrive as events.
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
   * Sends `parts` as one request. Resolves with its reply, after its value has been copied into `sink`. Rejects with
   * OVERLOAD when too much is in flight or was ahead of it, TIMEOUT, ABORTED, UNAVAILABLE, CORRUPT. `parts` must not
   * change until then, and `sink` is not touched afterwards. A value that does not fit into `sink` is discarded; its
   * length is in the reply.
   */
  request(
    parts: readonly Uint8Array[],
    deadline: number,
    sink?: ValueSink,
    signal?: AbortSignal,
  ): Promise<MetaReply> {
    if (this.#dead) return Promise.reject(this.#dead);
    // The signal may have aborted while the connection was being made, and its event does not come again.
    if (signal?.aborted) return Promise.reject(notNeeded());
    const { inflightMax, queuedBytesMax } = this.#options;
    if (this.inflight >= inflightMax || this.#socket.writableLength > queuedBytesMax) {
      return Promise.reject(new LazydiskError('OVERLOAD', 'too many requests in flight'));
    }
    const { promise, resolve, reject } = Promise.withResolvers<MetaReply>();
    const pending: Pending = {
      deadline,
      sink,
      resolve,
      reject,
      settled: false,
      wantsValue: sink !== undefined,
      ahead: this.inflight,
      repliesBefore: this.#replies,
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

  /** Separate from `request`, because the closures made here would keep its arguments alive. */
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

  /** memcached's authfile takes the login as the value of a `set` of any key, and answers it like a set. */
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
    if (!pending) throw new LazydiskError('CORRUPT', 'memcached sent a reply without a request');
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
    // Only the oldest request can be receiving its value.
    if (this.#waiting[this.#head] === pending) this.#parser.abandonValue();
    this.#settle(pending, () => pending.reject(notNeeded()));
  }

  #tick(): void {
    const now = performance.now();
    const isLate = now - this.#tickedAt > TICK_MS + LATE_TICK_MS;
    this.#tickedAt = now;
    // Replies waiting in the socket are read before the next check.
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
      ? new LazydiskError('OVERLOAD', `${host}:${port}: ${ahead} of our requests were ahead of it`)
      : new LazydiskError('TIMEOUT', `${host}:${port}: no answer in time`);
  }
}

function notNeeded(): LazydiskError {
  return new LazydiskError('ABORTED', 'the answer is not needed any more');
}

/** Loads TLS only here, because it doubles the start-up time. */
function connectTls(host: string, port: number, ca: string | true): TLSSocket {
  const tls = process.getBuiltinModule('node:tls');
  return tls.connect({ host, port, ...(ca === true ? {} : { ca: readFileSync(ca) }) });
}
