/** The control API's client, which the command line uses. Errors keep their code. */
import { type ErrorCode, errorText, LazydiskError } from '../errors.ts';
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
import { runPaths } from './run-paths.ts';

/** Importing it would load all its exports, including fetch and WebSockets, and double the startup time. */
const { request: httpRequest } = process.getBuiltinModule('node:http');

const ANSWER_TIMEOUT_MS = 60_000;
const ANSWER_BYTES_MAX = 256 * 1024 * 1024;

export class ControlClient {
  readonly #runDir: string;
  readonly #socketPath: string;

  constructor(runDir: string) {
    this.#runDir = runDir;
    this.#socketPath = runPaths(runDir).control;
  }

  status(): Promise<DaemonStatus> {
    return this.#call('GET', '/v1/status');
  }

  async drives(): Promise<DriveInfo[]> {
    return (await this.#call<{ drives: DriveInfo[] }>('GET', '/v1/drives')).drives;
  }

  attach(request: AttachRequest): Promise<DriveInfo> {
    return this.#call('POST', '/v1/drives', request);
  }

  stat(name: string): Promise<DriveStat> {
    return this.#call('GET', `/v1/drives/${encodeURIComponent(name)}`);
  }

  async detach(name: string): Promise<void> {
    await this.#call('DELETE', `/v1/drives/${encodeURIComponent(name)}`);
  }

  async images(): Promise<ImageInfo[]> {
    return (await this.#call<{ images: ImageInfo[] }>('GET', '/v1/images')).images;
  }

  inspect(name: string): Promise<ImageDetail> {
    return this.#call('GET', `/v1/images/${encodeURIComponent(name)}`);
  }

  fleet(): Promise<FleetInfo> {
    return this.#call('GET', '/v1/fleet');
  }

  fleetPlaces(chunkOrImage: string): Promise<FleetPlaces> {
    return this.#call('GET', `/v1/fleet/${encodeURIComponent(chunkOrImage)}`);
  }

  /** The daemon's metrics as Prometheus text. */
  metrics(): Promise<string> {
    return this.#text('GET', '/metrics');
  }

  async #call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const text = await this.#text(method, path, body);
    try {
      return JSON.parse(text) as T;
    } catch (cause) {
      throw new LazydiskError('UNAVAILABLE', `the daemon in ${this.#runDir} answered no JSON`, { cause });
    }
  }

  #text(method: string, path: string, body?: unknown): Promise<string> {
    return new Promise((resolve, reject) => {
      const payload = body === undefined ? undefined : JSON.stringify(body);
      const request = httpRequest({
        socketPath: this.#socketPath,
        method,
        path,
        agent: false,
        signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS),
        headers: payload === undefined ? {} : { 'content-type': 'application/json' },
      });
      const fail = (cause: unknown) => reject(this.#unreachable(cause));
      request.once('error', fail);
      request.once('response', (response) => {
        const parts: Buffer[] = [];
        let bytes = 0;
        response.on('data', (part: Buffer) => {
          bytes += part.length;
          if (bytes > ANSWER_BYTES_MAX) response.destroy(new Error('its answer does not end'));
          parts.push(part);
        });
        response.once('error', fail);
        response.once('end', () => {
          const text = Buffer.concat(parts).toString('utf8');
          const { statusCode = 0 } = response;
          if (statusCode >= 200 && statusCode < 300) resolve(text);
          else reject(errorOf(statusCode, text));
        });
      });
      request.end(payload);
    });
  }

  #unreachable(cause: unknown): LazydiskError {
    const code = (cause as NodeJS.ErrnoException).code;
    const nobody = code === 'ENOENT' || code === 'ECONNREFUSED' || code === 'ENOTDIR';
    const why = nobody
      ? 'start one with `lazydisk serve`, or say where it is with --run-dir'
      : errorText(cause);
    const text = `${nobody ? 'no daemon' : 'the daemon'} in ${this.#runDir}: ${why}`;
    return new LazydiskError('UNAVAILABLE', text, { cause });
  }
}

function errorOf(status: number, text: string): LazydiskError {
  let body: Partial<ErrorBody> | null;
  try {
    body = JSON.parse(text) as Partial<ErrorBody> | null;
  } catch {
    body = null;
  }
  const { code, message } = body?.error ?? {};
  if (typeof code !== 'string' || typeof message !== 'string') {
    return new LazydiskError('INTERNAL', `the daemon answered ${status} and no reason`);
  }
  // A newer daemon may use codes that this client does not know.
  return new LazydiskError(Object.hasOwn(HTTP_STATUS, code) ? (code as ErrorCode) : 'INTERNAL', message);
}
