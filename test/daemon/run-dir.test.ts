import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { takeRunDir } from '../../src/daemon/run-dir.ts';
import { defaultRunDir, runPaths } from '../../src/daemon/run-paths.ts';
import { lockDirectory } from '../../src/directory-lock.ts';
import type { LazydiskError } from '../../src/errors.ts';
import { skipWithoutRoot } from '../support/tools.ts';

const noMount = async () => {};

/** A short path, for sun_path. */
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

t.test('a name in the abstract socket namespace, which any user can take, holds up nobody', async (t) => {
  const dir = tempDir(t);
  const { dev, ino } = statSync(dir);
  for (const purpose of ['run', 'cache']) {
    const squatter = createServer().listen(`\0lazydisk-${purpose}-${dev}-${ino}`);
    t.teardown(() => squatter.close());
  }
  await (await takeRunDir(dir, noMount)).release();
});

t.test('a lock that is taken and given up by many holds for one at a time', async (t) => {
  const dir = tempDir(t);
  let holders = 0;
  let taken = 0;
  const contend = async () => {
    for (let n = 0; n < 50; n++) {
      const lock = await lockDirectory(dir, 'x').catch((error: LazydiskError) => {
        if (error.code !== 'BUSY') throw error;
      });
      if (!lock) continue;
      taken++;
      if (++holders > 1) t.fail('two hold it');
      await new Promise((resolve) => setImmediate(resolve));
      holders--;
      await lock.release();
    }
  };
  await Promise.all(Array.from({ length: 8 }, contend));
  t.ok(taken > 0, `taken ${taken} times`);
  t.same(readdirSync(dir), [], 'and leaves nothing');
});

t.test('what somebody planted under our names is refused and stays as it was', async (t) => {
  const dir = tempDir(t);
  const victim = join(tempDir(t), 'victim');
  mkdirSync(victim, { mode: 0o755 });
  const file = join(victim, 'file');
  writeFileSync(file, 'precious');

  symlinkSync(victim, join(dir, 'run'));
  await t.rejects(takeRunDir(join(dir, 'run'), noMount), { code: 'USAGE', message: /symbolic link/ });
  t.equal(statSync(victim).mode & 0o777, 0o755, 'the mode of what the link means is not changed');

  const run = join(dir, 'own');
  mkdirSync(run);
  symlinkSync(victim, join(run, 'drives'));
  await t.rejects(takeRunDir(run, noMount), { code: 'USAGE', message: /mount point .* symbolic link/ });
  rmSync(join(run, 'drives'));

  for (const plant of [symlinkSync, linkSync]) {
    plant(file, join(run, 'run.lock'));
    await t.rejects(takeRunDir(run, noMount), { code: 'EXISTS', message: /in the way/ });
    rmSync(join(run, 'run.lock'));
    plant(file, join(run, 'pid'));
    await (await takeRunDir(run, noMount)).release();
  }
  mkdirSync(join(run, 'run.lock'));
  await t.rejects(takeRunDir(run, noMount), { code: 'EXISTS' });
  t.equal(readFileSync(file, 'utf8'), 'precious');
});

t.test('a directory that any user could replace, or that is another user’s, is refused', async (t) => {
  const open = tempDir(t);
  chmodSync(open, 0o777);
  await t.rejects(takeRunDir(join(open, 'run'), noMount), { code: 'USAGE', message: /not sticky/ });
  chmodSync(open, 0o1777);
  await (await takeRunDir(join(open, 'run'), noMount)).release();
  if (skipWithoutRoot(t, 'give a directory away')) return;
  const theirs = join(open, 'theirs');
  mkdirSync(theirs);
  chownSync(theirs, 65534, 65534);
  await t.rejects(takeRunDir(theirs, noMount), { code: 'USAGE', message: /another user \(uid 65534\)/ });
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
