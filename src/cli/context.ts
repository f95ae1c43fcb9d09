/**
 * What the commands share: the options that several of them take, with their environment variables, and how an
 * answer is printed. Heavy parts (native addon, daemon) are imported by a command's action and not here, so that
 * `--help` and a refused flag come at once.
 */
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import { ControlClient } from '../daemon/client.ts';
import { defaultRunDir } from '../daemon/run-dir.ts';
import { LazydiskError } from '../errors.ts';
import type { TenantKey } from '../format/keys.ts';
import type { Store } from '../store/store.ts';

export interface JsonOptions {
  readonly json?: boolean;
}

export interface RunDirOptions {
  readonly runDir?: string;
}

export interface StoreOptions {
  readonly store?: string;
  readonly key?: string;
}

export function withJson(command: Command): Command {
  return command.option('--json', 'print one JSON document instead of text for people');
}

export function withRunDir(command: Command): Command {
  const where =
    'the run directory of the daemon (default: /run/lazydisk for root, else $XDG_RUNTIME_DIR/lazydisk)';
  return command.addOption(new Option('--run-dir <dir>', where).env('LAZYDISK_RUN_DIR'));
}

export function withStore(command: Command): Command {
  return command
    .addOption(new Option('--store <url>', 'the store: file:///DIR or a path').env('LAZYDISK_STORE'))
    .addOption(new Option('--key <key>', 'the tenant key: file:PATH, or just the path').env('LAZYDISK_KEY'));
}

export function runDirOf(options: RunDirOptions): string {
  return resolve(options.runDir ?? defaultRunDir());
}

export function clientOf(options: RunDirOptions): ControlClient {
  return new ControlClient(runDirOf(options));
}

/** Opens the store that --store names, calls `use`, closes it. Throws USAGE if none is named. */
export async function usingStore<T>(
  options: StoreOptions & { create?: boolean },
  use: (store: Store) => Promise<T>,
): Promise<T> {
  if (!options.store) throw new LazydiskError('USAGE', 'no store: give --store or set LAZYDISK_STORE');
  const { openStore } = await import('../store/open.ts');
  const store = await openStore(options.store, { create: options.create ?? false });
  try {
    return await use(store);
  } finally {
    await store.close();
  }
}

/** The key that --key names. Throws USAGE if none is named, KEY. */
export async function requireKey(options: StoreOptions): Promise<TenantKey> {
  if (!options.key) throw new LazydiskError('USAGE', 'no key: give --key or set LAZYDISK_KEY');
  return loadKey(options.key);
}

/** The same, or undefined if none is named. */
export async function optionalKey(options: StoreOptions): Promise<TenantKey | undefined> {
  return options.key ? loadKey(options.key) : undefined;
}

/** The key that `spec` (src/store/key-spec.ts) means; the first of them, where it means several. Throws USAGE, KEY. */
export async function loadKey(spec: string): Promise<TenantKey> {
  const { KeyRing } = await import('../store/key-ring.ts');
  const ring = await KeyRing.open([spec]);
  return ring.primary();
}

/** The command's answer on stdout: `value` as JSON with --json, else what `human` makes of it. */
export function answer<T>(options: JsonOptions, value: T, human: (value: T) => string): void {
  process.stdout.write(options.json ? `${JSON.stringify(value, null, 2)}\n` : human(value));
}

/** Calls `work` with a signal that SIGINT and SIGTERM abort, so that it can end tidily; a second one kills. */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const stop = (name: NodeJS.Signals) => controller.abort(new LazydiskError('ABORTED', `stopped by ${name}`));
  const signals = ['SIGINT', 'SIGTERM'] as const;
  for (const name of signals) process.once(name, stop);
  try {
    return await work(controller.signal);
  } catch (error) {
    // Whoever was interrupted may have failed in its own way; the reason is still the signal.
    throw controller.signal.aborted ? (controller.signal.reason as Error) : error;
  } finally {
    for (const name of signals) process.off(name, stop);
  }
}
