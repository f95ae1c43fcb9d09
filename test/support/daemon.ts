/** The real command line and the real daemon in child processes, for end-to-end tests. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Test } from 'tap';
import { ANSWERS, type Answering } from '../../src/cli/answers.ts';
import { cleanStaleMount } from '../../src/export/fuse/mount.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { loadKeyFile, newKeyFile } from '../../src/keys/key-file.ts';
import { checked, type Shape } from '../../src/shape.ts';
import type { Image } from '../../src/store/image.ts';
import { openStore } from '../../src/store/open.ts';
import { makeOciLayout } from './oci.ts';
import { putDisk } from './stored-disk.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;

export interface CliResult {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** The environment's LAZYDISK variables would affect the test. */
function cleanEnv(extra: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const env: NodeJS.ProcessEnv = { ...process.env };
  for (const name of Object.keys(env)) if (name.startsWith('LAZYDISK_')) delete env[name];
  return { ...env, ...extra };
}

/**
 * Runs `lazydisk ARGS` to its end. Throws if it answers with --json and the answer has not the shape that the command's
 * help tells of.
 */
export async function lazydisk(args: readonly string[], env?: NodeJS.ProcessEnv): Promise<CliResult> {
  const child = spawn(process.execPath, [MAIN, ...args], {
    env: cleanEnv(env),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const [code] = (await once(child, 'close')) as [number | null];
  if (args.includes('--json') && stdout !== '') checkAnswer(args, JSON.parse(stdout));
  return { code, stdout, stderr };
}

/** Throws if `answer` has not the shape of what the command that `args` call answers. */
export function checkAnswer(args: readonly string[], answer: unknown): void {
  const [word = '', next = ''] = args;
  const shape: Shape<unknown> | undefined =
    ANSWERS[word as Answering] ?? ANSWERS[`${word} ${next}` as Answering];
  if (!shape) throw new Error(`lazydisk ${word} ${next}: no shape`);
  checked(shape, answer, { code: 'CORRUPT', name: `the answer of lazydisk ${word}` });
}

/** The same with --json, parsed. Throws with its stderr if it failed. */
export async function lazydiskJson<T>(args: readonly string[], env?: NodeJS.ProcessEnv): Promise<T> {
  const { code, stdout, stderr } = await lazydisk([...args, '--json'], env);
  if (code !== 0) throw new Error(`lazydisk ${args.join(' ')}: exit ${code}: ${stderr}`);
  return JSON.parse(stdout) as T;
}

/** A directory with a path short enough for sockets, removed after the test. */
export function tempDir(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

export interface Workplace {
  readonly dir: string;
  readonly storeDir: string;
  readonly store: string;
  readonly key: string;
  readonly runDir: string;
  readonly cache: string;
}

/** A key, and paths for everything else. */
export async function workplace(t: Test): Promise<Workplace> {
  const dir = tempDir(t);
  const storeDir = join(dir, 'store');
  const key = join(dir, 'key');
  await newKeyFile(key);
  const store = `file://${storeDir}`;
  return { dir, storeDir, store, key, runDir: join(dir, 'run'), cache: join(dir, 'cache') };
}

/** The image `app:1` built by the command line, 256 MiB: `files` files of `fileBytes` random bytes each. */
export async function buildWorkplace(t: Test, files = 3, fileBytes = 700_000): Promise<Workplace> {
  const place = await workplace(t);
  const layer = Array.from({ length: files }, (_, n) => ({
    name: `data/${n}`,
    body: randomBytes(fileBytes),
  }));
  await makeOciLayout(join(place.dir, 'oci'), {
    layers: [[{ name: 'data/', type: 'directory' }, ...layer]],
    config: { Entrypoint: ['/bin/app'], Env: ['TOKEN=hunter2'], Labels: { team: 'disks' } },
  });
  const words = ['build', `oci:${place.dir}/oci`, '--name', 'app:1', '--size', '256M'];
  await lazydiskJson([...words, '--store', place.store, '--key', place.key]);
  return place;
}

/** The image `app:1` whose disk is `disk`: random chunks, every fourth one zero. Needs no build. */
export async function diskWorkplace(
  t: Test,
  chunks = 24,
): Promise<Workplace & { disk: Buffer; image: Image }> {
  const place = await workplace(t);
  const disk = randomBytes(chunks * CHUNK_BYTES);
  for (let chunk = 3; chunk < chunks; chunk += 4)
    disk.fill(0, chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
  const store = await openStore(place.store, { create: true });
  const image = await putDisk(store, await loadKeyFile(place.key), 'app:1', disk);
  await store.close();
  return { ...place, disk, image };
}

export interface LogLine extends Record<string, unknown> {
  readonly level: string;
  readonly msg?: string;
}

export class TestDaemon {
  readonly child: ChildProcess;
  /** Everything that it has logged so far. */
  readonly log: LogLine[] = [];
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  readonly #runDir: string;
  readonly #waiting = new Set<() => void>();

  private constructor(runDir: string, child: ChildProcess) {
    this.#runDir = runDir;
    this.child = child;
    createInterface({ input: child.stderr! }).on('line', (line) => {
      this.log.push(line.startsWith('{') ? (JSON.parse(line) as LogLine) : { level: 'text', msg: line });
      for (const look of this.#waiting) look();
    });
    this.exited = once(child, 'exit').then(([code, signal]) => {
      for (const look of this.#waiting) look();
      return { code, signal };
    });
  }

  /**
   * Starts `lazydisk serve` in `place`, through `wrapper` if there is one (which must exec its arguments), and resolves
   * when it serves. Without a key its flags must name one. Throws with its log if it exits before. Killed after the
   * test.
   */
  static async start(
    t: Test,
    place: Omit<Workplace, 'key'> & { readonly key: string | undefined },
    flags: readonly string[] = [],
    wrapper: readonly string[] = [],
  ): Promise<TestDaemon> {
    const key = place.key === undefined ? [] : ['--key', place.key];
    const base = ['serve', '--store', place.store, ...key, '--run-dir', place.runDir];
    const sizes = ['--cache', place.cache, '--cache-size', '64M', '--memory', '16M'];
    const words = [...wrapper, process.execPath, MAIN, ...base, ...sizes, ...flags];
    const child = spawn(words[0]!, words.slice(1), {
      env: cleanEnv(),
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const daemon = new TestDaemon(place.runDir, child);
    t.teardown(async () => {
      child.kill('SIGKILL');
      await daemon.exited;
      await cleanStaleMount(join(place.runDir, 'drives'));
    });
    await daemon.logged((line) => line.msg === 'serving');
    return daemon;
  }

  /** The first line, logged already or later, that `wanted` accepts. Rejects if the daemon exits without it. */
  logged(wanted: (line: LogLine) => boolean): Promise<LogLine> {
    return new Promise((resolve, reject) => {
      const look = () => {
        const found = this.log.find(wanted);
        const ended = this.child.exitCode !== null || this.child.signalCode !== null;
        if (!found && !ended) return;
        this.#waiting.delete(look);
        if (found) resolve(found);
        else reject(new Error(`the daemon exited: ${JSON.stringify(this.log)}`));
      };
      this.#waiting.add(look);
      look();
    });
  }

  /** Runs `lazydisk ARGS --json` against this daemon. */
  ask<T>(...args: readonly string[]): Promise<T> {
    return lazydiskJson<T>([...args, '--run-dir', this.#runDir]);
  }

  async stop(
    signal: NodeJS.Signals = 'SIGTERM',
  ): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
    this.child.kill(signal);
    return this.exited;
  }
}
