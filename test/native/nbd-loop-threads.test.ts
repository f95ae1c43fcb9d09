/** The native NBD thread and the event loop at once, under ThreadSanitizer: no data race, and no wrong byte. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';

const run = promisify(execFile);
const NATIVE = join(import.meta.dirname, '..', '..', 'native');

t.test('slots are evicted and refilled under readers without a race', async (t) => {
  const program = join(t.testdir(), 'threads');
  const units = ['residency.cc', 'nbd-hits.cc', 'nbd-client.cc', 'nbd-loop.cc'].map((name) =>
    join(NATIVE, name),
  );
  const source = join(import.meta.dirname, 'nbd-loop-threads.cc');
  const flags = ['-std=c++20', '-O1', '-g', '-pthread', '-fsanitize=thread'];
  await run('g++', [...flags, '-o', program, source, ...units]);
  // Without address randomisation, of which newer kernels do more than older sanitizers can take.
  const { stdout, stderr } = await run('setarch', ['-R', program]);
  t.equal(stderr, '');
  const [wrong, hits] = [...stdout.matchAll(/\d+/g)].map(Number);
  t.equal(wrong, 0, stdout);
  t.ok(hits! > 1000, stdout);
});
