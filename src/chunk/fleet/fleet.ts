/**
 * The cache fleet of a daemon: the list of its nodes, read at start and kept up to date, the tier over them, and log
 * messages when the last node fails and when one comes back. The daemon also starts without a list: until one can be
 * read, every read is a miss.
 */
import { readFile, stat } from 'node:fs/promises';
import type { Logger } from 'pino';
import { codeOf, errorText, LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { type FleetStats, FleetTier, type ShardPlace } from './fleet-tier.ts';
import type { NodeAddress, NodeOptions } from './node.ts';
import { parseFleetUrl, watchNodes } from './node-list.ts';

/** The log for the loss of the last node, the return of one, and changes of the list. */
export type FleetLog = Pick<Logger, 'info' | 'warn' | 'error'>;

export interface FleetConfig {
  readonly url: string;
  /** Use TLS, with a CA file, or `system` for the system's CAs. */
  readonly tls: string | undefined;
  /** File with `user:password` for nodes with an authfile; only its owner may read it. */
  readonly loginFile: string | undefined;
  /** How long one attempt at the fleet may take. */
  readonly timeoutMs: number;
}

const CONNECT_TIMEOUT_MS = 1_000;
/** The most requests of one node that wait for an answer, and the most bytes queued to it. */
const INFLIGHT_MAX = 4096;
const QUEUED_BYTES_MAX = 32 * 1024 * 1024;
const FILL_BYTES_MAX = 64 * 1024 * 1024;
const WATCH_MS = 1_000;
const LOGIN_BYTES_MAX = 4096;

/** `up`: some node is up, or none has been asked yet. */
export type FleetState = 'up' | 'down';

export class Fleet {
  readonly tier: FleetTier;
  readonly url: string;
  readonly #log: FleetLog;
  readonly #stopWatching: () => void;
  readonly #timer: NodeJS.Timeout;
  #state: FleetState = 'up';

  private constructor(url: string, tier: FleetTier, log: FleetLog, stopWatching: () => void) {
    this.url = url;
    this.tier = tier;
    this.#log = log;
    this.#stopWatching = stopWatching;
    this.#timer = setInterval(() => this.#look(), WATCH_MS).unref();
  }

  /** Throws USAGE for an invalid URL, list or login file, KEY for a login file that others can read. */
  static async open(config: FleetConfig, log: FleetLog): Promise<Fleet> {
    const url = parseFleetUrl(config.url);
    const options: NodeOptions = {
      ...(config.tls !== undefined && { tls: config.tls === 'system' ? true : config.tls }),
      ...(config.loginFile !== undefined && { login: await readLogin(config.loginFile) }),
      connectTimeoutMs: CONNECT_TIMEOUT_MS,
      inflightMax: INFLIGHT_MAX,
      queuedBytesMax: QUEUED_BYTES_MAX,
    };
    const warn = (text: string) => log.warn({ part: 'fleet' }, text);
    const nodes = await url.read().catch((error: unknown): NodeAddress[] => {
      if (codeOf(error) === 'UNAVAILABLE') {
        warn(`no list of nodes yet: ${errorText(error)}`);
        return [];
      }
      throw error;
    });
    const { timeoutMs } = config;
    const tier = new FleetTier({
      code: url.code,
      nodes,
      node: options,
      timeoutMs,
      fillBytesMax: FILL_BYTES_MAX,
    });
    const changed = (next: NodeAddress[]) => {
      tier.setNodes(next);
      log.info({ part: 'fleet', nodes: next.map(({ name }) => name) }, 'the list of nodes has changed');
    };
    return new Fleet(config.url, tier, log, watchNodes(url, nodes, changed, warn));
  }

  get state(): FleetState {
    return this.#state;
  }

  stats(): FleetStats {
    return this.tier.stats();
  }

  locate(id: ChunkId): Promise<ShardPlace[]> {
    return this.tier.locate(id);
  }

  /** Does not close the tier, which its reader closes. */
  close(): void {
    clearInterval(this.#timer);
    this.#stopWatching();
  }

  #look(): void {
    const { nodes } = this.tier.stats();
    const state = nodes.some(({ up }) => up) ? 'up' : 'down';
    if (state === this.#state) return;
    this.#state = state;
    if (state === 'up') this.#log.info({ part: 'fleet' }, 'a node of the fleet answers again');
    else
      this.#log.error(
        { part: 'fleet', causes: causesOf(nodes) },
        'no node of the fleet answers: reading from the origin',
      );
  }
}

function causesOf(nodes: FleetStats['nodes']): string[] {
  return nodes.slice(0, 8).map(({ name, lastError }) => `${name}: ${lastError ?? 'no answer'}`);
}

async function readLogin(file: string): Promise<{ user: string; password: string }> {
  let text: string;
  try {
    const { mode, size } = await stat(file);
    if (mode & 0o077) throw new LazydiskError('KEY', `fleet login ${file}: others can read it; chmod 600`);
    if (size > LOGIN_BYTES_MAX)
      throw new LazydiskError('USAGE', `fleet login ${file}: over ${LOGIN_BYTES_MAX} bytes`);
    text = await readFile(file, 'utf8');
  } catch (error) {
    if (error instanceof LazydiskError) throw error;
    throw new LazydiskError('KEY', `fleet login ${file}: ${errorText(error)}`, { cause: error });
  }
  const match = /^([^:\s]+):(\S+)\s*$/.exec(text);
  if (!match) throw new LazydiskError('USAGE', `fleet login ${file}: want one line, USER:PASSWORD`);
  return { user: match[1]!, password: match[2]! };
}
