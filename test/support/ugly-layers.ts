/**
 * Layers with cases that flattening easily gets wrong: whiteouts, opaque directories, hard links across layers, paths
 * through symlinks, kinds that change, implied parents, sparse files, fields at their limits.
 */
import type { TarEntrySpec } from './tar.ts';

export const UGLY_LAYERS: TarEntrySpec[][] = [
  [
    { name: './', mode: 0o751, uid: 3, mtime: 1_600_000_000_123_456_789n },
    { name: 'usr/', mtime: 1 },
    { name: 'usr/lib/', mtime: 2 },
    { name: 'lib', type: 'symlink', target: 'usr/lib', mtime: 3, uid: 8 },
    { name: 'usr/lib/libc', body: Buffer.alloc(1_300_000, 'c'), mode: 0o755, mtime: 4 },
    { name: 'usr/lib/libc.so', type: 'link', target: 'usr/lib/libc' },
    { name: 'suid', body: 'x', mode: 0o6755, uid: 70_000, gid: 4_294_967_294, mtime: -5_500_000_000n },
    { name: 'caps', body: 'x', mtime: 7, xattrs: { 'user.a': Buffer.from([0, 1, 255]), 'user.b': 'text' } },
    { name: 'dev/', mtime: 6 },
    { name: 'dev/null', type: 'char', major: 1, minor: 3, mode: 0o666, mtime: 6 },
    { name: 'dev/big', type: 'block', major: 259, minor: 70_000, mtime: 6 },
    { name: 'fifo', type: 'fifo', mode: 0o600, mtime: 6 },
    { name: `${'long-'.repeat(40)}/${'name-'.repeat(50)}`, body: 'long', mtime: 9 },
    { name: 'old/', mtime: 1 },
    { name: 'old/a', body: 'a' },
    { name: 'old/sub/', mtime: 1 },
    { name: 'old/sub/b', body: 'b' },
    { name: 'gone/', mtime: 1 },
    { name: 'gone/x', body: 'x' },
    { name: 'file-then-dir', body: 'f' },
    { name: 'dir-then-file/', mtime: 1 },
    { name: 'dir-then-file/x', body: 'x' },
    { name: 'meta/', mode: 0o700, mtime: 10, xattrs: { 'user.old': '1' } },
    { name: 'meta/keep', body: 'k' },
  ],
  [
    { name: 'old/', mtime: 20 },
    { name: 'old/.wh..wh..opq' },
    { name: 'old/new', body: 'n', mtime: 21 },
    { name: '.wh.gone' },
    { name: 'file-then-dir/', mtime: 22 },
    { name: 'file-then-dir/in', body: 'in', mtime: 22 },
    { name: 'dir-then-file', body: 'now a file', mtime: 23 },
    { name: 'meta/', mode: 0o1777, uid: 9, mtime: 24, xattrs: { 'user.new': '2' } },
    { name: 'lib/through', body: 'a symlink', mtime: 25 },
    { name: 'hard', type: 'link', target: 'usr/lib/libc' },
  ],
  [
    { name: 'usr/lib/libc', body: 'upgraded', mtime: 30 },
    { name: 'lib/.wh.through' },
    {
      name: 'sparse',
      body: 'xy',
      mtime: 31,
      pax: [
        ['GNU.sparse.size', '5000000'],
        ['GNU.sparse.numblocks', '2'],
        ['GNU.sparse.map', '4096,1,4999999,1'],
      ],
    },
  ],
];

/**
 * Directories of these layers whose mtime umoci sets to the time of unpacking: implied parents, and those in which it
 * removed something.
 */
export const UNPACK_TIMED: ReadonlySet<string> = new Set(['usr/lib', 'long-'.repeat(40), '.', 'meta']);
