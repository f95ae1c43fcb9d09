/**
 * The NBD server: listens on Unix sockets and TCP ports and takes each client through its handshake. Then the client's
 * descriptor goes to the native thread (channel.ts), which answers what is in memory, and its socket here is closed.
 *
 * During the handshake the client has a socket with `onread`, which stops reading at once when told to: what the client
 * sends after its handshake must be left for the thread. net.createServer has no such option, so each accepted socket
 * gives up its handle to a new socket that has it. Node has no public way from an accepted connection to its
 * descriptor; this uses one private field, in one function.
 */
import { chmodSync } from 'node:fs';
import net from 'node:net';
import type { BlockDevice } from '../../drive/block-device.ts';
import type { DriveRegistry } from '../../drive/registry.ts';
import { LazydiskError } from '../../errors.ts';
import { noteWork } from '../../loop-work.ts';
import { ByteBudget } from '../byte-budget.ts';
import { TurnBudget } from '../turn-budget.ts';
import { NbdChannels } from './channel.ts';
import { NbdConnection } from './connection.ts';
import type { ConnectionContext } from './connection-context.ts';
import { Handshake, type HandshakeStep, type Session } from './handshake.ts';
import { DEFAULT_LIMITS, type NbdLimits } from './limits.ts';
import { type ListenerStats, NbdCounters, type NbdStats } from './ops.ts';
import { BatchPool } from './reply-writer.ts';

/** A handshake takes a few hundred bytes. */
const READ_BUFFER_BYTES = 16 * 1024;
/** A TCP client whose machine is gone is noticed after about this long without traffic. */
const KEEP_ALIVE_MS = 60_000;

export interface NbdServerOptions {
  readonly registry: DriveRegistry;
  /** Values that are not given come from DEFAULT_LIMITS. */
  readonly limits?: Partial<NbdLimits>;
  /** Shared by all exports of a process; by default the server has its own. */
  readonly budget?: ByteBudget;
  readonly turn?: TurnBudget;
  /** Called, at most every few seconds, when a client finds a listener full. */
  readonly onFull?: (listener: ListenerStats) => void;
}

export type ListenAddress = { readonly path: string } | { readonly host: string; readonly port: number };

/** Clients that the kernel holds until they are accepted; it takes no more than net.core.somaxconn. */
const BACKLOG = 4096;
/** A full listener is reported at most this often. */
const FULL_TOLD_MS = 10_000;

/** A bulkhead: filling one listener does not affect the others. */
interface Listener {
  readonly server: net.Server;
  readonly kind: 'unix' | 'tcp';
  readonly clients: Set<Client>;
  refused: number;
  toldMs: number;
}

/** One client, before and after its handshake; after it, the socket is closed. */
interface Client {
  readonly listener: Listener;
  readonly socket: net.Socket;
  readonly fd: number;
  connection: NbdConnection | undefined;
}

export class NbdServer {
  readonly #registry: DriveRegistry;
  readonly #limits: NbdLimits;
  readonly #listeners: Listener[] = [];
  readonly #onFull: NbdServerOptions['onFull'];
  readonly #clients = new Set<Client>();
  #channels: NbdChannels | undefined;
  readonly #counters = new NbdCounters();
  readonly #context: ConnectionContext;
  readonly #removed: (device: BlockDevice) => void;
  #allGone: (() => void) | undefined;

  constructor({ registry, limits, budget, turn, onFull }: NbdServerOptions) {
    this.#registry = registry;
    this.#onFull = onFull;
    this.#limits = { ...DEFAULT_LIMITS, ...limits };
    this.#context = {
      counters: this.#counters,
      limits: this.#limits,
      pool: new BatchPool(),
      budget: budget ?? new ByteBudget(),
      turn: turn ?? new TurnBudget(),
      connections: () => this.#clients.size,
    };
    // When a drive is detached, its connections are closed once they have their answers.
    this.#removed = (device) => {
      for (const { connection } of this.#clients) if (connection?.device === device) connection.end();
    };
    this.#registry.on('removed', this.#removed);
  }

  /**
   * May be called several times. A Unix socket gets mode 0600 right after it is created, so until then its directory
   * must keep others out. Rejects with UNAVAILABLE if it cannot listen.
   */
  async listen(where: ListenAddress): Promise<void> {
    this.#channels ??= new NbdChannels();
    const options = {
      pauseOnConnect: true,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: KEEP_ALIVE_MS,
    };
    const kind = 'path' in where ? 'unix' : 'tcp';
    const server = net.createServer(options, (socket) => this.#accept(listener, socket));
    const listener: Listener = { server, kind, clients: new Set(), refused: 0, toldMs: -FULL_TOLD_MS };
    await new Promise<void>((resolve, reject) => {
      server.once('error', (cause) => {
        const text = 'path' in where ? where.path : `${where.host}:${where.port}`;
        reject(
          new LazydiskError('UNAVAILABLE', `cannot listen for NBD on ${text}: ${cause.message}`, { cause }),
        );
      });
      server.listen({ ...where, backlog: BACKLOG }, () => {
        server.removeAllListeners('error');
        resolve();
      });
    });
    // From here on, an error means that a client could not be accepted for lack of descriptors.
    server.on('error', () => this.#counters.errors++);
    if ('path' in where) chmodSync(where.path, 0o600);
    this.#listeners.push(listener);
  }

  /** The addresses that it listens on, with the ports that the system chose. */
  get addresses(): (string | net.AddressInfo)[] {
    return this.#listeners.map(({ server }) => server.address()!);
  }

  stats(): NbdStats {
    const { ops, errors, readsOk, readErrors, readBytes, waiting } = this.#counters;
    const hits = this.#channels?.hits() ?? { reads: 0, readBytes: 0 };
    return {
      connections: this.#clients.size,
      listeners: this.#listeners.map((listener) => this.#statsOf(listener)),
      inflight: waiting.size,
      oldestInflightMs: this.#counters.oldestMs(),
      ops: { ...ops, read: ops.read + hits.reads },
      errors,
      readsOk: readsOk + hits.reads,
      readErrors,
      readBytes: readBytes + hits.readBytes,
    };
  }

  /** Accepts no new clients, waits up to `drainMs` for requests in flight to be answered, and closes. */
  async close({ drainMs }: { drainMs: number } = { drainMs: 0 }): Promise<void> {
    this.#registry.off('removed', this.#removed);
    const closed = this.#listeners
      .splice(0)
      .map(({ server }) => new Promise((resolve) => server.close(resolve)));
    for (const client of this.#clients) {
      if (client.connection && drainMs > 0) client.connection.end();
      else destroy(client);
    }
    const late = setTimeout(() => {
      for (const client of this.#clients) destroy(client);
    }, drainMs);
    if (this.#clients.size > 0) {
      await new Promise<void>((resolve) => {
        this.#allGone = resolve;
      });
    }
    clearTimeout(late);
    await Promise.all(closed);
    this.#channels?.close();
  }

  #statsOf({ kind, clients, refused }: Listener): ListenerStats {
    return { kind, connections: clients.size, connectionsMax: this.#limits.connectionsMax, refused };
  }

  /** Makes room for one more client if necessary, in the place of one that has not chosen an export. */
  #hasRoom(listener: Listener): boolean {
    if (listener.clients.size < this.#limits.connectionsMax) return true;
    listener.refused++;
    if (performance.now() - listener.toldMs >= FULL_TOLD_MS) {
      listener.toldMs = performance.now();
      this.#onFull?.(this.#statsOf(listener));
    }
    // They are in order of arrival, so this is the one that has held its place for longest.
    for (const client of listener.clients) {
      if (client.connection) continue;
      client.socket.destroy();
      listener.clients.delete(client);
      return true;
    }
    return false;
  }

  #accept(listener: Listener, accepted: net.Socket): void {
    if (!this.#hasRoom(listener)) {
      accepted.destroy();
      return;
    }
    const handshake = new Handshake(this.#registry);
    const { socket, fd } = withReadBuffer(accepted, Buffer.allocUnsafeSlow(READ_BUFFER_BYTES), (bytes) => {
      if (socket.writableEnded) return true;
      const since = performance.now();
      const step = handshake.feed(bytes);
      if (step.headway) slow.refresh();
      this.#negotiate(client, step);
      noteWork('nbd', since);
      return step.session === undefined;
    });
    const client: Client = { listener, socket, fd, connection: undefined };
    this.#clients.add(client);
    listener.clients.add(client);
    const slow = setTimeout(() => socket.destroy(), this.#limits.handshakeTimeoutMs);
    socket.on('error', () => socket.destroy());
    socket.on('end', () => socket.destroy());
    socket.on('close', () => {
      clearTimeout(slow);
      if (!client.connection) this.#gone(client);
    });
    socket.write(Handshake.greeting());
    socket.resume();
  }

  #negotiate(client: Client, { answer, session, rest, close }: HandshakeStep): void {
    const { socket } = client;
    const isTold = session && (() => this.#serve(client, session, rest));
    if (answer.length > 0) socket.write(Buffer.concat(answer), isTold);
    else isTold?.();
    // What the client still sends is read and discarded until it closes or its time is over.
    if (close) socket.end();
  }

  /** Called when the client has the last answer of its handshake. */
  #serve(client: Client, session: Session, rest: Buffer | undefined): void {
    const { socket, fd } = client;
    const { device, structured } = session;
    // The drive may have been detached in the meantime.
    if (!socket.destroyed && this.#registry.get(device.name) === device) {
      try {
        const head = rest ?? Buffer.alloc(0);
        client.connection = this.#channels!.serve(
          fd,
          { device, structured, head },
          (channel) => new NbdConnection(channel, session, this.#context, () => this.#gone(client)),
        );
      } catch {
        this.#counters.errors++;
      }
    }
    socket.destroy();
  }

  #gone(client: Client): void {
    this.#clients.delete(client);
    client.listener.clients.delete(client);
    if (this.#clients.size === 0) this.#allGone?.();
  }
}

function destroy({ socket, connection }: Client): void {
  if (connection) connection.destroy();
  else socket.destroy();
}

/** Node's own way to make a socket around a handle, which its types omit. */
interface SocketWithHandle {
  _handle: { readonly fd: number };
}

/**
 * Returns a socket over `accepted`'s connection, and its descriptor. The socket reads into `buffer` and calls `onBytes`
 * with the received bytes; false pauses it until resume(). `accepted` is left without a handle and closed.
 */
function withReadBuffer(
  accepted: net.Socket,
  buffer: Buffer,
  onBytes: (bytes: Buffer) => boolean,
): { socket: net.Socket; fd: number } {
  const owner = accepted as unknown as SocketWithHandle;
  const handle = owner._handle;
  const { fd } = handle;
  (owner as { _handle: unknown })._handle = null;
  accepted.destroy();
  const options = {
    handle,
    allowHalfOpen: true,
    onread: { buffer, callback: (bytesRead: number) => onBytes(buffer.subarray(0, bytesRead)) },
  };
  return { socket: new net.Socket(options as unknown as net.SocketConstructorOpts), fd };
}
