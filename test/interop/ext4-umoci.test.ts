/**
 * Images checked by independent tools: layers with everything that is hard to flatten, built and exported by the
 * command line, yield a disk in which e2fsck finds no errors, in which the kernel sees what umoci unpacks, field by
 * field, and to which it can write.
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { lazydiskJson, workplace } from '../support/daemon.ts';
import {
  checkDisk,
  differencesOf,
  mounted,
  type SeenTree,
  seenTree,
  skipUnmountable,
  writeEverywhere,
} from '../support/kernel-disk.ts';
import { makeOciLayout, type TarEntrySpec } from '../support/oci.ts';
import { skipWithout } from '../support/tools.ts';
import { UGLY_LAYERS, UNPACK_TIMED } from '../support/ugly-layers.ts';

const ACL = '0200000001000600ffffffff020007000100010004000400ffffffff10000700ffffffff20000400ffffffff';
const CAPABILITY = '0100000200200000000000000000000000000000';

/** What only a disk can get wrong: long targets, large directories and xattrs, names that are not valid text. */
const MORE_LAYERS: TarEntrySpec[][] = [
  [
    {
      name: 'ping',
      body: 'p',
      mode: 0o755,
      xattrs: { 'security.capability': Buffer.from(CAPABILITY, 'hex') },
    },
    { name: 'acl', body: 'a', mode: 0o674, xattrs: { 'system.posix_acl_access': Buffer.from(ACL, 'hex') } },
    { name: 'large-xattr', body: 'x', xattrs: { 'user.large': Buffer.alloc(3000, 'v') } },
    { name: 'short', type: 'symlink', target: 's'.repeat(59) },
    { name: 'longer', type: 'symlink', target: 's'.repeat(60) },
    { name: 'longest', type: 'symlink', target: `${'t'.repeat(99)}/`.repeat(20) },
    { name: Buffer.from('latin-\xe9-1', 'latin1'), body: 'no UTF-8' },
    { name: 'empty', body: '' },
    { name: 'many/', mtime: 40 },
    ...Array.from({ length: 2000 }, (_, n) => ({ name: `many/entry-${n}`, body: `${n}`, mtime: n })),
    { name: 'links/', mtime: 41 },
    ...Array.from({ length: 300 }, (_, n) => ({
      name: `links/${n}`,
      type: 'link' as const,
      target: 'many/entry-7',
    })),
  ],
  [
    ...Array.from({ length: 500 }, (_, n) => ({ name: `many/.wh.entry-${n * 3}` })),
    { name: 'many/entry-7', type: 'link', target: 'empty' },
    { name: 'many/', mtime: 42 },
  ],
];

/** The tree that umoci unpacked, adjusted to how a disk of it should look. */
function unpackedTree(rootfs: string): SeenTree {
  const tree = seenTree(rootfs, true);
  const folders = [...tree].filter(([, { kind }]) => kind === 'directory').map(([path]) => path);
  // Some file systems do not count subdirectories in nlink.
  for (const path of folders) tree.get(path)!.nlink = 2;
  for (const path of folders) {
    const parent = tree.get(path.slice(0, path.lastIndexOf('/')));
    if (path !== '' && parent) parent.nlink = Number(parent.nlink) + 1;
  }
  tree.get('')!.nlink = Number(tree.get('')!.nlink) + 1; // lost+found
  return tree;
}

t.test('a disk of ugly layers', async (t) => {
  if (skipUnmountable(t) || skipWithout(t, 'umoci')) return;
  const place = await workplace(t);
  const disk = join(place.dir, 'disk');
  await makeOciLayout(join(place.dir, 'oci'), { layers: [...UGLY_LAYERS, ...MORE_LAYERS] });
  const where = ['--store', place.store, '--key', place.key];
  await lazydiskJson(['build', `oci:${place.dir}/oci`, '--name', 'ugly', '--size', '64M', ...where]);
  await lazydiskJson(['export', 'ugly', disk, ...where]);
  checkDisk(t, disk);

  const bundle = join(place.dir, 'bundle');
  execFileSync('umoci', ['unpack', '--image', `${place.dir}/oci:latest`, bundle], { stdio: 'pipe' });
  const unpacked = unpackedTree(join(bundle, 'rootfs'));
  await t.test('holds what umoci unpacks', async (t) => {
    await mounted(disk, 'ro', (mount) => {
      const onDisk = seenTree(mount, true);
      for (const path of UNPACK_TIMED) {
        const at = path === '.' ? '' : `/${path}`;
        onDisk.get(at)!.mtimeNs = unpacked.get(at)!.mtimeNs!;
      }
      t.strictSame(differencesOf(onDisk, unpacked), []);
      t.ok(onDisk.size > 1800, `${onDisk.size} inodes and names`);
      const kinds = new Set([...onDisk.values()].map(({ kind }) => kind));
      t.strictSame([...kinds].sort(), ['block', 'char', 'directory', 'fifo', 'file', 'symlink']);
      t.ok(onDisk.get('/ping')!.xattrs, 'file capabilities');
      t.equal(onDisk.get('/links/0')!.nlink, 300, 'without the name that became another file');
    });
  });

  await t.test('takes writes everywhere', async (t) => {
    const copy = join(place.dir, 'copy');
    copyFileSync(disk, copy);
    let written: SeenTree | undefined;
    await mounted(copy, 'rw', (mount) => {
      written = writeEverywhere(mount);
    });
    checkDisk(t, copy, 'written to');
    await mounted(copy, 'ro', (mount) => {
      t.strictSame(differencesOf(seenTree(mount, true), written!), []);
      t.ok(written!.size > unpacked.size);
    });
  });
});
