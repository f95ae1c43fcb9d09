/**
 * One tree makes one disk: random trees checked by e2fsck and the kernel, equal bytes for equal trees, and a pinned
 * digest.
 */
import { execFileSync } from 'node:child_process';
import { createCipheriv, createHash } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { WRITER_VERSION } from '../../../src/image/build.ts';
import { dirHash } from '../../../src/image/ext4/dir-hash.ts';
import type { TreeInode } from '../../../src/image/tree.ts';
import { inode, TreeBuilder } from '../../support/disk-image.ts';
import {
  checkDisk,
  contentAt,
  differences,
  differencesOf,
  mounted,
  type SeenTree,
  seenTree,
  skipUnmountable,
  writeEverywhere,
} from '../../support/kernel-disk.ts';

const DISK_BYTES = 32 * 2 ** 20;

/** The disk's digest by the version of its writer. Other bytes from the same tree need a new version. */
const GOLDEN: Record<string, string> = {
  'lazydisk-ext4/1': '81104d66bb335646611d3085a07daca133005f18b97cb359048d15be00e35ff1',
};

/** Nonrepeating bytes, the same each time. */
function noise(lengthBytes: number, seed: number): Buffer {
  return createCipheriv('aes-128-ctr', Buffer.alloc(16, seed), Buffer.alloc(16)).update(
    Buffer.alloc(lengthBytes),
  );
}

function digestOf(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

/** A tree with every kind of content; `backwards` adds the names of each directory in reverse order. */
function fixedTree(backwards: boolean): TreeBuilder {
  const tree = new TreeBuilder();
  const data = tree.file(Buffer.from('some data'), { uid: 70_000, mtimeNs: -5n });
  const holes = tree.file(Buffer.from('far'), {}, 1 << 20);
  for (let n = 1; n < 9; n++) tree.extend(holes, Buffer.from(`${n}`), (1 << 20) + n * 8192);
  const adds: (() => unknown)[] = [
    () => tree.add('dir/data', data),
    () => tree.add('dir/again', data),
    () => tree.add('dir/holes', holes),
    () => tree.add('dir/device', inode('char', { rdevMajor: 300, rdevMinor: 70_000 })),
    () => tree.add('dir/link', inode('symlink', { target: 'x'.repeat(100), mode: 0o777 })),
    () => tree.add('dir/xattrs', inode('file', { xattrs: new Map([['user.big', Buffer.alloc(2000, 3)]]) })),
    ...Array.from({ length: 1000 }, (_, n) => () => tree.add(`dir/entry-${n}`, inode('fifo'))),
  ];
  tree.add('dir', inode('directory'));
  for (const add of backwards ? adds.reverse() : adds) add();
  return tree;
}

t.test(
  'the disk does not depend on the order of names, and matches the pinned digest of this version',
  async (t) => {
    const dir = t.testdir();
    for (const backwards of [false, true]) {
      const disk = join(dir, `${backwards}`);
      await fixedTree(backwards).write(disk, { sizeBytes: DISK_BYTES });
      t.equal(digestOf(disk), GOLDEN[WRITER_VERSION], 'if it must differ, increment WRITER_VERSION');
    }
    await fixedTree(false).write(join(dir, 'other'), {
      sizeBytes: DISK_BYTES,
      contentDigest: 'sha256:other',
    });
    t.not(digestOf(join(dir, 'other')), GOLDEN[WRITER_VERSION], 'other content has another UUID');
  },
);

t.test('random trees pass e2fsck, and the kernel reads and writes them', async (t) => {
  if (skipUnmountable(t)) return;
  const dir = t.testdir();
  const leaf = fc.record({
    kind: fc.constantFrom('file', 'symlink', 'fifo', 'char', 'directory'),
    mode: fc.integer({ min: 0, max: 0o7777 }),
    uid: fc.integer({ min: 0, max: 2 ** 32 - 2 }),
    mtimeNs: fc.bigInt({ min: -(2n ** 31n) * 10n ** 9n, max: 2n ** 33n * 10n ** 9n }),
    minor: fc.integer({ min: 0, max: 2 ** 20 - 1 }),
    pieces: fc.array(fc.record({ gap: fc.nat(3), bytes: fc.integer({ min: 1, max: 9000 }) }), {
      maxLength: 8,
    }),
    xattrBytes: fc.nat(2500),
    under: fc.nat(),
    name: fc.string({
      unit: fc.integer({ min: 1, max: 255 }).map((code) => String.fromCharCode(code)),
      minLength: 1,
      maxLength: 255,
    }),
  });
  let round = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(leaf, { maxLength: 30 }), async (leaves) => {
      const tree = new TreeBuilder();
      const folders: TreeInode[] = [tree.root];
      for (const { kind, mode, uid, mtimeNs, minor, pieces, xattrBytes, under, name } of leaves) {
        const parent = folders[under % folders.length]!;
        const clean = name.replaceAll('/', '_');
        if (clean === '.' || clean === '..' || clean === 'lost+found' || parent.children.has(clean)) continue;
        const fields: Partial<TreeInode> = { mode, uid, mtimeNs };
        if (kind !== 'symlink' && kind !== 'fifo' && kind !== 'char' && xattrBytes > 0) {
          fields.xattrs = new Map([['user.x', Buffer.alloc(xattrBytes, 1)]]);
        }
        if (kind === 'symlink') fields.target = `${clean}`.repeat(2);
        if (kind === 'char') Object.assign(fields, { rdevMajor: minor % 4096, rdevMinor: minor });
        const child = kind === 'file' ? tree.file(Buffer.alloc(0), fields) : inode(kind as 'fifo', fields);
        if (kind === 'file') {
          let at = 0;
          for (const { gap, bytes } of pieces) {
            at += gap * 4096;
            tree.extend(child, noise(bytes, at / 4096 + round), at);
            at = Math.ceil((at + bytes) / 4096) * 4096;
          }
        }
        parent.children.set(clean, child);
        if (kind === 'directory') folders.push(child);
        else child.links++;
      }
      const disk = join(dir, `${round++}`);
      await tree.write(disk, { sizeBytes: DISK_BYTES });
      checkDisk(t, disk);
      await mounted(disk, 'ro', (mount) => {
        t.strictSame(
          differences(mount, tree.root, (file) => tree.content(file)),
          [],
        );
      });
      let written: SeenTree | undefined;
      await mounted(disk, 'rw', (mount) => {
        written = writeEverywhere(mount);
      });
      checkDisk(t, disk, 'written to');
      await mounted(disk, 'ro', (mount) => t.strictSame(differencesOf(seenTree(mount, true), written!), []));
    }),
    { numRuns: 25 },
  );
});

t.test('names with equal hashes on both sides of a leaf boundary are found', async (t) => {
  if (skipUnmountable(t)) return;
  const disk = join(t.testdir(), 'disk');
  // As the writer derives the seed from the digest 'sha256:test'.
  const digest = createHash('sha256').update('lazydisk ext4 sha256:test').digest();
  const seed = Int32Array.from({ length: 4 }, (_, n) => digest.readInt32LE(16 + n * 4));
  const byHash = new Map<number, string>();
  let pair: [string, string] | undefined;
  let split = 0;
  for (let n = 0; pair === undefined; n++) {
    const name = String(n).padEnd(255, 'x');
    const { major } = dirHash(Buffer.from(name), seed);
    const other = byHash.get(major);
    if (other !== undefined && major > 2 ** 28) {
      pair = [other, name];
      split = major;
    } else byHash.set(major, name);
  }
  // A leaf holds 15 such names: after 44 lower ones the pair's first is the third leaf's last.
  const lower = [...byHash].filter(([hash]) => hash < split).slice(0, 44);
  const higher = [...byHash].filter(([hash]) => hash > split).slice(0, 30);
  const tree = new TreeBuilder();
  tree.add('d', inode('directory'));
  for (const name of [...pair, ...[...lower, ...higher].map(([, name]) => name)])
    tree.add(`d/${name}`, inode('fifo'));
  await tree.write(disk);
  checkDisk(t, disk);
  const dump = execFileSync('debugfs', ['-R', 'htree_dump /d', disk], { encoding: 'utf8', stdio: 'pipe' });
  t.match(dump, new RegExp(`Hash 0x${(split + 1).toString(16).padStart(8, '0')}`), 'the boundary is marked');
  await mounted(disk, 'ro', (mount) => {
    for (const name of pair) t.ok(statSync(join(mount, 'd', name)).isFIFO());
    t.strictSame(differences(mount, tree.root), []);
  });
});

t.test('a directory whose blocks need more than one extent is readable', async (t) => {
  if (skipUnmountable(t)) return;
  const disk = join(t.testdir(), 'disk');
  const tree = new TreeBuilder();
  // A leaf holds 15 names of 255 bytes, and an extent 32,768 blocks: these take two.
  const names = 15 * 32_768;
  tree.add('wide', inode('directory'));
  let fifo = inode('fifo');
  for (let n = 0; n < names; n++) {
    // As many names as one file may have, so that there are few inodes.
    if (n % 65_000 === 0) fifo = inode('fifo');
    tree.add(`wide/${String(n).padEnd(255, 'x')}`, fifo);
  }
  await tree.write(disk);
  checkDisk(t, disk);
  await mounted(disk, 'ro', (mount) => {
    t.ok(statSync(join(mount, 'wide')).size > 32_768 * 4096);
    for (const n of [0, 1, 245_760, names - 1])
      t.ok(statSync(join(mount, 'wide', String(n).padEnd(255, 'x'))).isFIFO());
  });
});

t.test(
  'a directory with more subdirectories than a link count holds is readable, and so is a disk of 1 TiB',
  async (t) => {
    if (skipUnmountable(t)) return;
    const disk = join(t.testdir(), 'disk');
    const tree = new TreeBuilder();
    tree.add('wide', inode('directory'));
    for (let n = 0; n < 65_100; n++) tree.add(`wide/${n}`, inode('directory'));
    tree.add('file', tree.file(Buffer.from('here')));
    await tree.write(disk);
    checkDisk(t, disk);
    await mounted(disk, 'ro', (mount) => {
      t.equal(statSync(join(mount, 'wide')).nlink, 1, 'which means: not counted');
      t.ok(statSync(join(mount, 'wide/65099')).isDirectory());
    });
    const large = new TreeBuilder();
    large.add('file', large.file(Buffer.from('here')));
    await large.write(disk, { sizeBytes: 2 ** 40 });
    checkDisk(t, disk, 'at 1 TiB');
    await mounted(disk, 'ro', (mount) => t.equal(contentAt(mount, 'file').toString(), 'here'));
    await t.rejects(large.write(disk, { sizeBytes: 2 ** 40 + 1 }), { code: 'USAGE' });
  },
);
