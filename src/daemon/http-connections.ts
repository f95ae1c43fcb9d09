/**
 * Limits the connections of an HTTP server in such a way that idle ones cannot exhaust the limit: when it is reached,
 * the connection that has been idle longest is closed in favor of the new one. `Server.maxConnections` would refuse the
 * new one, so a client that opens enough connections and sends nothing would lock out everybody else.
 */
import type { RequestListener, Server } from 'node:http';
import type { Socket } from 'node:net';

/**
 * Importing it would load all its exports, including fetch and WebSockets, which takes half of the daemon's startup
 * time.
 */
const { createServer } = process.getBuiltinModule('node:http');

/** How often Node checks for requests that take too long to arrive. */
const CHECK_MS = 1_000;
/** How long an idle connection is kept open for the next request. */
const KEEP_ALIVE_MS = 5_000;

export interface ConnectionBounds {
  readonly connectionsMax: number;
  /** For the headers of a request, and for the whole request including its body. */
  readonly requestTimeoutMs: number;
}

/** Creates an HTTP server within `bounds`. */
export function createBoundedServer(bounds: ConnectionBounds, onRequest: RequestListener): Server {
  const { connectionsMax, requestTimeoutMs } = bounds;
  const server = createServer({ connectionsCheckingInterval: CHECK_MS }, onRequest);
  server.headersTimeout = requestTimeoutMs;
  server.requestTimeout = requestTimeoutMs;
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  /** Connections without a request, longest idle first; and connections with one. */
  const idle = new Set<Socket>();
  const busy = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    socket.once('close', () => {
      idle.delete(socket);
      busy.delete(socket);
    });
    if (idle.size + busy.size >= connectionsMax) {
      const [oldest = socket] = idle;
      idle.delete(oldest);
      oldest.destroy();
      if (oldest === socket) return;
    }
    idle.add(socket);
  });
  server.on('request', ({ socket }, response) => {
    idle.delete(socket);
    busy.add(socket);
    response.once('close', () => {
      if (busy.delete(socket) && !socket.destroyed) idle.add(socket);
    });
  });
  return server;
}
