/** The native threads and the event loop together under ThreadSanitizer: no data race, and no wrong byte. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';

const run = promisify(execFile);
const NATIVE = join(import.meta.dirname, '..', '..', 'native');

/** Builds `source`, runs it, and returns the numbers that it prints. */
async function numbersOf(t: Test, source: string, units: readonly string[]): Promise<number[]> {
  const program = join(t.testdir(), 'threads');
  const flags = ['-std=c++20', '-O1', '-g', '-pthread', '-fsanitize=thread'];
  const sources = [join(import.meta.dirname, source), ...units.map((name) => join(NATIVE, name))];
  await run('g++', [...flags, '-o', program, ...sources]);
  // Without address randomisation, because newer kernels use more of it than older sanitizers support.
  const { stdout, stderr } = await run('setarch', ['-R', program]);
  t.equal(stderr, '');
  t.comment(stdout);
  return [...stdout.matchAll(/\d+/g)].map(Number);
}

t.test('NBD: slots are evicted and refilled under readers without a race', async (t) => {
  const units = ['residency.cc', 'nbd-hits.cc', 'nbd-client.cc', 'nbd-loop.cc'];
  const [wrong, hits] = await numbersOf(t, 'nbd-loop-threads.cc', units);
  t.equal(wrong, 0);
  t.ok(hits! > 1000);
});

t.test(
  'FUSE: slots are evicted and refilled under pushes without a race, and none stays pinned',
  async (t) => {
    const [wrong, pushed, , pinned] = await numbersOf(t, 'fuse-notify-threads.cc', [
      'residency.cc',
      'fuse-notify.cc',
    ]);
    t.equal(wrong, 0);
    t.ok(pushed! > 100);
    t.equal(pinned, 0);
  },
);
