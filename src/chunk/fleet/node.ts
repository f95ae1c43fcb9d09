/**
 * One cache node as the fleet sees it: a connection that is made when it is first needed and made again, with jitter,
 * when it is lost; its health; and its statistics. Nothing queues behind a missing connection: a request then fails at
 * once, and the other shards answer.
 */
import { codeOf, errorText, LazydiskError } from '../../errors.ts';
import { Health } from '../health.ts';
import { Histogram } from '../histogram.ts';
import { Connection } from './connection.ts';
import { META_NOOP, type MetaReply, type ValueSink } from './meta-protocol.ts';
import type { PlacementNode } from './placement.ts';

/** How a node is reached, from the fleet's list. */
export interface NodeAddress extends PlacementNode {
  readonly host: string;
  readonly port: number;
}

export interface NodeOptions {
  readonly tls?: string | true;
  readonly login?: { readonly user: string; readonly password: string };
  readonly connectTimeoutMs: number;
  readonly inflightMax: number;
  readonly queuedBytesMax: number;
}

export interface NodeStats {
  readonly name: string;
  readonly zone: string | undefined;
  readonly weight: number;
  readonly up: boolean;
  readonly connected: boolean;
  readonly requests: number;
  readonly errors: number;
  readonly lastError: string | undefined;
  readonly ejections: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** After a failed connect, the next is tried no sooner than this, doubled each time up to the maximum. */
const RECONNECT_MIN_MS = 50;
const RECONNECT_MAX_MS = 5_000;

export class FleetNode {
  readonly address: NodeAddress;
  readonly health = new Health();
  readonly #options: NodeOptions;
  readonly #latency = new Histogram();
  #connection: Connection | undefined;
  #connecting: Promise<Connection> | undefined;
  #reconnectAt = 0;
  #reconnectMs = RECONNECT_MIN_MS;
  #closed = false;
  #requests = 0;
  #errors = 0;
  #lastError: string | undefined;
  #bytesRead = 0;
  #bytesWritten = 0;

  constructor(address: NodeAddress, options: NodeOptions) {
    this.address = address;
    this.#options = options;
  }

  /** Whether to ask it now: it is up. If a probe is due, this starts one in the background. */
  get askable(): boolean {
    if (this.health.up) return true;
    if (this.health.takeProbe()) void this.probe();
    return false;
  }

  /**
   * Sends one request, whose outcome counts for the node's health (ABORTED and OVERLOAD do not: they say nothing about
   * the node). Rejects like Connection.request.
   */
  async request(
    parts: readonly Uint8Array[],
    deadline: number,
    sink?: ValueSink,
    signal?: AbortSignal,
  ): Promise<MetaReply> {
    const started = performance.now();
    this.#requests++;
    try {
      const connection = this.#connection?.usable ? this.#connection : await this.#connect();
      const reply = await connection.request(parts, deadline, sink, signal);
      this.health.success();
      this.#latency.record(performance.now() - started);
      this.#bytesRead += reply.valueBytes;
      for (const part of parts) this.#bytesWritten += part.length;
      return reply;
    } catch (error) {
      const code = codeOf(error);
      if (code !== 'ABORTED' && code !== 'OVERLOAD') this.#failed(errorText(error));
      throw error;
    }
  }

  /** Called when a value from this node failed verification. */
  lied(what: string): void {
    this.#failed(what);
  }

  /** Sends a no-op; resolves to whether it answered. */
  async probe(): Promise<boolean> {
    return this.request([META_NOOP], performance.now() + this.#options.connectTimeoutMs).then(
      () => true,
      () => false,
    );
  }

  stats(): NodeStats {
    return {
      name: this.address.name,
      zone: this.address.zone,
      weight: this.address.weight,
      up: this.health.up,
      connected: this.#connection?.usable ?? false,
      requests: this.#requests,
      errors: this.#errors,
      lastError: this.#lastError,
      ejections: this.health.ejections,
      bytesRead: this.#bytesRead,
      bytesWritten: this.#bytesWritten,
      p50Ms: this.#latency.percentileMs(0.5),
      p99Ms: this.#latency.percentileMs(0.99),
    };
  }

  close(): void {
    this.#closed = true;
    this.#connection?.destroy(new LazydiskError('UNAVAILABLE', 'the fleet is closed'));
  }

  async #connect(): Promise<Connection> {
    if (this.#closed) throw new LazydiskError('UNAVAILABLE', 'the fleet is closed');
    if (this.#connecting) return this.#connecting;
    if (performance.now() < this.#reconnectAt) {
      throw new LazydiskError('UNAVAILABLE', `${this.address.name}: not connected`);
    }
    this.#connecting = Connection.open({
      ...this.#options,
      host: this.address.host,
      port: this.address.port,
    });
    try {
      const connection = await this.#connecting;
      if (this.#closed) connection.destroy(new LazydiskError('UNAVAILABLE', 'the fleet is closed'));
      this.#connection = connection;
      this.#reconnectMs = RECONNECT_MIN_MS;
      return connection;
    } catch (error) {
      this.#reconnectAt = performance.now() + this.#reconnectMs * (0.5 + Math.random());
      this.#reconnectMs = Math.min(RECONNECT_MAX_MS, this.#reconnectMs * 2);
      throw error;
    } finally {
      this.#connecting = undefined;
    }
  }

  #failed(what: string): void {
    this.#errors++;
    this.#lastError = what;
    this.health.failure();
  }
}
