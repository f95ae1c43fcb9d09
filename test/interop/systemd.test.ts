/** systemd's own tools check the unit, and what the daemon tells systemd. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { createLog } from '../../src/daemon/log.ts';
import { Notifier } from '../../src/daemon/notify.ts';
import { skipWithout } from '../support/tools.ts';

const run = promisify(execFile);
const UNIT = new URL('../../systemd/lazydisk.service', import.meta.url).pathname;
const LAUNCHER = new URL('../../src/lazydisk', import.meta.url).pathname;

function tempDir(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** Receives datagrams on a Unix socket, which Node does not support; perl is in every Debian. */
async function notifySocket(t: Test, address?: string): Promise<{ path: string; next(): Promise<string> }> {
  const path = address ?? join(tempDir(t), 'notify');
  const code = `use Socket; $| = 1; socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die $!; $ARGV[0] =~ s/^@/\\0/; bind($s, sockaddr_un($ARGV[0])) or die $!;
    print "bound\\n"; while (defined recv($s, my $m, 65536, 0)) { $m =~ s/\\n/|/g; print "$m\\n" }`;
  const perl = spawn('perl', ['-e', code, path], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(async () => {
    perl.kill('SIGKILL');
    await once(perl, 'exit');
  });
  const lines = createInterface({ input: perl.stdout })[Symbol.asyncIterator]();
  const next = async () => String((await lines.next()).value);
  t.equal(await next(), 'bound');
  return { path, next };
}

t.test('systemd finds nothing wrong with the unit', async (t) => {
  if (skipWithout(t, 'systemd-analyze')) return;
  const unit = join(tempDir(t), 'lazydisk.service');
  // The program's path may differ; the launcher of this checkout takes its place, so that it can be found.
  const text = readFileSync(UNIT, 'utf8');
  writeFileSync(
    unit,
    text.replaceAll('/opt/lazydisk/src/lazydisk', existsSync(LAUNCHER) ? LAUNCHER : '/bin/true'),
  );
  const { stdout, stderr } = await run('systemd-analyze', ['verify', '--man=no', unit]);
  t.equal(stdout + stderr, '');
});

t.test('nothing in the unit makes a private mount namespace, which would hide the drives', async (t) => {
  const text = readFileSync(UNIT, 'utf8').replace(/^#.*$/gm, '');
  t.notMatch(
    text,
    /^(Private(Tmp|Mounts|Devices|IPC)|Protect(System|Home|Proc|Kernel\w+|ControlGroups)|ProcSubset|Read(Write|Only)Paths|InaccessiblePaths|ExecPaths|NoExecPaths|TemporaryFileSystem|Bind\w*Paths|Root\w+|MountFlags|DynamicUser)=/m,
  );
  t.match(text, /^DeviceAllow=\/dev\/fuse rw$/m, 'a device policy that still lets FUSE through');
});

t.test('systemd kills the daemon alone: its guard must outlive it to end its mount', async (t) => {
  t.match(readFileSync(UNIT, 'utf8'), /^KillMode=process$/m);
});

t.test('systemd hears ready, watchdog and stopping', async (t) => {
  if (skipWithout(t, 'perl')) return;
  const socket = await notifySocket(t);
  const env = {
    ...process.env,
    NOTIFY_SOCKET: socket.path,
    WATCHDOG_USEC: '200000',
    WATCHDOG_PID: String(process.pid),
  };
  const notifier = new Notifier(createLog('silent'), env);
  notifier.ready('serving\n2 drives');
  t.match(await socket.next(), /^READY=1\|STATUS=serving 2 drives/);
  // The watchdog's timer is unreferenced, so another one must keep the test alive.
  const alive = setInterval(() => {}, 1000);
  t.match(await socket.next(), /^WATCHDOG=1/);
  clearInterval(alive);
  notifier.stopping();
  let message = await socket.next();
  while (message.startsWith('WATCHDOG=1')) message = await socket.next();
  t.match(message, /^STOPPING=1/);
});

t.test('a watchdog meant for another process is not fed, and without systemd nothing happens', async (t) => {
  const notifier = new Notifier(createLog('silent'), {});
  notifier.ready('x');
  notifier.stopping();
  if (skipWithout(t, 'perl')) return;
  const socket = await notifySocket(t);
  const other = { ...process.env, NOTIFY_SOCKET: socket.path, WATCHDOG_USEC: '1000', WATCHDOG_PID: '1' };
  const quiet = new Notifier(createLog('silent'), other);
  quiet.ready('x');
  t.match(await socket.next(), /^READY=1/);
  quiet.stopping();
  t.match(await socket.next(), /^STOPPING=1/);
});

t.test('an abstract notify socket is one with an @ in front', async (t) => {
  if (skipWithout(t, 'perl')) return;
  const name = `lazydisk-test-${process.pid}`;
  const socket = await notifySocket(t, `@${name}`);
  new Notifier(createLog('silent'), { NOTIFY_SOCKET: `@${name}` }).ready('x');
  t.equal(await socket.next(), 'READY=1|STATUS=x');
});

t.test('a notify socket that is gone is logged and does not stop the daemon', async (t) => {
  const lines: string[] = [];
  const log = createLog('info', { write: (line) => void lines.push(line) });
  new Notifier(log, { NOTIFY_SOCKET: '/nonexistent/notify' }).ready('x');
  new Notifier(log, { NOTIFY_SOCKET: `/${'x'.repeat(200)}` }).ready('x');
  t.equal(lines.length, 2);
  for (const line of lines) t.match(line, /could not be notified/);
});
