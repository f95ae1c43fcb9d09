/** `lazydisk boot`: a guest's userland from an image of ours, over each export, through the command line. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { DriveInfo, DriveStat } from '../../src/daemon/api.ts';
import { lazydisk, lazydiskJson, TestDaemon, workplace } from '../support/daemon.ts';
import { makeOciLayout } from '../support/oci.ts';
import { skipWithout, skipWithoutFuse } from '../support/tools.ts';

const BUSYBOX = '/bin/busybox';

interface Booted {
  readonly drive: DriveStat;
  readonly via: string;
  readonly exitCode: number;
  readonly console: string;
  readonly timings: Readonly<Record<string, number>>;
}

t.test('a guest runs a command from the drive, and its exit code is ours', async (t) => {
  if (process.arch !== 'x64') return t.comment(`skipped: no microVM kernel for ${process.arch}`);
  if (skipWithout(t, 'qemu-system-x86_64', 'busybox')) return;
  const place = await workplace(t);
  const applets = ['sh', 'cat', 'uname', 'df', 'sha256sum'];
  await makeOciLayout(join(place.dir, 'oci'), {
    layers: [
      [
        ...['bin/', 'dev/', 'proc/', 'sys/', 'tmp/', 'etc/'].map((name) => ({ name })),
        { name: 'bin/busybox', body: readFileSync(BUSYBOX), mode: 0o755 },
        ...applets.map((name) => ({ name: `bin/${name}`, type: 'symlink' as const, target: 'busybox' })),
        { name: 'etc/motd', body: 'from a drive of ours\n' },
      ],
    ],
  });
  const store = ['--store', place.store, '--key', place.key];
  await lazydiskJson(['build', `oci:${place.dir}/oci`, '--name', 'box', '--size', '64M', ...store]);
  const daemon = await TestDaemon.start(t, place);

  await daemon.ask('attach', 'box');
  const vias = skipWithoutFuse(t) ? ['nbd'] : ['fuse', 'nbd'];
  for (const via of vias) {
    const booted = await daemon.ask<Booted>('boot', 'box', '--via', via, '--command', 'cat /etc/motd');
    t.match(booted, {
      via,
      exitCode: 0,
      console: /from a drive of ours/,
      drive: { image: 'box:latest', errors: 0 },
    });
    t.ok(booted.drive.readBytes > 0, 'the guest read from its drive');
    for (const name of ['attachMs', 'userlandMs', 'totalMs']) t.ok(booted.timings[name]! > 0, name);
  }
  const failed = await lazydisk(['boot', 'box', '--run-dir', place.runDir, '--command', 'echo so; exit 7']);
  t.equal(failed.code, 7, failed.stderr);
  t.match(failed.stdout, /^so$/m);
  t.match(failed.stderr, /^userland after +\d/m);
  const left = await daemon.ask<DriveInfo[]>('drives');
  t.same(
    left.map(({ name }) => name),
    ['box'],
    'each boot took its drive away again',
  );
});

t.test('a boot that cannot be takes its drive away too', async (t) => {
  const place = await workplace(t);
  await makeOciLayout(join(place.dir, 'oci'), { layers: [[{ name: 'a', body: 'no shell here' }]] });
  const store = ['--store', place.store, '--key', place.key];
  await lazydiskJson(['build', `oci:${place.dir}/oci`, '--name', 'bare', '--size', '64M', ...store]);
  const daemon = await TestDaemon.start(t, place);
  const boot = [
    'boot',
    'bare',
    '--run-dir',
    place.runDir,
    '--accel',
    'tcg',
    '--kernel',
    join(place.dir, 'no-kernel'),
  ];
  const { code, stderr } = await lazydisk(boot);
  t.not(code, 0);
  t.match(stderr, /^lazydisk: [^\n]+\n$/);
  t.same(await daemon.ask('drives'), []);
  t.equal((await lazydisk(['boot', 'none', '--run-dir', place.runDir])).code, 3);
});
