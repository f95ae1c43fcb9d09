/**
 * A bound on the connections of an HTTP server that idle ones cannot use up: when it is reached, the connection that
 * has been without a request for longest makes room for the new one. `Server.maxConnections` would refuse the new one, so
 * whoever opens enough connections and says nothing would shut out everybody else.
 */
import type { RequestListener, Server } from 'node:http';
import type { Socket } from 'node:net';

/** An import of it would load all that it exports, fetch with its WebSockets too, which is half of the daemon's start. */
const { createServer } = process.getBuiltinModule('node:http');

/** How often Node looks for requests that take too long to arrive. */
const CHECK_MS = 1_000;
/** A connection that is kept for the next request. */
const KEEP_ALIVE_MS = 5_000;

export interface ConnectionBounds {
  readonly connectionsMax: number;
  /** For the headers of a request, and for all of it with its body. */
  readonly requestTimeoutMs: number;
}

/** An HTTP server within `bounds`. */
export function createBoundedServer(bounds: ConnectionBounds, onRequest: RequestListener): Server {
  const { connectionsMax, requestTimeoutMs } = bounds;
  const server = createServer({ connectionsCheckingInterval: CHECK_MS }, onRequest);
  server.headersTimeout = requestTimeoutMs;
  server.requestTimeout = requestTimeoutMs;
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  /** Those without a request, the one that has been so for longest first; and those with one. */
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
