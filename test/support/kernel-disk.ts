/**
 * What the tests of the ext4 writer check of a disk: that e2fsck finds no errors, and that the kernel, which mounts it,
 * sees the tree that it was built from, field by field.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  appendFileSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import type { InodeKind, TreeInode } from '../../src/image/tree.ts';
import { skipWithout, skipWithoutRoot } from './tools.ts';

/** Skips, visibly, if disks cannot be checked or mounted. */
export function skipUnmountable(t: Test): boolean {
  const tools = ['e2fsck', 'debugfs', 'mount', 'losetup', 'getfattr', 'setfattr'];
  return skipWithout(t, ...tools) || skipWithoutRoot(t, 'mount loop devices');
}

/** Fails unless e2fsck, in read-only mode, exits with 0 and reports no problem. */
export function checkDisk(t: Test, disk: string, when = 'as written'): void {
  const { status, stdout, stderr } = spawnSync('e2fsck', ['-fn', disk], { encoding: 'utf8' });
  const unusual = `${stdout}\n${stderr}`
    .split('\n')
    .filter((line) => line !== '' && !/^(e2fsck \d|Pass \d|.*: \d+\/\d+ files )/.test(line));
  t.strictSame({ status, unusual }, { status: 0, unusual: [] }, `e2fsck finds nothing, ${when}`);
}

/** Calls `look` while `disk` is mounted. */
export async function mounted(
  disk: string,
  mode: 'ro' | 'rw',
  look: (mount: string) => unknown,
): Promise<void> {
  const at = `${disk}.mnt`;
  mkdirSync(at, { recursive: true });
  // A new device for each mount: `mount -o loop` may pick the device of the previous mount while the kernel is still
  // releasing it.
  const readOnly = mode === 'ro' ? ['--read-only'] : [];
  const device = execFileSync('losetup', ['--find', '--show', ...readOnly, disk], {
    encoding: 'utf8',
  }).trim();
  try {
    execFileSync('mount', ['-t', 'ext4', '-o', `${mode},user_xattr,acl`, device, at]);
    try {
      await look(at);
    } finally {
      execFileSync('umount', [at]);
    }
  } finally {
    execFileSync('losetup', ['--detach', device]);
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

/** The fields of one inode; all values can be compared by ===. */
export type Fields = Record<string, string | number | bigint>;

/** Inodes by their path, a byte string; the root's is ''. */
export type SeenTree = Map<string, Fields>;

/** What the kernel reports for one path, as byte strings and numbers. */
export function seen(path: Buffer): Fields {
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
    size: kind === 'file' || kind === 'symlink' ? Number(stat.size) : 0,
    rdev: device ? deviceOf(stat.rdev) : '0:0',
    target: kind === 'symlink' ? readlinkSync(path, { encoding: 'latin1' }) : '',
  };
}

/**
 * Everything below `root` except lost+found, with xattrs, the first of each inode's names, and, if `withContent`, the
 * hash of each file's content.
 */
export function seenTree(root: string, withContent: boolean): SeenTree {
  const tree: SeenTree = new Map();
  const firstNames = new Map<bigint, string>();
  const xattrs = allXattrs(root);
  const visit = (path: string) => {
    const real = Buffer.from(`${root}${path}`, 'latin1');
    const fields = seen(real);
    const { ino } = lstatSync(real, { bigint: true });
    if (!firstNames.has(ino)) firstNames.set(ino, path);
    fields.firstName = firstNames.get(ino)!;
    fields.xattrs = xattrs.get(path) ?? '';
    if (withContent && fields.kind === 'file') fields.content = hashOf(readFileSync(real));
    tree.set(path, fields);
    if (fields.kind !== 'directory') return;
    for (const name of readdirSync(real, { encoding: 'latin1' }).sort()) {
      if (path !== '' || name !== 'lost+found') visit(`${path}/${name}`);
    }
  };
  visit('');
  return tree;
}

/** What `seenTree` should find on a disk of this tree; with content, if `contentOf` returns it. */
function expectedTree(root: TreeInode, contentOf?: (file: TreeInode) => Buffer): SeenTree {
  const tree: SeenTree = new Map();
  const firstNames = new Map<TreeInode, string>();
  const visit = (path: string, inode: TreeInode) => {
    const fields = expected(inode);
    if (!firstNames.has(inode)) firstNames.set(inode, path);
    fields.firstName = firstNames.get(inode)!;
    const xattrs = [...inode.xattrs].map(([name, value]) => `${name}=0x${value.toString('hex')}`);
    fields.xattrs = xattrs.sort().join(' ');
    if (contentOf && inode.kind === 'file') fields.content = hashOf(contentOf(inode));
    tree.set(path, fields);
    for (const name of [...inode.children.keys()].sort()) visit(`${path}/${name}`, inode.children.get(name)!);
  };
  visit('', root);
  tree.get('')!.nlink = Number(tree.get('')!.nlink) + 1; // lost+found
  return tree;
}

/**
 * Writes into every directory of a mounted disk: a new file in a new directory. One file of each, if there is one, gets
 * a hole and more bytes at its end, a second name, and is moved. Another one is removed. The new directories get an
 * xattr. Returns the tree after that.
 */
export function writeEverywhere(mount: string): SeenTree {
  const before = seenTree(mount, false);
  const real = (path: string) => Buffer.from(`${mount}${path}`, 'latin1');
  const folders = [...before.keys()].filter((path) => before.get(path)!.kind === 'directory');
  for (const [n, folder] of folders.entries()) {
    const inside = [...before].filter(
      ([path, { kind }]) => kind === 'file' && path.slice(0, path.lastIndexOf('/')) === folder,
    );
    const [file, doomed] = inside.map(([path]) => path);
    const fresh = `${folder}/new-folder`;
    mkdirSync(real(fresh));
    writeFileSync(real(`${fresh}/new`), Buffer.alloc(5000 + n, n));
    if (file !== undefined) {
      truncateSync(real(file), Number(before.get(file)!.size) + 9000);
      appendFileSync(real(file), `more in ${n}`);
      linkSync(real(file), real(`${folder}/new-link`));
      renameSync(real(file), real(`${fresh}/moved`));
    }
    if (doomed !== undefined) unlinkSync(real(doomed));
  }
  const setXattr = ['-exec', 'setfattr', '-n', 'user.written', '-v', 'by the kernel', '{}', '+'];
  execFileSync('find', [mount, '-xdev', '-name', 'new-folder', ...setXattr]);
  return seenTree(mount, true);
}

/** Differences between two trees, as lines; none if they are equal. */
export function differencesOf(is: SeenTree, should: SeenTree): string[] {
  const found: string[] = [];
  for (const path of is.keys()) if (!should.has(path)) found.push(`${path}: is there`);
  for (const [path, fields] of should) {
    const there = is.get(path);
    if (!there) found.push(`${path}: is missing`);
    for (const name of there ? Object.keys({ ...there, ...fields }) : []) {
      if (there![name] !== fields[name]) found.push(`${path}: ${name} ${there![name]}, not ${fields[name]}`);
    }
  }
  return found;
}

/** Differences between the tree under `root` and the disk mounted at `mount`. */
export function differences(
  mount: string,
  root: TreeInode,
  contentOf?: (file: TreeInode) => Buffer,
): string[] {
  return differencesOf(seenTree(mount, contentOf !== undefined), expectedTree(root, contentOf));
}

function hashOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function deviceOf(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  return `${major}:${(rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n)}`;
}

/** What the kernel should report for an inode. */
function expected(inode: TreeInode): Fields {
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
    size: kind === 'symlink' ? target.length : inode.sizeBytes,
    rdev: device ? `${inode.rdevMajor}:${inode.rdevMinor}` : '0:0',
    target,
  };
}

/** The xattrs of all inodes below `root` that have any, by path: `NAME=0xHEX` in order, with spaces between. */
function allXattrs(root: string): Map<string, string> {
  const words = ['-R', '-P', '-h', '-d', '-m', '-', '-e', 'hex', '--absolute-names', root];
  const text = execFileSync('getfattr', words, { encoding: 'latin1', maxBuffer: 2 ** 28 });
  const found = new Map<string, string>();
  for (const block of text.split('\n\n')) {
    const [head, ...lines] = block.split('\n');
    if (!head?.startsWith('# file: ')) continue;
    const path = unescaped(head.slice('# file: '.length));
    const values = lines
      .filter((line) => line !== '')
      .map((line) => (/=0x/.test(line) ? line : `${line}=0x`));
    found.set(path.slice(root.length), values.sort().join(' '));
  }
  return found;
}

/** getfattr escapes bytes that would break its lines as backslash and three octal digits. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
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

/** Content of a file below a mount. */
export function contentAt(mount: string, path: string): Buffer {
  return readFileSync(join(mount, path));
}
