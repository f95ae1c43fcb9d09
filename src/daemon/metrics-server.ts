/** `/metrics` over TCP for Prometheus, separate from the control API so that nothing else can be reached there. */
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { errorText, LazydiskError } from '../errors.ts';
import { createBoundedServer } from './http-connections.ts';
import type { Address } from './setting-kinds.ts';

const CONNECTIONS_MAX = 64;
const REQUEST_TIMEOUT_MS = 10_000;

export class MetricsServer {
  readonly #server: Server;

  constructor(metrics: () => Promise<{ contentType: string; text: string }>) {
    const bounds = { connectionsMax: CONNECTIONS_MAX, requestTimeoutMs: REQUEST_TIMEOUT_MS };
    this.#server = createBoundedServer(bounds, async (request, response) => {
      if (request.url?.split('?', 1)[0] !== '/metrics') {
        response.writeHead(404, { 'content-type': 'text/plain' }).end('metrics are at /metrics\n');
        return;
      }
      if (request.method !== 'GET') {
        response.writeHead(405, { allow: 'GET' }).end();
        return;
      }
      try {
        const { contentType, text } = await metrics();
        response.writeHead(200, { 'content-type': contentType }).end(text);
      } catch (error) {
        response.writeHead(500, { 'content-type': 'text/plain' }).end(`${errorText(error)}\n`);
      }
    });
  }

  /** Resolves to the address it listens on, with the port chosen if it was 0. Throws UNAVAILABLE. */
  listen({ host, port }: Address): Promise<Address> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', (cause) =>
        reject(
          new LazydiskError('UNAVAILABLE', `metrics on ${host}:${port}: ${errorText(cause)}`, { cause }),
        ),
      );
      this.#server.listen(port, host, () =>
        resolve({ host, port: (this.#server.address() as AddressInfo).port }),
      );
    });
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }
}
