/**
 * How long each command takes to start, against bare node in the same run: `npm run bench:startup`. A start lasts until
 * the first byte of a command's own work: stores, images, disks and daemons are absent, so the command fails as soon as
 * it has loaded its modules and looked for them; `serve` has started when its control socket exists. Each round starts
 * each command once, in turn, so that other load on the machine affects all of them.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, watch } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openStore } from '../../src/store/open.ts';

const ROUNDS = 15;
const LAUNCHER = join(import.meta.dirname, '../../src/lazydisk');

const dir = mkdtempSync(join(tmpdir(), 'lazydisk-startup-'));
const none = join(dir, 'none');
const key = join(dir, 'key');
const runDir = join(dir, 'run');
const daemon = [
  '--store',
  join(dir, 'store'),
  '--key',
  key,
  '--cache',
  join(dir, 'cache'),
  '--run-dir',
  runDir,
];
const starts: Readonly<Record<string, readonly string[]>> = {
  '--version': ['--version'],
  '--help': ['--help'],
  'boot --help': ['boot', '--help'],
  'key new': ['key', 'new', join(none, 'key')],
  build: ['build', `oci:${none}`, '--name', 'app', '--store', none, '--key', key],
  images: ['images', '--store', none],
  inspect: ['inspect', 'app', '--store', none],
  export: ['export', 'app', join(dir, 'disk'), '--store', none, '--key', key],
  copy: ['copy', 'app', none, none],
  tag: ['tag', 'app', 'other', '--store', none],
  rm: ['rm', 'app', '--store', none],
  fsck: ['fsck', '--store', none],
  'gc status': ['gc', 'status', '--store', none],
  'gc run': ['gc', 'run', '--store', none],
  'gc policy': ['gc', 'policy', '--store', none],
  attach: ['attach', 'app', '--run-dir', none],
  detach: ['detach', 'app', '--run-dir', none],
  drives: ['drives', '--run-dir', none],
  stat: ['stat', 'app', '--run-dir', none],
  status: ['status', '--run-dir', none],
  fleet: ['fleet', 'status', '--run-dir', none],
  boot: ['boot', 'app', '--run-dir', none],
  serve: ['serve', ...daemon, '--cache-size', '64M', '--memory', '8M'],
};

function run(program: string, words: readonly string[]): ChildProcess {
  return spawn(program, words, { stdio: 'ignore' });
}

function exited(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', () => resolve());
  });
}

async function startMs(program: string, words: readonly string[]): Promise<number> {
  const beganMs = performance.now();
  await exited(run(program, words));
  return performance.now() - beganMs;
}

/** Milliseconds until the control socket exists; then the daemon is stopped. */
async function serveMs(words: readonly string[]): Promise<number> {
  const listening = Promise.withResolvers<void>();
  const watcher = watch(runDir, (_, name) => {
    if (name === 'control.sock') listening.resolve();
  });
  const beganMs = performance.now();
  const child = run(LAUNCHER, words);
  const ended = exited(child);
  try {
    await Promise.race([
      listening.promise,
      ended.then(() => Promise.reject(new Error('serve exited before it listened'))),
    ]);
    return performance.now() - beganMs;
  } finally {
    watcher.close();
    child.kill('SIGTERM');
    await ended;
  }
}

mkdirSync(runDir, { mode: 0o700 });
await (await openStore(join(dir, 'store'), { create: true })).close();
await startMs(LAUNCHER, ['key', 'new', key]);
const times = new Map<string, number[]>();
const note = (what: string, ms: number) => times.set(what, [...(times.get(what) ?? []), ms]);
// The first round fills Node's compile cache of our sources.
for (let round = 0; round <= ROUNDS; round++) {
  if (round === 1) times.clear();
  note('node -e 0', await startMs(process.execPath, ['-e', '0']));
  for (const [what, words] of Object.entries(starts))
    note(`lazydisk ${what}`, what === 'serve' ? await serveMs(words) : await startMs(LAUNCHER, words));
}
rmSync(dir, { recursive: true });

const bare = median(times.get('node -e 0')!);
for (const [what, list] of times) {
  const ms = median(list);
  const least = Math.min(...list);
  console.log(
    `${what.padEnd(20)} ${ms.toFixed(0).padStart(5)} ms (least ${least.toFixed(0).padStart(3)})   ${(ms / bare).toFixed(2)} × bare node`,
  );
}

function median(list: readonly number[]): number {
  return list.toSorted((a, b) => a - b)[list.length >> 1]!;
}
