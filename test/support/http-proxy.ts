/**
 * A proxy in front of an HTTP server on loopback that passes everything on unchanged, except where a test injects a
 * fault. Signatures stay valid, because the signed host stays in the header and RGW accepts it.
 */
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import https from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { selfSigned } from './certificates.ts';
import { listen } from './http-server.ts';

/** What is done instead of passing a request on; it can request the true response too. */
export type Fault = (exchange: Exchange) => void | Promise<void>;

export interface Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** Sends the request to the server, and returns its whole response. */
  ask(): Promise<{ status: number; headers: http.IncomingHttpHeaders; body: Buffer }>;
}

export class HttpProxy {
  /** Called for every request, in order of arrival; undefined passes it on. */
  fault: (request: IncomingMessage) => Fault | undefined = () => undefined;
  /** `GET /path` of all requests so far. */
  readonly seen: string[] = [];
  readonly #server: http.Server;
  readonly #sockets = new Set<Socket>();
  readonly #behind: number;

  private constructor(behind: number) {
    this.#behind = behind;
    this.#server = http.createServer((request, response) => {
      this.#serve(request, response).catch(() => response.destroy());
    });
    this.#server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
    });
  }

  /** Starts a proxy in front of the server on `port`. */
  static async start(port: number): Promise<HttpProxy> {
    const proxy = new HttpProxy(port);
    proxy.#server.listen(0, '127.0.0.1');
    await once(proxy.#server, 'listening');
    return proxy;
  }

  get server(): http.Server {
    return this.#server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Applies `fault` to the next `times` requests; the rest are passed on. */
  next(times: number, fault: Fault): void {
    let left = times;
    this.fault = () => (left-- > 0 ? fault : undefined);
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.seen.push(`${request.method} ${request.url}`);
    const ask = () => this.#ask(request);
    const fault = this.fault(request);
    if (fault) return void (await fault({ request, response, ask }));
    const { status, headers, body } = await ask();
    response.writeHead(status, headers).end(body);
  }

  #ask(
    request: IncomingMessage,
  ): Promise<{ status: number; headers: http.IncomingHttpHeaders; body: Buffer }> {
    return new Promise((resolve, reject) => {
      const { method, url, headers } = request;
      const options = { host: '127.0.0.1', port: this.#behind, method, path: url, headers, agent: false };
      const back = http.request(options, async (answer) => {
        const parts = (await Array.fromAsync(answer)) as Buffer[];
        resolve({ status: answer.statusCode ?? 0, headers: answer.headers, body: Buffer.concat(parts) });
      });
      back.on('error', reject);
      request.pipe(back);
    });
  }
}

/** Starts a TLS server for a test, with a certificate that this process does not check; returns its URL. */
export async function serveTls(t: Test, listener: http.RequestListener): Promise<string> {
  const before = process.env.NODE_TLS_REJECT_UNAUTHORIZED;
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
  t.teardown(() => {
    if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
    else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before;
  });
  return (await serveOwnTls(t, listener)).url;
}

/** Like `serveTls`, for clients that receive its certificate, in PEM. */
export async function serveOwnTls(
  t: Test,
  listener: http.RequestListener,
): Promise<{ url: string; cert: string }> {
  const dir = await mkdtemp(join(tmpdir(), 'lazydisk-tls-'));
  const address = '127.0.0.1';
  const { certificate, key } = await selfSigned(
    dir,
    'server',
    address,
    '-addext',
    `subjectAltName=IP:${address}`,
  );
  const pem = { key: await readFile(key), cert: await readFile(certificate, 'latin1') };
  const server = https.createServer(pem, listener);
  await rm(dir, { recursive: true });
  return { url: `https://127.0.0.1:${await listen(t, server)}`, cert: pem.cert };
}

/** An error in the form of S3. */
export function s3Error(status: number, code: string, headers: http.OutgoingHttpHeaders = {}): Fault {
  return ({ request, response }) => {
    request.resume();
    const text = `<?xml version="1.0"?><Error><Code>${code}</Code><Message>no</Message></Error>`;
    response.writeHead(status, {
      'content-type': 'application/xml',
      'content-length': text.length,
      ...headers,
    });
    response.end(request.method === 'HEAD' ? undefined : text);
  };
}

/** The true response, cut off after `bytes` of its body, as if the connection broke. */
export function truncated(bytes: number): Fault {
  return async ({ response, ask }) => {
    const { status, headers, body } = await ask();
    response.writeHead(status, headers);
    response.write(body.subarray(0, bytes), () => response.socket?.destroy());
  };
}

/** The connection ends without a response. */
export const reset: Fault = ({ request }) => {
  request.socket.resetAndDestroy();
};

/** The true response, a few bytes at a time, slowly. */
export const trickling: Fault = async ({ response, ask }) => {
  const { status, headers, body } = await ask();
  response.writeHead(status, headers);
  for (let at = 0; at < body.length && !response.destroyed; at += 10) {
    response.write(body.subarray(at, at + 10));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

/** Never responds. */
export const silent: Fault = () => undefined;
