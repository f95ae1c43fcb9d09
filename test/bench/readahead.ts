/**
 * The cost of speculative readahead: of the bytes that a real start or workload fetched, how many were never read (`npm
 * run bench:readahead`). Its gain is in read-path.ts. Needs what `npm run demo` needs, and root for the mounts.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { debianKernel } from '../../src/boot/kernel.ts';
import type { DriveInfo, DriveStat } from '../../src/daemon/api.ts';
import { lazydiskJson, ServedDaemon } from '../../src/demo/command-line.ts';
import { makeDebianImage } from '../../src/demo/debian-image.ts';
import { Steps } from '../../src/demo/steps.ts';
import { formatRows, type Row } from './row.ts';

const LAYOUT = '.demo/oci';
const UNREAD_SHARE_MAX = 0.3;
const BOOT_COMMAND = 'head -n 1 /etc/os-release; python3 --version';

/** What is run on a mounted image, by the name of its row; `$1` is the mount. */
const WORKLOADS: Readonly<Record<string, string>> = {
  'mount and ls -lR /etc': 'ls -lR "$1/etc"',
  'mount, ls and one checksum': 'ls "$1" "$1/usr/bin"; sha256sum "$1/usr/bin/perl" "$1/usr/bin/bash"',
  'mount and grep -r over a source tree': 'grep -rI import "$1/usr/lib/python3"* | tail -n 1',
  'mount and tar of everything': 'tar -C "$1" -cf - . | wc -c',
};

/** One daemon with an empty cache for each drive, so that everything fetched is due to that drive. */
class World {
  readonly dir = mkdtempSync(join(tmpdir(), 'lazydisk-bench-readahead-'));
  readonly steps = new Steps(process.stderr);
  #runs = 0;

  get store(): string[] {
    return ['--store', join(this.dir, 'store'), '--key', join(this.dir, 'key')];
  }

  async build(): Promise<void> {
    await makeDebianImage(LAYOUT, () => {});
    await debianKernel();
    await lazydiskJson(this.steps, ['key', 'new', join(this.dir, 'key')]);
    await lazydiskJson(this.steps, ['build', `oci:${LAYOUT}`, '--name', 'debian', ...this.store]);
  }

  async serve(work: (runDir: string) => Promise<DriveStat>): Promise<DriveStat> {
    const runDir = join(this.dir, `run-${this.#runs++}`);
    const cache = ['--cache', join(runDir, 'cache'), '--cache-size', '1G', '--memory', '256M'];
    const daemon = await ServedDaemon.start(this.steps, ['--run-dir', runDir, ...this.store, ...cache]);
    try {
      return await work(runDir);
    } finally {
      await daemon.stop();
    }
  }

  async boot(runDir: string, via: string): Promise<DriveStat> {
    const words = ['boot', 'debian', '--run-dir', runDir, '--via', via, '--command', BOOT_COMMAND];
    return (await lazydiskJson<{ drive: DriveStat }>(this.steps, words)).drive;
  }

  /** The kernel's own mount of the drive's FUSE file, in a separate process. */
  async mounted(runDir: string, script: string): Promise<DriveStat> {
    const { fuse } = await lazydiskJson<DriveInfo>(this.steps, [
      ...['attach', 'debian', '--name', 'root', '--run-dir', runDir],
    ]);
    const at = join(runDir, 'mnt');
    mkdirSync(at);
    const shell = `mount -o ro,loop "$2" "$1" && { ${script}; } > /dev/null; umount "$1"`;
    const child = spawn('/bin/sh', ['-c', shell, 'sh', at, fuse!], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    await once(child, 'exit');
    return lazydiskJson<DriveStat>(this.steps, ['stat', 'root', '--run-dir', runDir]);
  }
}

function row(name: string, stat: DriveStat): Row {
  const { fetchedBytes, readaheadBytes, readaheadUnusedBytes, touchedChunks } = stat;
  const kib = (bytes: number) => bytes / 1024;
  const text = `${touchedChunks} chunks read, ${kib(readaheadBytes).toFixed(0)} KiB read ahead`;
  return {
    name: `${name} (${text})`,
    ours: kib(readaheadUnusedBytes),
    unit: 'KiB unread',
    peer: 'fetched',
    peerValue: kib(fetchedBytes),
    ratio: readaheadUnusedBytes / fetchedBytes,
    goal: UNREAD_SHARE_MAX,
    goalIsMost: true,
  };
}

const world = new World();
try {
  process.env.PATH += ':/usr/sbin:/sbin';
  await world.build();
  const rows: Row[] = [];
  for (const via of ['nbd', 'fuse'])
    rows.push(row(`boot over ${via}`, await world.serve((runDir) => world.boot(runDir, via))));
  for (const [name, script] of Object.entries(WORKLOADS))
    rows.push(row(name, await world.serve((runDir) => world.mounted(runDir, script))));
  process.stdout.write(`\nUnused readahead\n${formatRows(rows)}`);
} finally {
  rmSync(world.dir, { recursive: true, force: true });
}
