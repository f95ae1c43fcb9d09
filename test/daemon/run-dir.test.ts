import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { defaultRunDir, runPaths, takeRunDir } from '../../src/daemon/run-dir.ts';

const noMount = async () => {};

/** Short, for sun_path. */
function tempDir(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

t.test('it is made private, and given back without a trace', async (t) => {
  const dir = join(tempDir(t), 'run');
  const run = await takeRunDir(dir, noMount);
  t.equal(statSync(dir).mode & 0o777, 0o700);
  t.equal(readFileSync(run.paths.pid, 'utf8'), `${process.pid}\n`);
  await run.release();
  t.notOk(existsSync(run.paths.pid));
  await (await takeRunDir(dir, noMount)).release();
});

t.test('an existing one that others may enter is closed to them', async (t) => {
  const dir = tempDir(t);
  chmodSync(dir, 0o755);
  const run = await takeRunDir(dir, noMount);
  t.equal(statSync(dir).mode & 0o777, 0o700);
  await run.release();
});

t.test('of many who want it at once, one gets it', async (t) => {
  const dir = tempDir(t);
  const results = await Promise.allSettled(Array.from({ length: 10 }, () => takeRunDir(dir, noMount)));
  const taken = results.filter((result) => result.status === 'fulfilled');
  t.equal(taken.length, 1);
  for (const result of results) {
    if (result.status === 'rejected') t.match(result.reason, { code: 'BUSY' });
  }
  await taken[0]?.value.release();
});

t.test('who holds it is named', async (t) => {
  const dir = tempDir(t);
  const run = await takeRunDir(dir, noMount);
  await t.rejects(takeRunDir(dir, noMount), { code: 'BUSY', message: new RegExp(`pid ${process.pid}`) });
  await run.release();
});

t.test('a control socket that answers holds it too, as from another network namespace', async (t) => {
  const dir = tempDir(t);
  const server = createServer((socket) => socket.destroy());
  await new Promise<void>((resolve) => server.listen(runPaths(dir).control, resolve));
  await t.rejects(takeRunDir(dir, noMount), { code: 'BUSY' });
  server.close();
});

t.test('what a killed holder left is cleared, and nothing else', async (t) => {
  const dir = tempDir(t);
  const code = `
    const { takeRunDir } = await import(${JSON.stringify(new URL('../../src/daemon/run-dir.ts', import.meta.url))});
    const { createServer } = await import('node:net');
    const run = await takeRunDir(${JSON.stringify(dir)}, async () => {});
    createServer().listen(run.paths.control, () => createServer().listen(run.paths.nbd, () => console.log('up')));
    setInterval(() => {}, 1000);
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  await t.rejects(takeRunDir(dir, noMount), { code: 'BUSY' });
  child.kill('SIGKILL');
  await once(child, 'exit');
  const paths = runPaths(dir);
  t.ok(lstatSync(paths.control).isSocket());
  writeFileSync(join(dir, 'notes'), 'mine');

  const cleaned: string[] = [];
  const run = await takeRunDir(dir, async (path) => void cleaned.push(path));
  t.same(cleaned, [paths.drives]);
  t.notOk(existsSync(paths.control));
  t.notOk(existsSync(paths.nbd));
  t.ok(existsSync(join(dir, 'notes')));
  await run.release();
});

t.test('a file where a socket belongs is not removed', async (t) => {
  const dir = tempDir(t);
  writeFileSync(runPaths(dir).nbd, 'precious');
  await t.rejects(takeRunDir(dir, noMount), { code: 'EXISTS' });
  t.equal(readFileSync(runPaths(dir).nbd, 'utf8'), 'precious');
  await t.rejects(takeRunDir(dir, noMount), { code: 'EXISTS' }, 'and the lock was given back');
});

t.test('a path too long for a socket is refused by name', async (t) => {
  t.throws(() => runPaths(`/${'x'.repeat(100)}`), { code: 'USAGE', message: /too long/ });
});

t.test('the default follows the user', async (t) => {
  const root = process.getuid?.() === 0;
  t.equal(defaultRunDir({ XDG_RUNTIME_DIR: '/run/user/7' }), root ? '/run/lazydisk' : '/run/user/7/lazydisk');
  if (!root) t.throws(() => defaultRunDir({}), { code: 'USAGE' });
});
