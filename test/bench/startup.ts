/**
 * How long the command line takes to start, against bare node in the same run: `npm run bench:startup`. Rounds of one
 * start each, in turn, so that whatever else the machine does hits all of them.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ROUNDS = 15;
const LAUNCHER = join(import.meta.dirname, '../../src/lazydisk');

const dir = mkdtempSync(join(tmpdir(), 'lazydisk-startup-'));
const none = join(dir, 'none');
const starts: Record<string, readonly string[]> = {
  'node -e 0': [process.execPath, '-e', '0'],
  'lazydisk --version': [LAUNCHER, '--version'],
  'lazydisk --help': [LAUNCHER, '--help'],
  'lazydisk images': [LAUNCHER, 'images', '--store', none],
  'lazydisk copy': [LAUNCHER, 'copy', 'app:1', none, none],
  'lazydisk gc status': [LAUNCHER, 'gc', 'status', '--store', none],
  'lazydisk drives': [LAUNCHER, 'drives', '--run-dir', none],
};

/** The stores and daemons are not there, so each command ends as soon as it has begun: what is measured is its start. */
function startMs([program, ...words]: readonly string[]): number {
  const beganMs = performance.now();
  const { error } = spawnSync(program!, words, { stdio: 'ignore' });
  if (error) throw error;
  return performance.now() - beganMs;
}

const times = new Map(Object.keys(starts).map((what) => [what, [] as number[]]));
// The first one makes what Node keeps of our sources.
for (const words of Object.values(starts)) startMs(words);
for (let round = 0; round < ROUNDS; round++)
  for (const [what, words] of Object.entries(starts)) times.get(what)!.push(startMs(words));
rmSync(dir, { recursive: true });

const median = (list: readonly number[]) => list.toSorted((a, b) => a - b)[list.length >> 1]!;
const bare = median(times.get('node -e 0')!);
for (const [what, list] of times) {
  const ms = median(list);
  console.log(`${what.padEnd(20)} ${ms.toFixed(0).padStart(5)} ms   ${(ms / bare).toFixed(2)} × bare node`);
}
