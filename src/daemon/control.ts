/**
 * The control API's server: HTTP on the control socket, one route table, JSON in and out. It never delays a read, and
 * everything it does is bounded (connections, body size, time), because any process that can open the socket may send
 * nonsense.
 */
import { once } from 'node:events';
import { chmod } from 'node:fs/promises';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import { ownTurn } from '../async/slices.ts';
import { codeOf, errorText, LazydiskError } from '../errors.ts';
import { noteWork } from '../loop-work.ts';
import { checked, object, optional, text } from '../shape.ts';
import type { ImageDetail, ImageInfo } from '../store/image-info.ts';
import {
  type AttachRequest,
  type DaemonStatus,
  type DriveInfo,
  type DriveStat,
  type ErrorBody,
  type FleetInfo,
  type FleetPlaces,
  HTTP_STATUS,
} from './api.ts';
import { createBoundedServer } from './http-connections.ts';
import type { Logger } from './log.ts';

const BODY_BYTES_MAX = 64 * 1024;
const CONNECTIONS_MAX = 256;
const REQUEST_TIMEOUT_MS = 30_000;
/** List items serialized at once: about half a millisecond. */
const SLICE_ITEMS = 128;

const attachShape = object<AttachRequest>({ image: text(1, 512), name: optional(text(1, 128)) });

/** The operations of the API; the daemon implements them. `signal` is aborted when the client disconnects. */
export interface ControlService {
  status(): DaemonStatus;
  drives(): Iterable<DriveInfo>;
  attach(request: AttachRequest, signal: AbortSignal): Promise<DriveInfo>;
  stat(name: string): DriveStat;
  detach(name: string): Promise<void>;
  images(signal: AbortSignal): Promise<ImageInfo[]>;
  inspect(name: string, signal: AbortSignal): Promise<ImageDetail>;
  fleet(): FleetInfo;
  fleetPlaces(chunkOrImage: string, signal: AbortSignal): Promise<FleetPlaces>;
  metrics(): Promise<{ contentType: string; text: string }>;
}

type Reply =
  | { readonly status: number; readonly body: unknown }
  /** `{ [key]: [...items] }`, possibly with thousands of items. */
  | { readonly key: string; readonly items: Iterable<unknown> };

interface Asked {
  /** The segment that matches the route's `*`. */
  readonly argument: string;
  readonly request: IncomingMessage;
  /** Aborted when the client disconnects. */
  readonly signal: AbortSignal;
}

type Handler = (service: ControlService, asked: Asked) => Promise<Reply> | Reply;

const ok = (body: unknown): Reply => ({ status: 200, body });

/** By method and path pattern; `*` matches one percent-encoded segment. */
const ROUTES: Readonly<Record<string, Readonly<Record<string, Handler>>>> = {
  '/v1/status': { GET: (service) => ok(service.status()) },
  '/v1/drives': {
    GET: (service) => ({ key: 'drives', items: service.drives() }),
    POST: async (service, { request, signal }) => {
      const attach = checked(attachShape, await readJson(request), { code: 'USAGE', name: 'attach' });
      return { status: 201, body: await service.attach(attach, signal) };
    },
  },
  '/v1/drives/*': {
    GET: (service, { argument }) => ok(service.stat(argument)),
    DELETE: async (service, { argument }) => {
      await service.detach(argument);
      return ok({ name: argument });
    },
  },
  '/v1/images': {
    GET: async (service, { signal }) => ({ key: 'images', items: await service.images(signal) }),
  },
  '/v1/fleet': { GET: (service) => ok(service.fleet()) },
  '/v1/fleet/*': {
    GET: async (service, { argument, signal }) => ok(await service.fleetPlaces(argument, signal)),
  },
  '/v1/images/*': {
    GET: async (service, { argument, signal }) => ok(await service.inspect(argument, signal)),
  },
};

export class ControlServer {
  readonly #server: Server;
  readonly #log: Logger;

  constructor(service: ControlService, log: Logger) {
    this.#log = log;
    const bounds = { connectionsMax: CONNECTIONS_MAX, requestTimeoutMs: REQUEST_TIMEOUT_MS };
    this.#server = createBoundedServer(
      bounds,
      (request, response) => void this.#answer(service, request, response),
    );
  }

  /** Creates the socket, accessible to this user alone whatever the umask. Rejects with UNAVAILABLE. */
  async listen(path: string): Promise<void> {
    try {
      this.#server.listen(path);
      await once(this.#server, 'listening');
      await chmod(path, 0o600);
    } catch (cause) {
      throw new LazydiskError('UNAVAILABLE', `control socket: ${errorText(cause)}`, { cause });
    }
  }

  /** Finishes pending requests for at most `limitMs`, then closes all connections. */
  close(limitMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.#server.closeAllConnections(), limitMs);
      this.#server.close(() => {
        clearTimeout(timer);
        resolve();
      });
      this.#server.closeIdleConnections();
    });
  }

  async #answer(service: ControlService, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = 'GET', url = '/' } = request;
    const gone = new AbortController();
    response.once('close', () => {
      if (!response.writableFinished) gone.abort();
    });
    try {
      const path = url.split('?', 1)[0]!;
      if (path === '/metrics' && method === 'GET') {
        const { contentType, text } = await service.metrics();
        response.writeHead(200, { 'content-type': contentType }).end(text);
        return;
      }
      const { route, argument } = routeOf(path);
      const handler = route[method];
      if (!handler) throw new LazydiskError('UNSUPPORTED', `${method} is not done on ${path}`);
      const since = performance.now();
      const replying = handler(service, { argument, request, signal: gone.signal });
      noteWork('control', since);
      const reply = await replying;
      if ('items' in reply) await sendList(response, reply.key, reply.items);
      else sendJson(response, reply.status, reply.body);
    } catch (error) {
      if (gone.signal.aborted || request.errored) {
        // The failure is a consequence of the disconnect, or nobody is left to receive it.
        this.#log.debug(
          { method, url, message: errorText(error) },
          'the client of a control request has gone',
        );
        return;
      }
      const code = codeOf(error);
      if (code === 'INTERNAL') this.#log.error({ error, method, url }, 'control request failed');
      else this.#log.debug({ code, method, url, message: errorText(error) }, 'control request refused');
      // The rest of the request is not read: the connection ends with the response.
      response.shouldKeepAlive = false;
      const body: ErrorBody = { error: { code, message: errorText(error) } };
      sendJson(response, HTTP_STATUS[code], body);
    }
  }
}

function routeOf(path: string): { route: Readonly<Record<string, Handler>>; argument: string } {
  const exact = Object.hasOwn(ROUTES, path) ? ROUTES[path] : undefined;
  if (exact) return { route: exact, argument: '' };
  const cut = path.lastIndexOf('/');
  const pattern = `${path.slice(0, cut)}/*`;
  const route = Object.hasOwn(ROUTES, pattern) ? ROUTES[pattern] : undefined;
  const segment = path.slice(cut + 1);
  if (!route || segment === '') throw new LazydiskError('NOT_FOUND', `no such path: ${path}`);
  try {
    return { route, argument: decodeURIComponent(segment) };
  } catch {
    throw new LazydiskError('USAGE', `not percent-encoding: ${segment}`);
  }
}

async function readJson(request: IncomingMessage): Promise<unknown> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > BODY_BYTES_MAX) throw new LazydiskError('USAGE', `body over ${BODY_BYTES_MAX} bytes`);
    parts.push(part);
  }
  try {
    return JSON.parse(Buffer.concat(parts).toString('utf8')) as unknown;
  } catch {
    throw new LazydiskError('USAGE', 'the body is not JSON');
  }
}

function sendJson(response: ServerResponse, status: number, body: unknown): void {
  if (response.headersSent || response.destroyed) return;
  const text = Buffer.from(`${JSON.stringify(body)}\n`);
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': text.length }).end(text);
}

/** Sends a list in slices, at the pace of the client, so that the event loop does other work in between. */
async function sendList(response: ServerResponse, key: string, items: Iterable<unknown>): Promise<void> {
  response.writeHead(200, { 'content-type': 'application/json' });
  let text = `{${JSON.stringify(key)}:[`;
  let count = 0;
  let since = performance.now();
  for (const item of items) {
    if (response.destroyed) return;
    text += `${count > 0 ? ',' : ''}${JSON.stringify(item)}`;
    if (++count % SLICE_ITEMS > 0) continue;
    noteWork('control', since);
    if (!response.write(text)) await Promise.race([once(response, 'drain'), once(response, 'close')]);
    await ownTurn();
    text = '';
    since = performance.now();
  }
  response.end(`${text}]}\n`);
}
