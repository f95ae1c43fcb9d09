/**
 * The connections to one origin: those in use, those that are kept for the next request, and the requests that wait for
 * one.
 */
import { LazydiskError } from '../errors.ts';
import { HttpConnection, type HttpConnectionOptions, type HttpOrigin } from './connection.ts';

const CONNECTIONS_MAX = 64;

/** Options of all its connections. */
export type HttpPoolOptions = Pick<HttpConnectionOptions, 'lookup' | 'ca'>;

interface Waiter {
  resolve(connection: HttpConnection): void;
  reject(error: LazydiskError): void;
}

export class HttpPool {
  readonly #origin: HttpOrigin;
  readonly #options: HttpPoolOptions;
  readonly #open = new Set<HttpConnection>();
  /** The one used last is reused first: its TCP window is open, and the others may expire. */
  readonly #idle: HttpConnection[] = [];
  readonly #waiting = new Set<Waiter>();
  #session: Buffer | undefined;

  constructor(origin: HttpOrigin, options: HttpPoolOptions) {
    this.#origin = origin;
    this.#options = options;
  }

  /** Whether no connection is open and no request waits for one. */
  get isEmpty(): boolean {
    return this.#open.size === 0 && this.#waiting.size === 0;
  }

  /**
   * Returns a connection for one exchange, to be returned with `give`; a new one if `isFresh`. It may not be connected
   * yet. Rejects with ABORTED.
   */
  take(isFresh: boolean, signal: AbortSignal | undefined): Promise<HttpConnection> | HttpConnection {
    for (;;) {
      const kept = isFresh ? undefined : this.#idle.pop();
      if (!kept) break;
      if (kept.isReusable) return kept;
      kept.destroy();
    }
    if (this.#open.size >= CONNECTIONS_MAX) this.#idle.shift()?.destroy();
    if (this.#open.size < CONNECTIONS_MAX) return this.#connect();
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        resolve: (connection) => {
          signal?.removeEventListener('abort', onAbort);
          resolve(connection);
        },
        reject,
      };
      const onAbort = (): void => {
        this.#waiting.delete(waiter);
        reject(new LazydiskError('ABORTED', `${this.#origin.host}: cancelled`));
      };
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#waiting.add(waiter);
    });
  }

  give(connection: HttpConnection): void {
    if (!connection.isReusable) {
      connection.destroy();
      return;
    }
    const waiter = this.#nextWaiter();
    if (waiter) {
      waiter.resolve(connection);
      return;
    }
    connection.idle();
    this.#idle.push(connection);
  }

  /** Fails all waiting and running requests with ABORTED, so that nothing retries what the caller ended. */
  close(): void {
    const error = new LazydiskError('ABORTED', `${this.#origin.host}: the client is closed`);
    for (const waiter of this.#waiting) waiter.reject(error);
    this.#waiting.clear();
    for (const connection of this.#open) connection.destroy(error);
  }

  #connect(): HttpConnection {
    const connection = new HttpConnection(this.#origin, {
      ...this.#options,
      session: this.#session,
      onSession: (session) => {
        this.#session = session;
      },
      onClose: (closed) => this.#forget(closed),
    });
    this.#open.add(connection);
    return connection;
  }

  #forget(connection: HttpConnection): void {
    this.#open.delete(connection);
    const at = this.#idle.indexOf(connection);
    if (at !== -1) this.#idle.splice(at, 1);
    if (this.#open.size < CONNECTIONS_MAX) this.#nextWaiter()?.resolve(this.#connect());
  }

  #nextWaiter(): Waiter | undefined {
    const [waiter] = this.#waiting;
    if (waiter) this.#waiting.delete(waiter);
    return waiter;
  }
}
