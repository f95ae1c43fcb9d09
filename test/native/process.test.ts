/** What the addon does for its process: a lock that dies with it, a datagram, and an exit that waits for no thread. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { datagramSend, exitNow, lockFile } from '../../native/index.ts';
import { skipWithout } from '../support/tools.ts';

const { EBADF, ECONNREFUSED, ENAMETOOLONG, ENOENT, EWOULDBLOCK } = constants.errno;
const ADDON = new URL('../../native/index.ts', import.meta.url).href;

function tempDir(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** Runs `code` as a module in which `addon` is the addon. */
function runCode(code: string) {
  const text = `const addon = await import(${JSON.stringify(ADDON)}); ${code}`;
  return spawn(process.execPath, ['--input-type=module', '-e', text], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
}

t.test('one opener of a file holds its lock until it closes the file', async (t) => {
  const path = join(tempDir(t), 'lock');
  const [first, second] = [openSync(path, 'w'), openSync(path, 'w')];
  t.equal(lockFile(first), 0);
  t.equal(lockFile(first), 0, 'again by the same descriptor');
  t.equal(lockFile(second), EWOULDBLOCK);
  closeSync(first);
  t.equal(lockFile(second), 0);
  closeSync(second);
  t.equal(lockFile(-1), EBADF);
});

t.test('the lock of a killed process is free', async (t) => {
  const path = join(tempDir(t), 'lock');
  const child = runCode(`
    const { openSync } = await import('node:fs');
    console.log(addon.lockFile(openSync(${JSON.stringify(path)}, 'w')));
    setInterval(() => {}, 1000);`);
  t.equal(String((await once(child.stdout, 'data'))[0]), '0\n');
  const fd = openSync(path, 'w');
  t.equal(lockFile(fd), EWOULDBLOCK);
  child.kill('SIGKILL');
  await once(child, 'exit');
  t.equal(lockFile(fd), 0);
  closeSync(fd);
});

t.test('a datagram without a receiver returns an errno', async (t) => {
  const bytes = Buffer.from('x');
  t.equal(datagramSend(Buffer.from(join(tempDir(t), 'none')), bytes), ENOENT);
  t.equal(datagramSend(Buffer.from(`\0lazydisk-none-${process.pid}`), bytes), ECONNREFUSED);
  t.equal(datagramSend(Buffer.alloc(108, 'x'), bytes), ENAMETOOLONG);
  t.equal(datagramSend(Buffer.alloc(0), bytes), ENAMETOOLONG);
});

t.test('the process exits at once, even if a thread of the pool hangs', async (t) => {
  if (skipWithout(t, 'mkfifo')) return;
  const fifo = join(tempDir(t), 'fifo');
  await once(spawn('mkfifo', [fifo]), 'exit');
  const child = runCode(`
    const { open } = await import('node:fs');
    open(${JSON.stringify(fifo)}, 'r', () => {});
    setTimeout(() => addon.exitNow(7), 50);`);
  t.same(await once(child, 'exit'), [7, null]);
});

t.test('invalid arguments throw', async (t) => {
  const calls: [(...values: unknown[]) => unknown, unknown[][]][] = [
    [lockFile as never, [[], ['1'], [1, 2], [undefined]]],
    [datagramSend as never, [[], [Buffer.from('x')], ['x', Buffer.from('x')], [Buffer.from('x'), 'x']]],
    [exitNow as never, [[], ['1'], [1, 2], [undefined]]],
  ];
  for (const [call, cases] of calls) {
    for (const [n, values] of cases.entries()) t.throws(() => call(...values), TypeError, `case ${n}`);
  }
});
