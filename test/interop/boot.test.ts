/**
 * End to end with a real system: Debian packages as a container image, built, served, and booted in a microVM over each
 * export. The checksums that the guest computes of its files must equal the host's of an unpack by an independent tool,
 * and a start must fetch little of the image.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { DriveStat } from '../../src/daemon/api.ts';
import { makeDebianImage } from '../../src/demo/debian-image.ts';
import type { BuildReport } from '../../src/image/build.ts';
import { lazydiskJson, TestDaemon, type Workplace, workplace } from '../support/daemon.ts';
import { skipWithout, skipWithoutRoot } from '../support/tools.ts';

/** The demo's layout, which is kept. */
const LAYOUT = join(import.meta.dirname, '../../.demo/oci');
const FETCHED_SHARE_MAX = 0.4;

interface Booted {
  readonly drive: DriveStat;
  readonly exitCode: number;
  readonly console: string;
}

function skipBoots(t: Test): boolean {
  if (process.arch !== 'x64') {
    t.comment(`skipped: no microVM kernel for ${process.arch}`);
    return true;
  }
  const tools = ['debootstrap', 'qemu-system-x86_64', 'busybox', 'umoci', 'fusermount3'];
  return skipWithoutRoot(t, "compare owners' files") || skipWithout(t, ...tools);
}

/** `path` and SHA-256 of each regular file below `directories` of `root`, as sha256sum prints them, sorted. */
function hostSums(root: string, directories: readonly string[]): string[] {
  const lines: string[] = [];
  const walk = (path: string) => {
    for (const entry of readdirSync(join(root, path), { withFileTypes: true })) {
      const child = `${path}/${entry.name}`;
      if (entry.isDirectory()) walk(child);
      if (!entry.isFile()) continue;
      const sum = createHash('sha256').update(readFileSync(join(root, child)));
      lines.push(`${sum.digest('hex')}  ${child}`);
    }
  };
  for (const directory of directories) walk(directory);
  return lines.sort();
}

async function bootOn(t: Test, place: Workplace, via: string, command: string): Promise<Booted> {
  const daemon = await TestDaemon.start(t, {
    ...place,
    runDir: join(place.dir, via),
    cache: join(place.dir, `c-${via}`),
  });
  const booted = await daemon.ask<Booted>('boot', 'debian', '--via', via, '--command', command);
  t.equal((await daemon.stop()).code, 0);
  t.equal(booted.exitCode, 0, booted.console.slice(-500));
  t.equal(booted.drive.errors, 0);
  return booted;
}

t.test('Debian boots from a drive', async (t) => {
  if (skipBoots(t)) return;
  await makeDebianImage(LAYOUT, () => {});
  const place = await workplace(t);
  const where = ['--store', place.store, '--key', place.key];
  const built = await lazydiskJson<BuildReport>(['build', `oci:${LAYOUT}`, '--name', 'debian', ...where]);
  const bundle = join(place.dir, 'bundle');
  execFileSync('umoci', ['unpack', '--image', `${LAYOUT}:latest`, bundle], { stdio: 'pipe' });
  const root = join(bundle, 'rootfs');

  for (const via of ['fuse', 'nbd']) {
    await t.test(`a command over ${via} moves little of the image`, async (t) => {
      const { console, drive } = await bootOn(
        t,
        place,
        via,
        '. /etc/os-release; echo "$ID"; python3 --version',
      );
      t.match(console, /^debian\s+Python 3/);
      const share = drive.fetchedBytes / built.sealedBytes;
      t.comment(
        `${via}: fetched ${drive.fetchedBytes} of ${built.sealedBytes} stored bytes, ${(share * 100).toFixed(1)} %`,
      );
      t.ok(drive.fetchedBytes > 0 && share < FETCHED_SHARE_MAX, `fetched ${share}`);
    });

    await t.test(`what the guest reads over ${via} is what is in the image`, async (t) => {
      const directories = ['etc', 'usr', 'var/lib'];
      const command = `cd / && find ${directories.join(' ')} -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum`;
      const { console } = await bootOn(t, place, via, command);
      const expected = hostSums(root, directories);
      const got = console
        .split(/\r?\n/)
        .filter((line) => line !== '')
        .sort();
      t.ok(expected.length > 2000, `${expected.length} files`);
      t.equal(got.length, expected.length);
      t.same(got.filter((line, n) => line !== expected[n]).slice(0, 5), []);
    });
  }
});
