/**
 * What the commands share: the options that several of them take, with their environment variables, and the output of
 * results. Heavy parts (native addon, daemon) are imported in a command's action rather than here, so that `--help` and
 * usage errors appear at once.
 */
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import type { Patience } from '../async/patience.ts';
import type { ControlClient } from '../daemon/client.ts';
import { defaultRunDir } from '../daemon/run-paths.ts';
import { LazydiskError } from '../errors.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import type { RootStore } from '../store/roots/root-store.ts';
import { parseDuration } from '../units.ts';
import { ANSWERS, type Answering } from './answers.ts';
import { Progress } from './progress.ts';
import { settingOption } from './setting-option.ts';

export interface JsonOptions {
  readonly json?: boolean;
}

export interface RunDirOptions {
  readonly runDir?: string;
}

export interface StoreOptions {
  readonly store?: string;
  readonly key?: readonly string[];
}

/** With --json, and the fields of what `answering` answers then at the end of its help. */
export function withJson(command: Command, answering: Answering): Command {
  return command
    .option('--json', 'print one JSON document instead of text for people')
    .addHelpText('afterAll', () => `\n${wrapped(`JSON:${ANSWERS[answering].fields}`)}`);
}

/** `fields` in lines that end with a comma. */
function wrapped(fields: string): string {
  return fields.replace(/(.{1,117}(?:,|$)) ?/g, '$1\n').trimEnd();
}

export function withRunDir(command: Command): Command {
  return command.addOption(settingOption('run_dir'));
}

export function withStore(command: Command): Command {
  return withKey(command.addOption(storeOption()));
}

export function storeOption(): Option {
  return settingOption('store');
}

export function withKey(command: Command): Command {
  return command.addOption(settingOption('key'));
}

export interface RetryFlags {
  readonly retryFor: string;
}

export function withRetry(command: Command): Command {
  const what = 'how long to wait for a store that does not answer; 0s: no longer than a few tries';
  return command.addOption(
    new Option('--retry-for <duration>', what).default('5m').env('LAZYDISK_RETRY_FOR'),
  );
}

function runDirOf(options: RunDirOptions): string {
  return resolve(options.runDir ?? defaultRunDir());
}

export async function clientOf(options: RunDirOptions): Promise<ControlClient> {
  const { ControlClient } = await import('../daemon/client.ts');
  return new ControlClient(runDirOf(options));
}

/** How to open a store. */
interface OpenOptions {
  readonly create?: boolean;
  readonly patience?: Patience;
}

/** Opens the store that --store names, calls `use`, closes the store. Throws USAGE if there is no --store. */
export async function usingStore<T>(
  options: StoreOptions & OpenOptions,
  use: (store: RootStore) => Promise<T>,
): Promise<T> {
  if (!options.store) throw new LazydiskError('USAGE', 'no store: give --store or set LAZYDISK_STORE');
  return usingStoreAt(options.store, options, use);
}

/** The same for the store at `url`. */
export async function usingStoreAt<T>(
  url: string,
  { create = false, patience }: OpenOptions,
  use: (store: RootStore) => Promise<T>,
): Promise<T> {
  const { openStore } = await import('../store/open.ts');
  const store = await openStore(url, { create, patience });
  try {
    return await use(store);
  } finally {
    await store.close();
  }
}

/** Opens the store, and the keys that --key names, if any. */
export async function usingKeys<T>(
  options: StoreOptions & OpenOptions,
  use: (store: RootStore, keys: KeyRing | undefined) => Promise<T>,
): Promise<T> {
  return usingStore(options, (store) => usingKeysOf(options.key, store, (keys) => use(store, keys)));
}

/** Opens the keys that --key names, if any. */
export async function usingKeysOf<T>(
  specs: readonly string[] | undefined,
  store: RootStore,
  use: (keys: KeyRing | undefined) => Promise<T>,
): Promise<T> {
  if (!specs) return use(undefined);
  const keys = await openKeys(specs, store);
  try {
    return await use(keys);
  } finally {
    keys.close();
  }
}

/** Opens the keys that --key names. Throws USAGE, KEY. */
export async function openKeys(specs: readonly string[], store?: RootStore): Promise<KeyRing> {
  const { KeyRing } = await import('../keys/key-ring.ts');
  return KeyRing.open(specs, store && { wrappedKeys: store });
}

/** For commands that cannot do anything with an image without a key. Throws USAGE. */
export function requireKeys<T>(keys: T | undefined): T {
  if (!keys) throw new LazydiskError('USAGE', 'no key: give --key or set LAZYDISK_KEY');
  return keys;
}

/** Prints the command's result to stdout: `value` as JSON with --json, otherwise the text that `human` returns. */
export function answer<T>(options: JsonOptions, value: T, human: (value: T) => string): void {
  process.stdout.write(options.json ? `${JSON.stringify(value, null, 2)}\n` : human(value));
}

/**
 * Calls `work` with a signal that SIGINT and SIGTERM abort, so that it can stop cleanly; a second one kills the
 * process.
 */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const stop = (name: NodeJS.Signals) => controller.abort(new LazydiskError('ABORTED', `stopped by ${name}`));
  const signals = ['SIGINT', 'SIGTERM'] as const;
  for (const name of signals) process.once(name, stop);
  try {
    return await work(controller.signal);
  } catch (error) {
    // An interrupted operation may fail with any error; the signal is still the reason.
    throw controller.signal.aborted ? (controller.signal.reason as Error) : error;
  } finally {
    for (const name of signals) process.off(name, stop);
  }
}

/** What long-running work receives. */
export interface LongWork {
  /** Aborted by SIGINT and SIGTERM. */
  readonly signal: AbortSignal;
  readonly progress: Progress;
  /** For the stores that it opens. */
  readonly patience: Patience;
}

/** Runs `work` as `interruptible`, with a progress line and the patience that --retry-for specifies. Throws USAGE. */
export async function longWork<T>(
  label: string,
  flags: RetryFlags,
  work: (long: LongWork) => Promise<T>,
): Promise<T> {
  const forMs = parseDuration(flags.retryFor);
  const progress = new Progress(label);
  return interruptible((signal) => {
    const onOutage: Patience['onOutage'] = (outage) => progress.outage(outage);
    return work({ signal, progress, patience: { forMs, signal, onOutage } });
  }).finally(() => progress.end());
}
