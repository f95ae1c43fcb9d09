/** Disks of the ext4 writer, checked by e2fsck and read by the kernel: inodes, directories, extents, xattrs. */
import { execFileSync } from 'node:child_process';
import { closeSync, openSync, readSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { crc32c } from '../../../src/image/ext4/crc32c.ts';
import { inode, TreeBuilder } from '../../support/disk-image.ts';
import {
  checkDisk,
  contentAt,
  differences,
  mounted,
  seen,
  skipUnmountable,
  xattrsAt,
} from '../../support/kernel-disk.ts';

t.test('crc32c yields the known values, without the inversions that ext4 omits', async (t) => {
  const standard = (text: Buffer) => ~crc32c(0xffffffff, text) >>> 0;
  // RFC 3720, B.4, and the check value of the CRC catalogue.
  t.equal(standard(Buffer.from('123456789')), 0xe3069283);
  t.equal(standard(Buffer.alloc(32)), 0x8a9136aa);
  t.equal(standard(Buffer.alloc(32, 0xff)), 0x62a8ab43);
  t.equal(standard(Buffer.from(Array.from({ length: 32 }, (_, n) => n))), 0x46dd794e);
});

t.test('the kernel reads every kind of inode, with fields at their limits', async (t) => {
  if (skipUnmountable(t)) return;
  const disk = join(t.testdir(), 'disk');
  const tree = new TreeBuilder();
  tree.add('owned', inode('file', { uid: 70_000, gid: 4_294_967_294 }));
  tree.add('suid', tree.file(Buffer.from('x'), { mode: 0o6755 }));
  tree.add('sticky', inode('directory', { mode: 0o1777 }));
  tree.add('before', inode('file', { mtimeNs: -1n }));
  tree.add('long-before', inode('file', { mtimeNs: -(2n ** 31n) * 1_000_000_000n }));
  tree.add('after', inode('file', { mtimeNs: 2n ** 31n * 1_000_000_000n + 123_456_789n }));
  tree.add('late', inode('file', { mtimeNs: (2n ** 34n - 2n ** 31n) * 1_000_000_000n - 1n }));
  tree.add('old-device', inode('char', { rdevMajor: 255, rdevMinor: 255 }));
  tree.add('new-device', inode('block', { rdevMajor: 4095, rdevMinor: 1_048_575 }));
  tree.add('minor', inode('char', { rdevMajor: 1, rdevMinor: 256 }));
  tree.add('fifo', inode('fifo'));
  tree.add('socket', inode('socket'));
  for (const length of [1, 58, 59, 60, 61, 4095]) {
    tree.add(`link-${length}`, inode('symlink', { mode: 0o777, target: 'a'.repeat(length) }));
  }
  const shared = tree.add('one', tree.file(Buffer.from('shared')));
  tree.add('sticky/two', shared);
  tree.add('three', shared);
  await tree.write(disk);
  checkDisk(t, disk);
  await mounted(disk, 'ro', (mount) => {
    t.strictSame(differences(mount, tree.root), []);
    t.equal(seen(Buffer.from(`${mount}/one`)).nlink, 3);
    t.equal(statSync(`${mount}/one`).ino, statSync(`${mount}/sticky/two`).ino);
    t.equal(contentAt(mount, 'three').toString(), 'shared');
  });
});

t.test('the kernel finds every name in linear and hash tree directories', async (t) => {
  if (skipUnmountable(t)) return;
  const disk = join(t.testdir(), 'disk');
  const tree = new TreeBuilder();
  for (const [folder, count] of Object.entries({ empty: 0, few: 10, some: 300, many: 20_000 })) {
    tree.add(folder, inode('directory'));
    for (let n = 0; n < count; n++) tree.add(`${folder}/entry-${n}`, inode('fifo'));
  }
  tree.add('long', inode('directory'));
  for (let n = 0; n < 400; n++) tree.add(`long/${String(n).padEnd(255, '\xff')}`, inode('fifo'));
  tree.add('deep', inode('directory'));
  for (let n = 0; n < 9000; n++) tree.add(`deep/${String(n).padEnd(255, 'd')}`, inode('fifo'));
  await tree.write(disk);
  checkDisk(t, disk);
  for (const [folder, levels] of Object.entries({ many: 0, long: 0, deep: 1 })) {
    const dump = execFileSync('debugfs', ['-R', `htree_dump /${folder}`, disk], {
      encoding: 'latin1',
      stdio: 'pipe',
      maxBuffer: 2 ** 26,
    });
    t.match(dump, /Hash Version: 1/, folder);
    t.match(
      dump,
      new RegExp(`Indirect levels: ${levels}\\b`),
      `${folder} has ${levels} levels of index nodes`,
    );
  }
  await mounted(disk, 'ro', (mount) => t.strictSame(differences(mount, tree.root), []));
  await mounted(disk, 'rw', (mount) => {
    for (const folder of ['many', 'deep']) {
      for (let n = 0; n < 5000; n++) writeFileSync(join(mount, folder, `new-${n}`), '');
    }
  });
  checkDisk(t, disk, 'after the kernel wrote into it');
});

t.test('the kernel reads extent trees of depth 0, 1 and 2, and holes beyond 8 GiB', async (t) => {
  if (skipUnmountable(t)) return;
  const disk = join(t.testdir(), 'disk');
  const tree = new TreeBuilder();
  const pieces = { none: 0, four: 4, five: 5, block: 340, two: 341, deep: 1400 };
  for (const [name, count] of Object.entries(pieces)) {
    const file = tree.add(name, tree.file(Buffer.alloc(0)));
    for (let n = 0; n < count; n++) tree.extend(file, Buffer.from(`${name} ${n}`), n * 8192);
  }
  const far = 9 * 2 ** 30;
  tree.add('far', tree.file(Buffer.from('far away'), {}, far));
  tree.add('hole', inode('file', { sizeBytes: far }));
  await tree.write(disk);
  checkDisk(t, disk);
  await mounted(disk, 'ro', (mount) => {
    t.strictSame(differences(mount, tree.root), []);
    for (const [name, count] of Object.entries(pieces)) {
      const should = Buffer.alloc(count === 0 ? 0 : (count - 1) * 8192 + `${name} ${count - 1}`.length);
      for (let n = 0; n < count; n++) should.write(`${name} ${n}`, n * 8192);
      t.ok(contentAt(mount, name).equals(should), `${name}: content`);
    }
    const bytes = Buffer.alloc(16);
    const file = openSync(join(mount, 'far'), 'r');
    t.equal(readSync(file, bytes, 0, 16, far - 4), 12);
    closeSync(file);
    t.equal(bytes.toString('latin1', 0, 12), '\0\0\0\0far away');
    t.equal(statSync(join(mount, 'hole')).blocks, 0);
  });
});

t.test('the kernel reads xattrs in the inode and in a block, ACLs and capabilities', async (t) => {
  if (skipUnmountable(t)) return;
  const disk = join(t.testdir(), 'disk');
  const acl = Buffer.from(
    '0200000001000600ffffffff020007000100010004000400ffffffff10000700ffffffff20000400ffffffff',
    'hex',
  );
  const sets: Record<string, Map<string, Buffer>> = {
    small: new Map([['user.a', Buffer.from('1')]]),
    empty: new Map([['user.e', Buffer.alloc(0)]]),
    large: new Map([
      ['user.large', Buffer.alloc(3000, 7)],
      ['user.b', Buffer.from('2')],
    ]),
    twin: new Map([
      ['user.large', Buffer.alloc(3000, 7)],
      ['user.b', Buffer.from('2')],
    ]),
    // The kernel shows the mask as the group's bits, so the mode must be 0674.
    acl: new Map([['system.posix_acl_access', acl]]),
    capable: new Map([
      ['security.capability', Buffer.from('0100000200200000000000000000000000000000', 'hex')],
    ]),
    many: new Map(Array.from({ length: 50 }, (_, n) => [`user.n${n}`, Buffer.from(`value ${n}`)])),
  };
  const tree = new TreeBuilder();
  for (const [name, xattrs] of Object.entries(sets)) {
    tree.add(name, inode('file', { xattrs, mode: name === 'acl' ? 0o674 : 0o644 }));
  }
  await tree.write(disk);
  checkDisk(t, disk);
  await mounted(disk, 'ro', (mount) => {
    for (const [name, xattrs] of Object.entries(sets)) {
      const should = Object.fromEntries([...xattrs].map(([key, value]) => [key, value.toString('hex')]));
      t.strictSame(xattrsAt(join(mount, name)), should, name);
    }
  });
  const tooBig = new TreeBuilder();
  tooBig.add('dir', inode('directory'));
  tooBig.add('dir/big', inode('file', { xattrs: new Map([['user.x', Buffer.alloc(5000)]]) }));
  await t.rejects(tooBig.write(disk), { code: 'NO_SPACE', message: /dir\/big/ });
});

t.test('the error for a disk that is too small names the smallest size, which works', async (t) => {
  if (skipUnmountable(t)) return;
  const disk = join(t.testdir(), 'disk');
  const tree = new TreeBuilder();
  tree.add('file', tree.file(Buffer.alloc(3_000_000, 1)));
  const refusal = await tree.write(disk, { sizeBytes: 2 ** 20 }).catch((error: unknown) => error as Error);
  const least = Number(/needs (\d+)/.exec((refusal as Error).message)?.[1]);
  t.match(refusal, { code: 'NO_SPACE' });
  await t.rejects(tree.write(disk, { sizeBytes: least - 1024 * 1024 }), { code: 'NO_SPACE' });
  const sizes = [
    least,
    2 ** 30,
    2 ** 30 + 2 ** 19,
    128 * 2 ** 20 + 2 ** 19,
    3 * 2 ** 30 - 2 ** 19,
    64 * 2 ** 30,
  ];
  for (const sizeBytes of sizes) {
    await tree.write(disk, { sizeBytes });
    t.equal(statSync(disk).size, sizeBytes);
    checkDisk(t, disk, `at ${sizeBytes}`);
    await mounted(disk, 'rw', (mount) => {
      t.strictSame(differences(mount, tree.root), []);
      writeFileSync(join(mount, 'written'), 'by the kernel');
    });
    checkDisk(t, disk, `at ${sizeBytes}, written to`);
  }
});
