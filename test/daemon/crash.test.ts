/** kill -9 while drives are being read: readers end, nothing hangs, and the next start is clean. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { lstatSync, readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import t from 'tap';
import type { DriveInfo, DriveStat } from '../../src/daemon/api.ts';
import { runPaths } from '../../src/daemon/run-paths.ts';
import { diskWorkplace, TestDaemon } from '../support/daemon.ts';
import { skipWithout, skipWithoutFuse } from '../support/tools.ts';

const run = promisify(execFile);
const ROUNDS = 3;

/**
 * Starts processes that read from the daemon each time (O_DIRECT, NBD) or through the page cache, until a read fails.
 */
function readForever(drive: DriveInfo): ChildProcess[] {
  const loop = (command: string, at: string) =>
    spawn('sh', ['-c', `while ${command} 2>/dev/null; do :; done`, 'sh', at], { stdio: 'ignore' });
  const readers = [loop('nbdcopy "$1" null:', drive.nbd), loop('nbdcopy "$1" null:', drive.nbd)];
  if (drive.fuse === null) return readers;
  return [
    ...readers,
    loop('dd if="$1" of=/dev/null bs=64k iflag=direct', drive.fuse),
    loop('dd if="$1" of=/dev/null bs=64k iflag=direct', drive.fuse),
    loop('dd if="$1" of=/dev/null bs=1M', drive.fuse),
  ];
}

function mountsAt(path: string): number {
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  return mounts.filter((line) => line.split(' ')[4] === path).length;
}

t.test('killed while serving, it starts again as if nothing had been', async (t) => {
  if (skipWithout(t, 'nbdcopy')) return;
  const hasFuse = !skipWithoutFuse(t);
  const place = await diskWorkplace(t, 96);
  const paths = runPaths(place.runDir);
  const original = join(place.dir, 'original');
  await writeFile(original, place.disk);

  for (let round = 0; round < ROUNDS; round++) {
    const daemon = await TestDaemon.start(t, place);
    const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
    t.equal(mountsAt(paths.drives), hasFuse ? 1 : 0);
    const readers = readForever(drive);
    const ends = readers.map((reader) => once(reader, 'exit'));
    // At a different moment in each round: while the cache fills, and when it is warm.
    while ((await daemon.ask<DriveStat>('stat', drive.name)).readBytes < (round * 4 + 1) * 8 * 1024 ** 2)
      await sleep(20);
    daemon.child.kill('SIGKILL');
    t.match(await daemon.exited, { signal: 'SIGKILL' });
    // A hanging reader would block the test until its timeout.
    await Promise.all(ends);
    t.ok(lstatSync(paths.control).isSocket(), 'what it left is there');
  }

  const daemon = await TestDaemon.start(t, place);
  t.same(await daemon.ask('drives'), []);
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  await run('nbdcopy', [drive.nbd, join(place.dir, 'copy')]);
  await run('cmp', [original, join(place.dir, 'copy')]);
  if (hasFuse) {
    t.equal(mountsAt(paths.drives), 1, 'one mount, not one on another');
    await run('cmp', [original, drive.fuse!]);
  }
  t.match(await daemon.ask<DriveStat>('stat', drive.name), { errors: 0, touchedShare: 1 });
  t.same(await daemon.stop(), { code: 0, signal: null });
  t.equal(mountsAt(paths.drives), 0);
});

t.test('stopped under load, it ends in time and leaves no mount', async (t) => {
  if (skipWithout(t, 'nbdcopy')) return;
  const place = await diskWorkplace(t, 96);
  const daemon = await TestDaemon.start(t, place, ['--drain-timeout', '2s']);
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  const readers = readForever(drive);
  const ends = readers.map((reader) => once(reader, 'exit'));
  while ((await daemon.ask<DriveStat>('stat', drive.name)).readBytes < 8 * 1024 ** 2) await sleep(20);
  t.same(await daemon.stop(), { code: 0, signal: null });
  await Promise.all(ends);
  t.equal(mountsAt(runPaths(place.runDir).drives), 0);
});
