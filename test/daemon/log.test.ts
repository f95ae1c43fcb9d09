/** A log that cannot be written: lines are lost and counted, and nothing else happens. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { socketPair } from '../../native/index.ts';
import { ControlClient } from '../../src/daemon/client.ts';
import { LogStream, type Sink, sinkOf } from '../../src/daemon/log-stream.ts';
import { cleanStaleMount } from '../../src/export/fuse/mount.ts';
import { diskWorkplace, type Workplace } from '../support/daemon.ts';
import { NbdClient } from '../support/nbd-client.ts';
import { skipWithout } from '../support/tools.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;

const flushed = (stream: LogStream) => new Promise<void>((resolve) => stream.flush(resolve));

function errorWith(code: string): Error {
  return Object.assign(new Error(code), { code });
}

/** A sink that writes as `step` says and keeps what it wrote. */
function scripted(step: (bytes: Buffer) => number): { sink: Sink; text: () => string } {
  const taken: Buffer[] = [];
  const sink = (bytes: Buffer) => {
    const lengthBytes = step(bytes);
    taken.push(Buffer.from(bytes.subarray(0, lengthBytes)));
    return lengthBytes;
  };
  return { sink, text: () => Buffer.concat(taken).toString() };
}

t.test('lines arrive in order, however few bytes a write takes', async (t) => {
  const { sink, text } = scripted((bytes) => Math.min(bytes.length, 3));
  const stream = new LogStream(async (bytes) => sink(bytes));
  const lines = Array.from({ length: 100 }, (_, n) => `line ${n} é\n`);
  for (const line of lines) stream.write(line);
  await flushed(stream);
  t.equal(text(), lines.join(''));
  t.equal(stream.droppedLines, 0);
});

t.test('a pipe that is full is tried again, and nothing is lost', async (t) => {
  let busy = 3;
  const { sink, text } = scripted((bytes) => {
    if (busy-- > 0) throw errorWith('EAGAIN');
    return bytes.length;
  });
  const stream = new LogStream(sink);
  stream.write('a\n');
  stream.write('b\n');
  const alive = setInterval(() => {}, 1000);
  await flushed(stream);
  clearInterval(alive);
  t.equal(text(), 'a\nb\n');
});

t.test('what cannot be written is dropped, and the next line that can says how many', async (t) => {
  let error: string | undefined = 'ENOSPC';
  const { sink, text } = scripted((bytes) => {
    if (error) throw errorWith(error);
    return bytes.length;
  });
  const stream = new LogStream(sink);
  for (let n = 0; n < 5; n++) stream.write(`${n}\n`);
  error = 'EIO';
  stream.write('5\n');
  t.equal(stream.droppedLines, 6);
  error = undefined;
  stream.write('6\n');
  await flushed(stream);
  const [lost, line] = text().trimEnd().split('\n');
  t.match(JSON.parse(lost!), { level: 'warn', lost: 6, msg: /lost/ });
  t.equal(line, '6');
  t.equal(stream.droppedLines, 6);
});

t.test('a line that was cut off in the middle does not spoil the next one', async (t) => {
  let room = 4;
  const { sink, text } = scripted((bytes) => {
    if (room === 0) throw errorWith('ENOSPC');
    const lengthBytes = Math.min(bytes.length, room);
    room -= lengthBytes;
    return lengthBytes;
  });
  const stream = new LogStream(sink);
  stream.write('first\n');
  t.equal(stream.droppedLines, 1);
  room = 1000;
  stream.write('second\n');
  await flushed(stream);
  t.match(text(), /^firs\n\{[^\n]*"lost":1[^\n]*\}\nsecond\n$/);
});

t.test('what waits is bounded', async (t) => {
  const stream = new LogStream(() => {
    throw errorWith('EAGAIN');
  });
  for (let n = 0; n < 300; n++) stream.write(`${'x'.repeat(9_999)}\n`);
  t.ok(stream.droppedLines > 150 && stream.droppedLines < 250, `${stream.droppedLines} of 300 dropped`);
});

t.test('a socket that nobody reads takes what fits and never blocks', async (t) => {
  const [near, far] = socketPair();
  const stream = new LogStream(sinkOf(near));
  for (let n = 0; n < 1000; n++) stream.write(`${'x'.repeat(9_999)}\n`);
  t.ok(stream.droppedLines > 0);
  const bytes = Buffer.alloc(10_000);
  t.ok(readSync(far, bytes) > 0);
  closeSync(far);
  closeSync(near);
});

t.test('a FIFO that nobody reads takes what fits and never blocks', async (t) => {
  if (skipWithout(t, 'mkfifo')) return;
  const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const path = join(dir, 'fifo');
  await once(spawn('mkfifo', [path]), 'exit');
  const fd = openSync(path, 'r+');
  t.teardown(() => closeSync(fd));
  const stream = new LogStream(sinkOf(fd));
  for (let n = 0; n < 1000; n++) stream.write(`${'x'.repeat(9_999)}\n`);
  t.ok(stream.droppedLines > 0);
});

t.test('a file is appended to', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const fd = openSync(join(dir, 'log'), 'a');
  t.teardown(() => closeSync(fd));
  const stream = new LogStream(sinkOf(fd));
  stream.write('a\n');
  await flushed(stream);
  stream.write('b\n');
  await flushed(stream);
  t.equal(readFileSync(join(dir, 'log'), 'utf8'), 'a\nb\n');
});

function serveWords(place: Workplace): string[] {
  const words = ['serve', '--store', place.store, '--key', place.key, '--run-dir', place.runDir];
  return [
    MAIN,
    ...words,
    '--cache',
    place.cache,
    '--cache-size',
    '64M',
    '--memory',
    '16M',
    '--log-level',
    'debug',
  ];
}

/** Starts `command` and waits until its daemon answers. All its processes are killed with the test. */
async function serve(t: Test, place: Workplace, command: readonly string[], stderr: number | 'pipe') {
  const child = spawn(command[0]!, command.slice(1), { stdio: ['ignore', 'ignore', stderr] });
  const exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
  const client = new ControlClient(place.runDir);
  let pid = child.pid!;
  t.teardown(async () => {
    for (const each of new Set([pid, child.pid!])) {
      try {
        process.kill(each, 'SIGKILL');
      } catch {
        // It has exited.
      }
    }
    await exited;
    await cleanStaleMount(join(place.runDir, 'drives'));
  });
  for (;;) {
    const status = await client.status().catch(() => undefined);
    if (status) {
      pid = status.pid;
      return { child, pid, exited, client };
    }
    if (child.exitCode !== null) throw new Error(`the daemon ended with ${child.exitCode}`);
  }
}

/** Makes a request that is refused; its long path makes a long log line. */
function refusedRequest(place: Workplace): Promise<void> {
  return new Promise((resolve, reject) => {
    const socketPath = join(place.runDir, 'control.sock');
    const call = request({ socketPath, path: `/${'x'.repeat(10_000)}`, agent: false }, (response) => {
      response.resume().on('end', resolve);
    });
    call.on('error', reject).end();
  });
}

/** Loses log lines and checks that reads still work. */
async function readsOn(t: Test, place: Workplace & { disk: Buffer }, client: ControlClient): Promise<void> {
  while ((await client.status()).logLinesDropped === 0) await refusedRequest(place);
  await client.attach({ image: 'app:1', name: 'web' });
  const guest = await NbdClient.open({ path: join(place.runDir, 'nbd.sock') }, 'web');
  const { data } = await guest.request({ type: 0, offset: 4096, lengthBytes: 4096 });
  t.ok(data.equals(place.disk.subarray(4096, 8192)), 'guests read on');
  guest.close();
  t.match(await client.metrics(), /^lazydisk_log_lines_dropped_total [1-9]/m);
}

t.test('a daemon whose log disk is full serves on, says so, and stops', async (t) => {
  const full = openSync('/dev/full', 'w');
  t.teardown(() => closeSync(full));
  const place = await diskWorkplace(t, 4);
  const { child, exited, client } = await serve(t, place, [process.execPath, ...serveWords(place)], full);
  await readsOn(t, place, client);
  child.kill('SIGTERM');
  t.same(await exited, [0, null]);
});

t.test('a daemon whose log nobody reads serves on, says so, and stops', async (t) => {
  const place = await diskWorkplace(t, 4);
  const { child, exited, client } = await serve(t, place, [process.execPath, ...serveWords(place)], 'pipe');
  await readsOn(t, place, client);
  child.kill('SIGTERM');
  t.same(await exited, [0, null]);
});

t.test('a daemon whose terminal has gone serves on, says so, and stops', async (t) => {
  if (skipWithout(t, 'script', 'setsid')) return;
  const place = await diskWorkplace(t, 4);
  // In a session of its own, like a daemon that was started by hand and outlives the login.
  const words = [
    'exec',
    'setsid',
    '--wait',
    process.execPath,
    ...serveWords(place),
    '>/dev/null',
    '</dev/null',
  ].join(' ');
  const { child, pid, exited, client } = await serve(t, place, ['script', '-qc', words, '/dev/null'], 'pipe');
  child.kill('SIGKILL');
  await exited;
  await readsOn(t, place, client);
  process.kill(pid, 'SIGTERM');
  // The run directory is released last.
  while (existsSync(join(place.runDir, 'run.lock'))) await setTimeout(10);
  t.notOk(existsSync(join(place.runDir, 'control.sock')));
});
