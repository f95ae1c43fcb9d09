/**
 * The daemon's configuration: a TOML file and flags, parsed according to the table of settings. Both use the same names
 * (a dash in a flag is an underscore in the file), and flags take precedence. All errors are reported at once, by name.
 */
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { parse as parseToml } from 'smol-toml';
import type { FleetConfig } from '../chunk/fleet/fleet.ts';
import { parseFleetUrl } from '../chunk/fleet/node-list.ts';
import { errorText, LazydiskError } from '../errors.ts';
import { keySpecText, parseKeySpec } from '../keys/key-spec.ts';
import { checkBudget } from './budget.ts';
import { type RawSettings, SETTING_ROWS, SETTINGS, type Settings } from './settings.ts';

/** A configuration file has a few lines; a larger file must be something else. */
const FILE_BYTES_MAX = 64 * 1024;

/** The daemon's configuration, checked and complete. */
export interface ServeConfig extends Settings {
  readonly fleet: FleetConfig | undefined;
}

/** Returns the settings in a TOML file, unchecked. Throws NOT_FOUND, USAGE. */
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
    // smol-toml appends an excerpt of several lines; the first line says what is wrong and where.
    const [why] = errorText(cause).split('\n');
    throw new LazydiskError('USAGE', `configuration ${file}: ${why}`, { cause });
  }
}

/**
 * Later sources override earlier ones, except where they are undefined. Throws USAGE, listing everything that is wrong.
 */
export function resolveConfig(...sources: RawSettings[]): ServeConfig {
  const written: Record<string, unknown> = {};
  for (const source of sources) {
    for (const [name, value] of Object.entries(source)) if (value !== undefined) written[name] = value;
  }
  const settings = parseSettings(written);
  const config: ServeConfig = {
    ...settings,
    keys: settings.keys.map(absoluteSpec),
    fleet: fleetOf(settings),
  };
  checkBudget({ ...config, caches: config.fleet ? 2 : 1 });
  return config;
}

function parseSettings(written: Readonly<Record<string, unknown>>): Settings {
  const values: Record<string, unknown> = {};
  const wrong: string[] = [];
  for (const [name, { field, kind, default: standard, otherwise }] of SETTING_ROWS) {
    try {
      const value = written[name] ?? (typeof standard === 'function' ? standard() : standard);
      if (value !== undefined) values[field] = kind.parse(value);
      else if (otherwise === undefined) wrong.push(`${name} is missing`);
    } catch (error) {
      wrong.push(`${name}: ${errorText(error)}`);
    }
  }
  for (const name of Object.keys(written))
    if (!Object.hasOwn(SETTINGS, name))
      wrong.push(`there is no setting ${JSON.stringify(name.slice(0, 100))}`);
  if (wrong.length > 0) throw new LazydiskError('USAGE', `configuration: ${wrong.join('; ')}`);
  return values as Settings;
}

/** Makes a key file's path absolute, relative to the daemon's working directory. */
function absoluteSpec(text: string): string {
  const spec = parseKeySpec(text);
  return keySpecText(spec.kind === 'file' ? { kind: 'file', path: resolve(spec.path) } : spec);
}

function fleetOf(settings: Settings): FleetConfig | undefined {
  const { fleetUrl: url, fleetTls: tls, fleetLogin: loginFile, fleetTimeoutMs: timeoutMs } = settings;
  if (url === undefined) {
    if (tls === undefined && loginFile === undefined) return undefined;
    throw new LazydiskError('USAGE', 'configuration: fleet_tls and fleet_login are of use with fleet alone');
  }
  // Fails now rather than at the first read.
  parseFleetUrl(url);
  return { url, tls: tls === undefined || tls === 'system' ? tls : resolve(tls), loginFile, timeoutMs };
}
