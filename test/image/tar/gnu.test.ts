/** Archives that GNU tar creates from real files, in each of its formats, read back and compared with the files. */
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { contentOfEntry, readEntries } from '../../support/image.ts';
import { skip, skipWithout } from '../../support/tools.ts';

function tree(dir: string): void {
  mkdirSync(join(dir, 'sub/deep'), { recursive: true });
  writeFileSync(join(dir, 'plain'), 'plain\n');
  chmodSync(join(dir, 'plain'), 0o4711);
  writeFileSync(join(dir, 'empty'), '');
  writeFileSync(join(dir, 'sub/deep/block'), Buffer.alloc(512, 'b'));
  writeFileSync(join(dir, 'sub/ragged'), Buffer.alloc(70_001, 'r'));
  symlinkSync('../plain', join(dir, 'sub/link'));
  linkSync(join(dir, 'plain'), join(dir, 'sub/hard'));
}

/** Adds names that the oldest formats cannot hold. */
function longNames(dir: string): void {
  const long = join(dir, 'n'.repeat(120), 'm'.repeat(130));
  mkdirSync(long, { recursive: true });
  writeFileSync(join(long, 'l'.repeat(200)), 'long');
  symlinkSync(`/${'t'.repeat(150)}`, join(dir, 'long-target'));
  writeFileSync(Buffer.concat([Buffer.from(join(dir, 'latin-')), Buffer.from([0xe9, 0xff])]), 'not UTF-8');
}

async function compare(t: Test, dir: string, archive: Buffer): Promise<void> {
  const entries = await readEntries(archive);
  const seen = new Map<string, string>();
  for (const entry of entries) {
    const bytes = Buffer.from(entry.name, 'latin1');
    const path = Buffer.concat([Buffer.from(`${dir}/`), bytes]);
    const stat = lstatSync(path, { bigint: true });
    t.equal(entry.uid, Number(stat.uid), `${entry.name}: owner`);
    if (entry.kind === 'symlink') {
      t.equal(Buffer.from(entry.target, 'latin1').toString(), readlinkSync(path), entry.name);
      continue;
    }
    t.equal(entry.mode, Number(stat.mode) & 0o7777, `${entry.name}: mode`);
    t.equal(entry.mtimeNs / 1_000_000_000n, stat.mtimeNs / 1_000_000_000n, `${entry.name}: mtime`);
    if (entry.kind === 'link') t.ok(seen.has(entry.target), `${entry.name} links to an entry before it`);
    else if (entry.kind === 'file') {
      t.ok(contentOfEntry(entry).equals(readFileSync(path)), `${entry.name}: content`);
      seen.set(entry.name, entry.name);
    } else t.ok(stat.isDirectory(), entry.name);
  }
  const count = execFileSync('find', [dir, '-printf', 'x']).length;
  t.equal(entries.length, count, 'every file has an entry');
}

function tar(dir: string, ...flags: string[]): Buffer {
  return execFileSync('tar', [...flags, '-cf', '-', '-C', dir, '.'], { maxBuffer: 64 * 2 ** 20 });
}

if (!skipWithout(t, 'tar')) {
  for (const format of ['v7', 'oldgnu', 'gnu', 'ustar', 'pax', 'posix']) {
    t.test(`archives of GNU tar --format=${format} are read`, async (t) => {
      const dir = t.testdir();
      tree(dir);
      if (!['v7', 'ustar'].includes(format)) longNames(dir);
      await compare(t, dir, tar(dir, `--format=${format}`));
    });
  }

  for (const flags of [
    ['--format=gnu'],
    ['--format=oldgnu'],
    ['--format=pax', '--sparse-version=0.0'],
    ['--format=pax', '--sparse-version=0.1'],
    ['--format=pax', '--sparse-version=1.0'],
  ]) {
    t.test(`archives of GNU tar --sparse ${flags.join(' ')} are read`, async (t) => {
      const dir = t.testdir();
      for (const [name, pieces, sizeBytes] of [
        ['few', [0, 1_000_000, 2_500_000], 3_000_000],
        ['many', Array.from({ length: 60 }, (_, at) => at * 65_536), 60 * 65_536],
        ['hole-first', [8_000_000], 8_004_096],
        ['all-hole', [], 5_000_000],
        ['hole-last', [0], 6_000_000],
      ] as [string, number[], number][]) {
        const file = openSync(join(dir, name), 'w');
        for (const at of pieces) writeSync(file, Buffer.alloc(4096, `${name}${at}`), 0, 4096, at);
        execFileSync('truncate', ['-s', String(sizeBytes), join(dir, name)]);
      }
      // Raw detection finds zeroes even where the file system does not report holes.
      const archive = tar(dir, '--sparse', '--hole-detection=raw', ...flags);
      t.ok(archive.length < 1_500_000, `the archive is sparse: ${archive.length} bytes`);
      const entries = await readEntries(archive);
      t.equal(entries.filter((entry) => entry.segments).length, 5);
      await compare(t, dir, archive);
    });
  }

  t.test('binary values of GNU tar --xattrs are read', async (t) => {
    if (skipWithout(t, 'setfattr')) return;
    const dir = t.testdir({ file: 'x' });
    const value = Buffer.from([0, 1, 0xff, 0x0a, 0x3d, 0]);
    try {
      execFileSync('setfattr', ['-n', 'user.bin', '-v', `0x${value.toString('hex')}`, join(dir, 'file')], {
        stdio: 'pipe',
      });
    } catch {
      return skip(t, 'user xattrs in the test directory');
    }
    const entries = await readEntries(tar(dir, '--xattrs', '--xattrs-include=*', '--format=pax'));
    t.same(entries.find(({ name }) => name.endsWith('file'))?.xattrs.get('user.bin'), value);
  });

  t.test('nanoseconds and times before 1970 of GNU tar are read', async (t) => {
    const dir = t.testdir({ old: 'x', fine: 'x' });
    execFileSync('touch', ['-d', '1960-01-01T00:00:00.25Z', join(dir, 'old')]);
    execFileSync('touch', ['-d', '@1700000000.123456789', join(dir, 'fine')]);
    const entries = await readEntries(tar(dir, '--format=pax'));
    const time = (name: string) => entries.find((entry) => entry.name.endsWith(name))?.mtimeNs;
    t.equal(time('old'), lstatSync(join(dir, 'old'), { bigint: true }).mtimeNs);
    t.equal(time('fine'), 1_700_000_000_123_456_789n);
    const base256 = await readEntries(tar(dir, '--format=gnu'));
    t.equal(base256.find((entry) => entry.name.endsWith('old'))?.mtimeNs, -315_619_200_000_000_000n);
  });
}

t.test('archives of busybox tar are read', async (t) => {
  if (skipWithout(t, 'busybox')) return;
  const dir = t.testdir();
  tree(dir);
  longNames(dir);
  const archive = execFileSync('busybox', ['tar', '-cf', '-', '-C', dir, '.'], { maxBuffer: 64 * 2 ** 20 });
  await compare(t, dir, archive);
});
