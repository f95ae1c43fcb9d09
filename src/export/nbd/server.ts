/**
 * The NBD server: listens on Unix sockets and TCP ports, hands each client through its handshake to a connection.
 *
 * Its trick is how bytes come in. A socket that emits 'data' allocates a buffer a read; one made with `onread`
 * reads into the same buffer for ever, at three times the speed, but net.createServer takes no such option. So
 * each accepted socket gives up its handle to a new one that has it.
 */
import { chmodSync } from 'node:fs';
import net from 'node:net';
import type { BlockDevice } from '../../drive/block-device.ts';
import type { DriveRegistry } from '../../drive/registry.ts';
import { LazydiskError } from '../../errors.ts';
import { NbdConnection } from './connection.ts';
import { Handshake, type HandshakeStep } from './handshake.ts';
import { NbdCounters, type NbdStats } from './ops.ts';

const READ_BUFFER_BYTES = 64 * 1024;
const CONNECTIONS_MAX = 4096;
const HANDSHAKE_TIMEOUT_MS = 10_000;

export interface NbdServerOptions {
  readonly registry: DriveRegistry;
}

export type ListenAddress = { readonly path: string } | { readonly host: string; readonly port: number };

/** One client, before and after its handshake. */
interface Client {
  readonly socket: net.Socket;
  connection: NbdConnection | undefined;
}

export class NbdServer {
  readonly #registry: DriveRegistry;
  readonly #listeners: net.Server[] = [];
  readonly #clients = new Set<Client>();
  readonly #counters = new NbdCounters();
  readonly #removed: (device: BlockDevice) => void;

  constructor(options: NbdServerOptions) {
    this.#registry = options.registry;
    // A drive that is detached takes its connections with it, once they have their answers.
    this.#removed = (device) => {
      for (const { connection } of this.#clients) if (connection?.device === device) connection.end();
    };
    this.#registry.on('removed', this.#removed);
  }

  /** May be called several times. A Unix socket is made for its owner only. Rejects if it cannot listen. */
  async listen(where: ListenAddress): Promise<void> {
    const server = net.createServer({ pauseOnConnect: true, noDelay: true }, (socket) =>
      this.#accept(socket),
    );
    server.maxConnections = CONNECTIONS_MAX;
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => {
        const text = 'path' in where ? where.path : `${where.host}:${where.port}`;
        reject(
          new LazydiskError('UNAVAILABLE', `cannot listen for NBD on ${text}: ${error.message}`, {
            cause: error,
          }),
        );
      });
      server.listen(where, () => resolve());
    });
    if ('path' in where) chmodSync(where.path, 0o600);
    this.#listeners.push(server);
  }

  /** Where it listens, with the ports that the system chose. */
  get addresses(): (string | net.AddressInfo)[] {
    return this.#listeners.map((server) => server.address()!);
  }

  stats(): NbdStats {
    const { ops, errors, readBytes, waiting } = this.#counters;
    return {
      connections: this.#clients.size,
      inflight: waiting.size,
      oldestInflightMs: this.#counters.oldestMs(),
      ops,
      errors,
      readBytes,
    };
  }

  /** Takes no new clients, lets requests in flight be answered for at most `drainMs`, and closes. */
  async close(options: { drainMs: number } = { drainMs: 0 }): Promise<void> {
    this.#registry.off('removed', this.#removed);
    const closed = this.#listeners.splice(0).map((server) => new Promise((resolve) => server.close(resolve)));
    for (const { socket, connection } of this.#clients) {
      if (connection && options.drainMs > 0) connection.end();
      else socket.destroy();
    }
    const late = setTimeout(() => {
      for (const { socket } of this.#clients) socket.destroy();
    }, options.drainMs);
    await Promise.all(closed);
    while (this.#clients.size > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    clearTimeout(late);
  }

  #accept(accepted: net.Socket): void {
    const handshake = new Handshake(this.#registry);
    const buffer = Buffer.allocUnsafeSlow(READ_BUFFER_BYTES);
    const socket = withReadBuffer(accepted, buffer, (bytes) =>
      client.connection ? client.connection.received(bytes) : negotiate(handshake.feed(bytes)),
    );
    const client: Client = { socket, connection: undefined };
    this.#clients.add(client);
    const slow = setTimeout(() => socket.destroy(), HANDSHAKE_TIMEOUT_MS);
    const negotiate = ({ answer, session, rest, close }: HandshakeStep): boolean => {
      if (answer.length > 0) socket.write(Buffer.concat(answer));
      if (close) socket.end();
      if (close || !session) return !close;
      clearTimeout(slow);
      client.connection = new NbdConnection(socket, session, this.#counters);
      return client.connection.received(rest ?? Buffer.alloc(0));
    };
    socket.on('error', () => socket.destroy());
    socket.on('end', () => client.connection?.end());
    socket.on('close', () => {
      clearTimeout(slow);
      client.connection?.closed();
      this.#clients.delete(client);
    });
    socket.write(Handshake.greeting());
    socket.resume();
  }
}

/** Node's own way to make a socket around a handle, which its types leave out. */
interface SocketWithHandle {
  _handle: unknown;
}

/**
 * A socket over `accepted`'s connection that reads into `buffer` and calls `onBytes` with what came; false pauses
 * it until resume(). `accepted` is left without a handle and closed.
 */
function withReadBuffer(
  accepted: net.Socket,
  buffer: Buffer,
  onBytes: (bytes: Buffer) => boolean,
): net.Socket {
  const owner = accepted as unknown as SocketWithHandle;
  const handle = owner._handle;
  owner._handle = null;
  accepted.destroy();
  const options = {
    handle,
    allowHalfOpen: true,
    onread: { buffer, callback: (bytesRead: number) => onBytes(buffer.subarray(0, bytesRead)) },
  };
  return new net.Socket(options as unknown as net.SocketConstructorOpts);
}
