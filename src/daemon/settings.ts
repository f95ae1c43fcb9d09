/**
 * The settings of the daemon, each defined here and nowhere else: the configuration, the flags of `lazydisk serve` with
 * their help, and the table in systemd/README.md are generated from these rows.
 */
import { defaultRunDir } from './run-paths.ts';
import {
  address,
  count,
  duration,
  type Kind,
  oneOf,
  path,
  rate,
  size,
  text,
  texts,
} from './setting-kinds.ts';

const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;

export interface Setting {
  /** Its name in the daemon's code, with its unit. */
  readonly field: string;
  readonly kind: Kind<unknown>;
  /** A description, for the help and the table. */
  readonly help: string;
  /** As a user would write it, or computed when the daemon starts; then `otherwise` describes it. */
  readonly default?: string | (() => string);
  /** Describes what applies without a value and without a written default. A setting that has neither must be given. */
  readonly otherwise?: string;
  /** The environment variable that a command line falls back to if the flag is absent. */
  readonly env?: string;
}

/** By their names in a configuration file; flags have - instead of _. */
export const SETTINGS = {
  store: {
    field: 'store',
    kind: text('url'),
    help: 'the store: file:///DIR, a path, s3://BUCKET/PREFIX?endpoint=…&region=… or https://HOST/PATH',
    env: 'LAZYDISK_STORE',
  },
  key: {
    field: 'keys',
    kind: texts('key'),
    help: 'a tenant key: file:PATH, just the path, or awskms:ARN; may be given again',
    env: 'LAZYDISK_KEY',
  },
  run_dir: {
    field: 'runDir',
    kind: path('dir'),
    help: 'the run directory of the daemon',
    default: defaultRunDir,
    otherwise: '/run/lazydisk for root, else $XDG_RUNTIME_DIR/lazydisk',
    env: 'LAZYDISK_RUN_DIR',
  },
  cache: {
    field: 'cacheDir',
    kind: path('dir'),
    help: 'directory of the disk cache, for this daemon alone',
  },
  cache_size: {
    field: 'cacheBytes',
    kind: size(),
    help: 'hard cap of the disk cache; where there is less room, a tenth of the disk (at most 1G) stays free',
    default: '10G',
  },
  memory: {
    field: 'memoryBytes',
    // 16 chunks, which a few readers have in flight.
    kind: size(8 * 1024 ** 2),
    help: 'memory for decoded chunks',
    default: '512M',
  },
  answer_memory: {
    field: 'answerMemoryBytes',
    // One NBD read of maximum length.
    kind: size(32 * 1024 ** 2),
    help: 'memory for long answers that guests have not taken yet',
    default: '64M',
  },
  fleet: {
    field: 'fleetUrl',
    kind: text('url'),
    help: 'memcached nodes: memcached://HOST:PORT,…?k=4&m=1 (also memcached+file:, +srv:)',
    otherwise: 'no fleet',
  },
  nbd_tcp: {
    field: 'nbdTcp',
    kind: address,
    help: 'listen for NBD here too; whoever can connect can read every drive',
    otherwise: 'the Unix socket alone',
  },
  nbd_connections: {
    field: 'nbdConnections',
    kind: count(1, 65_536),
    help: 'NBD clients at once, on the Unix socket and over TCP each',
    default: '1024',
  },
  metrics: {
    field: 'metrics',
    kind: address,
    help: 'serve Prometheus metrics here, at /metrics',
    otherwise: 'the control socket alone',
  },
  log_level: {
    field: 'logLevel',
    kind: oneOf('level', LOG_LEVELS),
    help: 'the least severe lines that are logged',
    default: 'info',
  },
  origin_timeout: {
    field: 'originTimeoutMs',
    kind: duration,
    help: 'for one try at the store',
    default: '5s',
  },
  origin_tries: {
    field: 'originTries',
    kind: count(1, 20),
    help: 'tries at the store in one read',
    default: '3',
  },
  origin_concurrency: {
    field: 'originConcurrency',
    kind: count(1, 1024),
    help: 'requests to the store at once',
    default: '32',
  },
  origin_rate: {
    field: 'originRate',
    kind: rate(1e6),
    help: 'reads of the store a second',
    otherwise: 'no bound',
  },
  origin_bandwidth: {
    field: 'originBandwidth',
    kind: size(),
    help: 'bytes from the store a second',
    otherwise: 'no bound',
  },
  starts_max: {
    field: 'startsMax',
    kind: count(1, 10_000),
    help: 'drives that may start at once while the store is slow',
    default: '32',
  },
  fleet_tls: {
    field: 'fleetTls',
    kind: text('ca'),
    help: 'TLS to the fleet, with this CA file, or "system"',
    otherwise: 'no TLS',
  },
  fleet_login: {
    field: 'fleetLogin',
    kind: path('file'),
    help: 'USER:PASSWORD for a fleet with an authfile, mode 0600',
    otherwise: 'no login',
  },
  fleet_timeout: {
    field: 'fleetTimeoutMs',
    kind: duration,
    help: 'for one try at the fleet',
    default: '250ms',
  },
  cache_timeout: {
    field: 'cacheTimeoutMs',
    kind: duration,
    help: 'until a cache that does not answer is passed over',
    default: '2s',
  },
  read_timeout: {
    field: 'readTimeoutMs',
    kind: duration,
    help: 'until a read ends in an I/O error',
    default: '25s',
  },
  guest_timeout: {
    field: 'guestTimeoutMs',
    kind: duration,
    help: 'when the guests themselves give up',
    default: '60s',
  },
  store_timeout: {
    field: 'storeTimeoutMs',
    kind: duration,
    help: 'until an attach or a list without an answer fails',
    default: '30s',
  },
  drain_timeout: {
    field: 'drainTimeoutMs',
    kind: duration,
    help: 'how long a stop waits for reads in flight',
    default: '10s',
  },
} as const satisfies Readonly<Record<string, Setting>>;

export type SettingName = keyof typeof SETTINGS;

/** The same, with one type for all rows. */
export const SETTING_ROWS = Object.entries(SETTINGS) as [SettingName, Setting][];

/** Settings as written, from one source (the file or the flags). */
export type RawSettings = Partial<Record<SettingName, unknown>>;

type ValueOf<S extends Setting> =
  | (S['kind'] extends Kind<infer T> ? T : never)
  | (S extends { readonly otherwise: string }
      ? S extends { readonly default: unknown }
        ? never
        : undefined
      : never);

/** The parsed settings, by the daemon's names for them. */
export type Settings = {
  readonly [N in SettingName as (typeof SETTINGS)[N]['field']]: ValueOf<(typeof SETTINGS)[N]>;
};

/** What applies without a value, for people; undefined for a setting that must be given. */
export function defaultText({ default: written, otherwise }: Setting): string | undefined {
  return typeof written === 'string' ? written : otherwise;
}

/** `cache_size` → `--cache-size <size>` */
export function flagText(name: SettingName): string {
  return `--${name.replaceAll('_', '-')} <${SETTINGS[name].kind.sign}>`;
}
