/**
 * What the tests of the ext4 writer ask of a disk: that e2fsck finds nothing, and that the kernel, which mounts it,
 * sees the tree that it was made of, field by field.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import type { InodeKind, TreeInode } from '../../../src/image/tree.ts';
import { skipWithout } from '../../support/tools.ts';

/** Skips, visibly, where disks cannot be checked or mounted. */
export function skipUnmountable(t: Test): boolean {
  if (skipWithout(t, 'e2fsck', 'debugfs', 'mount', 'getfattr')) return true;
  if (process.getuid?.() === 0) return false;
  t.comment('skipped: needs root for loop mounts');
  return true;
}

/** Fails unless e2fsck, which may change nothing, ends with 0 and names no problem. */
export function checkDisk(t: Test, disk: string, when = 'as written'): void {
  const { status, stdout, stderr } = spawnSync('e2fsck', ['-fn', disk], { encoding: 'utf8' });
  const unusual = `${stdout}\n${stderr}`
    .split('\n')
    .filter((line) => line !== '' && !/^(e2fsck \d|Pass \d|.*: \d+\/\d+ files )/.test(line));
  t.strictSame({ status, unusual }, { status: 0, unusual: [] }, `e2fsck finds nothing, ${when}`);
}

/** Runs `look` while the kernel has `disk` mounted. */
export async function mounted(
  disk: string,
  mode: 'ro' | 'rw',
  look: (mount: string) => unknown,
): Promise<void> {
  const at = `${disk}.mnt`;
  mkdirSync(at, { recursive: true });
  execFileSync('mount', ['-t', 'ext4', '-o', `loop,${mode},user_xattr,acl`, disk, at]);
  try {
    await look(at);
  } finally {
    execFileSync('umount', [at]);
  }
}

const KINDS = new Map<number, InodeKind>([
  [0o010000, 'fifo'],
  [0o020000, 'char'],
  [0o040000, 'directory'],
  [0o060000, 'block'],
  [0o100000, 'file'],
  [0o120000, 'symlink'],
  [0o140000, 'socket'],
]);

/** What the kernel says of one path, as byte strings and numbers. */
export function seen(path: Buffer): Record<string, unknown> {
  const stat = lstatSync(path, { bigint: true });
  const kind = KINDS.get(Number(stat.mode) & 0o170000)!;
  const device = kind === 'char' || kind === 'block';
  return {
    kind,
    mode: Number(stat.mode) & 0o7777,
    uid: Number(stat.uid),
    gid: Number(stat.gid),
    mtimeNs: stat.mtimeNs,
    nlink: Number(stat.nlink),
    size: kind === 'file' ? Number(stat.size) : 0,
    rdev: device ? deviceOf(stat.rdev) : '0:0',
    target: kind === 'symlink' ? readlinkSync(path, { encoding: 'latin1' }) : '',
  };
}

function deviceOf(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  return `${major}:${(rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n)}`;
}

/** What the kernel should say of an inode. */
export function expected(inode: TreeInode): Record<string, unknown> {
  const { kind, mode, uid, gid, mtimeNs, target } = inode;
  const folders = [...inode.children.values()].filter((child) => child.kind === 'directory').length;
  const device = kind === 'char' || kind === 'block';
  return {
    kind,
    mode,
    uid,
    gid,
    mtimeNs,
    nlink: kind === 'directory' ? 2 + folders : inode.links,
    size: kind === 'file' ? inode.sizeBytes : 0,
    rdev: device ? `${inode.rdevMajor}:${inode.rdevMinor}` : '0:0',
    target,
  };
}

/** All xattrs of a path by name, values in hex. */
export function xattrsAt(path: string): Record<string, string> {
  const text = execFileSync('getfattr', ['-h', '-d', '-m', '-', '-e', 'hex', '--absolute-names', path], {
    encoding: 'latin1',
  });
  const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return Object.fromEntries(
    lines.map((line) => {
      const [name, value] = line.split('=0x') as [string, string | undefined];
      return [name.replace(/=$/, ''), value ?? ''];
    }),
  );
}

/** Differences between the tree under `root` and what is mounted at `mount`, as lines; none if all is well. */
export function differences(mount: string, root: TreeInode): string[] {
  const found: string[] = [];
  const visit = (path: Buffer, inode: TreeInode, isRoot: boolean) => {
    const is = seen(path);
    const should = expected(inode);
    if (isRoot) should.nlink = Number(should.nlink) + 1; // lost+found
    for (const field of Object.keys(should)) {
      if (is[field] !== should[field]) found.push(`${path}: ${field} ${is[field]}, not ${should[field]}`);
    }
    if (inode.kind !== 'directory') return;
    const names = readdirSync(path, { encoding: 'latin1' }).filter(
      (name) => !isRoot || name !== 'lost+found',
    );
    const missing = [...inode.children.keys()].filter((name) => !names.includes(name));
    const extra = names.filter((name) => !inode.children.has(name));
    if (missing.length + extra.length > 0) found.push(`${path}: misses ${missing}, has ${extra}`);
    for (const name of names) {
      const child = inode.children.get(name);
      if (child) visit(Buffer.concat([path, Buffer.from(`/${name}`, 'latin1')]), child, false);
    }
  };
  visit(Buffer.from(mount), root, true);
  return found;
}

/** Content of a file below a mount. */
export function contentAt(mount: string, path: string): Buffer {
  return readFileSync(join(mount, path));
}
