/**
 * `npm run test:soak [RUNS] [PATH …]`: runs the tests repeatedly (20 times by default), every other time beside a
 * loaded CPU and disk (stress-ng), to find those that depend on time, order or load. Ends with a table of failures and
 * their counts.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const RUNS_DEFAULT = 20;

interface Run {
  readonly loaded: boolean;
  readonly seconds: number;
  /** The runner's last line, `N passed, N failed`. */
  readonly counts: string;
  readonly failed: readonly string[];
}

/** Starts a load, and resolves when it is under way: stress-ng reports it before its workers start. */
async function load(): Promise<ChildProcess> {
  const child = spawn('stress-ng', ['--cpu', '4', '--io', '2', '--temp-path', tmpdir()], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  await Promise.race([once(child.stderr, 'data'), once(child, 'exit')]);
  if (child.exitCode !== null || child.pid === undefined) throw new Error('stress-ng does not start');
  child.stderr.resume();
  return child;
}

async function runTests(paths: readonly string[], loaded: boolean): Promise<Run> {
  const since = performance.now();
  const stress = loaded ? await load() : undefined;
  try {
    const child = spawn(process.execPath, [join(import.meta.dirname, 'run.ts'), ...paths], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
    await once(child, 'close');
    const failed = [...output.matchAll(/^FAIL (\S+)/gm)].map((match) => match[1]!);
    // Print failures in full; the rest is in the table.
    if (failed.length > 0) process.stdout.write(output);
    const counts = output.trim().split('\n').at(-1) ?? '';
    return { loaded, seconds: (performance.now() - since) / 1000, counts, failed };
  } finally {
    if (stress?.kill()) await once(stress, 'exit');
  }
}

const [first = '', ...rest] = process.argv.slice(2);
const runs = /^\d+$/.test(first) ? Number(first) : RUNS_DEFAULT;
const paths = /^\d+$/.test(first) || first === '' ? rest : [first, ...rest];
const failures = new Map<string, number>();
for (let n = 1; n <= runs; n++) {
  const run = await runTests(paths, n % 2 === 0);
  for (const file of run.failed) failures.set(file, (failures.get(file) ?? 0) + 1);
  process.stdout.write(
    `run ${n} of ${runs}${run.loaded ? ', loaded' : ''}: ${run.counts} in ${run.seconds.toFixed(0)} s\n`,
  );
  if (!/ passed, 0 failed/.test(run.counts)) process.exitCode = 1;
}
for (const [file, times] of failures) process.stdout.write(`failed ${times} times: ${file}\n`);
