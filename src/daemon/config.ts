/**
 * The daemon's configuration: one zod schema for a TOML file and for flags, which have the same names (a dash in
 * a flag is an underscore in the file) and win over it. What is wrong is reported all at once, by name.
 */
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { parse as parseToml } from 'smol-toml';
import { z } from 'zod';
import type { FleetConfig } from '../chunk/fleet/fleet.ts';
import { parseFleetUrl } from '../chunk/fleet/node-list.ts';
import { errorText, LazydiskError } from '../errors.ts';
import { CHUNK_BYTES } from '../format/chunk-id.ts';
import { keySpecText, parseKeySpec } from '../keys/key-spec.ts';
import { parseDuration, parseSize } from '../units.ts';
import { checkBudget } from './budget.ts';
import { LOG_LEVELS } from './log.ts';

/** A configuration file is a few lines; whatever is larger is something else. */
const FILE_BYTES_MAX = 64 * 1024;

/** Memory below this cannot hold the chunks that a few readers have in flight. */
const MEMORY_BYTES_MIN = 16 * CHUNK_BYTES;
/** One of the longest reads of NBD. */
const ANSWER_MEMORY_BYTES_MIN = 32 * 1024 ** 2;

export interface Address {
  readonly host: string;
  readonly port: number;
}

const size = z
  .union([z.string(), z.int().nonnegative()])
  .transform((value, ctx) => (typeof value === 'number' ? value : parsed(() => parseSize(value), ctx)));
const duration = z.string().transform((value, ctx) => parsed(() => parseDuration(value), ctx));
const address = z.string().transform((value, ctx) => parsed(() => parseAddress(value), ctx));

const path = z.string().min(1);

/** Names as they stand in the file. Defaults are here and nowhere else; durations are text with a unit. */
const settingsSchema = z.strictObject({
  store: z.string().min(1),
  cache: path,
  cache_size: size,
  memory: size,
  answer_memory: size.prefault('64M'),
  key: z.union([z.string().min(1), z.array(z.string().min(1)).min(1)]),
  run_dir: path,
  nbd_tcp: address.optional(),
  nbd_connections: z.coerce.number().int().min(1).max(65_536).default(1024),
  metrics: address.optional(),
  log_level: z.enum(LOG_LEVELS).default('info'),
  origin_timeout: duration.prefault('5s'),
  origin_tries: z.coerce.number().int().min(1).max(20).default(3),
  origin_concurrency: z.coerce.number().int().min(1).max(1024).default(32),
  origin_rate: z.coerce.number().positive().max(1e6).optional(),
  origin_bandwidth: size.optional(),
  starts_max: z.coerce.number().int().min(1).max(10_000).default(32),
  fleet: z.string().min(1).optional(),
  fleet_tls: z.string().min(1).optional(),
  fleet_login: path.optional(),
  fleet_timeout: duration.prefault('250ms'),
  cache_timeout: duration.prefault('2s'),
  read_timeout: duration.prefault('25s'),
  guest_timeout: duration.prefault('60s'),
  drain_timeout: duration.prefault('10s'),
  store_timeout: duration.prefault('30s'),
});

export type SettingName = keyof z.input<typeof settingsSchema>;

/** Settings as they were written, from one place (the file, or the flags). */
export type RawSettings = Partial<Record<SettingName, unknown>>;

export interface ServeConfig {
  readonly store: string;
  readonly cacheDir: string;
  readonly cacheBytes: number;
  readonly memoryBytes: number;
  /** For long answers that guests have not taken yet. */
  readonly answerMemoryBytes: number;
  /** What names the keys that images are opened with (store/key-spec.ts); the first is the host's own. */
  readonly keys: readonly string[];
  readonly runDir: string;
  readonly nbdTcp: Address | undefined;
  /** NBD clients at once, on the Unix socket and over TCP each. */
  readonly nbdConnections: number;
  readonly metrics: Address | undefined;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly originTimeoutMs: number;
  readonly originTries: number;
  readonly originConcurrency: number;
  readonly originRate: number | undefined;
  readonly originBandwidth: number | undefined;
  /** Drives that may be starting at once while the origin is strained. */
  readonly startsMax: number;
  readonly fleet: FleetConfig | undefined;
  readonly cacheTimeoutMs: number;
  readonly readTimeoutMs: number;
  readonly guestTimeoutMs: number;
  /** How long a stop waits for reads in flight. */
  readonly drainTimeoutMs: number;
  /** How long an attach or a list waits for the store. */
  readonly storeTimeoutMs: number;
}

/** What the daemon takes when neither flags nor file say it. */
export const DEFAULT_SETTINGS: RawSettings = { cache_size: '10G', memory: '512M' };

/** The settings in a TOML file, unchecked. Throws NOT_FOUND, USAGE. */
export async function readSettingsFile(file: string): Promise<RawSettings> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    throw new LazydiskError('NOT_FOUND', `configuration ${file}: ${errorText(cause)}`, { cause });
  }
  if (text.length > FILE_BYTES_MAX) throw new LazydiskError('USAGE', `configuration ${file}: over 64 KiB`);
  try {
    return parseToml(text) as RawSettings;
  } catch (cause) {
    // smol-toml appends an excerpt over several lines; the first says what and where.
    const [why] = errorText(cause).split('\n');
    throw new LazydiskError('USAGE', `configuration ${file}: ${why}`, { cause });
  }
}

/** Later sources win over earlier ones; undefined wins over nothing. Throws USAGE with everything that is wrong. */
export function resolveConfig(...sources: RawSettings[]): ServeConfig {
  const merged: Record<string, unknown> = {};
  for (const source of [DEFAULT_SETTINGS, ...sources]) {
    for (const [name, value] of Object.entries(source)) if (value !== undefined) merged[name] = value;
  }
  const result = settingsSchema.safeParse(merged);
  if (!result.success) throw new LazydiskError('USAGE', `configuration: ${issuesText(result.error)}`);
  const settings = result.data;
  if (settings.memory < MEMORY_BYTES_MIN) {
    throw new LazydiskError('USAGE', `configuration: memory: want at least ${MEMORY_BYTES_MIN} bytes`);
  }
  if (settings.answer_memory < ANSWER_MEMORY_BYTES_MIN) {
    throw new LazydiskError(
      'USAGE',
      `configuration: answer_memory: want at least ${ANSWER_MEMORY_BYTES_MIN} bytes`,
    );
  }
  const config: ServeConfig = {
    store: settings.store,
    cacheDir: resolve(settings.cache),
    cacheBytes: settings.cache_size,
    memoryBytes: settings.memory,
    answerMemoryBytes: settings.answer_memory,
    keys: [settings.key].flat().map(absoluteSpec),
    runDir: resolve(settings.run_dir),
    nbdTcp: settings.nbd_tcp,
    nbdConnections: settings.nbd_connections,
    metrics: settings.metrics,
    logLevel: settings.log_level,
    originTimeoutMs: settings.origin_timeout,
    originTries: settings.origin_tries,
    originConcurrency: settings.origin_concurrency,
    originRate: settings.origin_rate,
    originBandwidth: settings.origin_bandwidth,
    startsMax: settings.starts_max,
    fleet: fleetOf(settings),
    cacheTimeoutMs: settings.cache_timeout,
    readTimeoutMs: settings.read_timeout,
    guestTimeoutMs: settings.guest_timeout,
    drainTimeoutMs: settings.drain_timeout,
    storeTimeoutMs: settings.store_timeout,
  };
  checkBudget({ ...config, caches: config.fleet ? 2 : 1 });
  return config;
}

/** A key file is found from where the daemon was started. */
function absoluteSpec(text: string): string {
  const spec = parseKeySpec(text);
  return keySpecText(spec.kind === 'file' ? { kind: 'file', path: resolve(spec.path) } : spec);
}

function fleetOf(settings: z.output<typeof settingsSchema>): FleetConfig | undefined {
  const { fleet, fleet_tls: tls, fleet_login: login, fleet_timeout: timeoutMs } = settings;
  if (fleet === undefined) {
    if (tls === undefined && login === undefined) return undefined;
    throw new LazydiskError('USAGE', 'configuration: fleet_tls and fleet_login are of use with fleet alone');
  }
  // Said now and not by the first read.
  parseFleetUrl(fleet);
  return {
    url: fleet,
    tls: tls === undefined || tls === 'system' ? tls : resolve(tls),
    loginFile: login === undefined ? undefined : resolve(login),
    timeoutMs,
  };
}

/** `127.0.0.1:9100`, `[::1]:9100`, `localhost:0` → host and port. Throws USAGE. */
export function parseAddress(text: string): Address {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (!match || port > 65535) {
    throw new LazydiskError('USAGE', `address ${JSON.stringify(text)}: want HOST:PORT`);
  }
  return { host: (match[1] ?? match[2])!, port };
}

/** All that a schema found wrong, on one line, without the values (one might be a secret in the wrong place). */
export function issuesText(error: z.ZodError): string {
  return error.issues
    .map((issue) => {
      const where = issue.path.join('.');
      return where ? `${where}: ${issue.message}` : issue.message;
    })
    .join('; ');
}

/** What `parse` gives; what it throws becomes an issue of the schema. */
function parsed<T>(parse: () => T, ctx: z.RefinementCtx): T {
  try {
    return parse();
  } catch (error) {
    ctx.addIssue({ code: 'custom', message: errorText(error) });
    return z.NEVER;
  }
}
