/**
 * Paths hit by damaged chunks: compared with debugfs for every chunk of a disk, and on disks that are corrupt in every
 * way.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { LazydiskError } from '../../../../src/errors.ts';
import { CHUNK_BYTES } from '../../../../src/format/chunk-id.ts';
import { type DiskRead, pathsOfChunks } from '../../../../src/image/ext4/reader/paths.ts';
import { printable } from '../../../../src/image/quote.ts';
import { seenByDebugfs } from '../../../support/debugfs.ts';
import { inode, TreeBuilder } from '../../../support/disk-image.ts';
import { skipWithout } from '../../../support/tools.ts';

const DISK_BYTES = 64 * 2 ** 20;
const ALL = { pathsMax: Number.POSITIVE_INFINITY };

/** Reads a disk in memory except damaged chunks; asserts that no read crosses a chunk boundary or leaves the disk. */
function reader(disk: Buffer, damaged: ReadonlySet<number> = new Set()): DiskRead {
  return async (offset, lengthBytes) => {
    const chunk = Math.floor(offset / CHUNK_BYTES);
    assert.ok(lengthBytes > 0 && offset + lengthBytes <= disk.length);
    assert.equal(Math.floor((offset + lengthBytes - 1) / CHUNK_BYTES), chunk);
    return damaged.has(chunk) ? undefined : disk.subarray(offset, offset + lengthBytes);
  };
}

/** A tree with every kind of inode that has blocks. */
function variedTree(): TreeBuilder {
  const tree = new TreeBuilder();
  for (const folder of ['few', 'many', 'names', 'empty']) tree.add(folder, inode('directory'));
  for (let n = 0; n < 40; n++) tree.add(`few/small-${n}`, tree.file(Buffer.alloc(1 + n * 700, n)));
  const large = tree.add('large', tree.file(Buffer.alloc(5 * 2 ** 20 + 5, 1)));
  const pieces = tree.add('few/pieces', tree.file(Buffer.alloc(0)));
  for (let n = 0; n < 700; n++) tree.extend(pieces, Buffer.from(`${n}`), n * 8192);
  tree.add('few/sparse', tree.file(Buffer.from('far'), {}, 9 * 2 ** 30));
  tree.add('few/hole', inode('file', { sizeBytes: 2 ** 30 }));
  for (let n = 0; n < 1200; n++) tree.add(`many/${String(n).padEnd(90, 'x')}`, inode('fifo'));
  tree.add('many/deeper', inode('directory'));
  let path = 'many/deeper';
  for (let n = 0; n < 30; n++) {
    path += `/level-${n}`;
    tree.add(path, inode('directory'));
  }
  tree.add(`${path}/bottom`, tree.file(Buffer.from('bottom')));
  tree.add(`${path}/large-too`, large);
  tree.add('names/large-too', large);
  tree.add('names/short', inode('symlink', { target: '1234 5678' }));
  tree.add('names/long', inode('symlink', { target: 'l'.repeat(300) }));
  const xattrs = new Map([['user.big', Buffer.alloc(2000, 3)]]);
  tree.add('names/xattrs', inode('file', { xattrs }));
  tree.add('names/xattr-pipe', inode('fifo', { xattrs: new Map(xattrs).set('user.more', Buffer.alloc(9)) }));
  tree.add('names/xattr-folder', inode('directory', { xattrs }));
  tree.add(`names/${Buffer.from('grüße').toString('latin1')}`, tree.file(Buffer.from('utf-8')));
  tree.add('names/\xff\x1b[2J', tree.file(Buffer.from('not')));
  tree.add('device', inode('char', { rdevMajor: 300, rdevMinor: 70_000 }));
  return tree;
}

/** Checks that every chunk's paths are those that debugfs finds, with the chunk readable and unreadable. */
async function compareAll(t: Test, path: string, blockBytes: number): Promise<void> {
  const disk = readFileSync(path);
  const seen = seenByDebugfs(path, blockBytes);
  const folders = new Set([...seen.inodeAt.keys()].map((one) => one.slice(0, one.lastIndexOf('/')) || '/'));
  let pathCount = 0;
  for (let chunk = 0; chunk < disk.length / CHUNK_BYTES; chunk++) {
    const chunks = new Set([chunk]);
    const should = seen.paths.get(chunk) ?? [];
    pathCount += should.length;
    const told = await pathsOfChunks(reader(disk), disk.length, chunks, ALL);
    assert.deepEqual(told.paths, should.map(printable), `chunk ${chunk}`);
    assert.deepEqual({ more: told.more, unreadable: told.unreadable }, { more: 0, unreadable: 0 });
    const damaged = await pathsOfChunks(reader(disk, chunks), disk.length, chunks, ALL);
    const hit = new Set(should);
    const isKnown = (one: string): boolean => {
      if (one === '/') return true;
      const parent = one.slice(0, one.lastIndexOf('/')) || '/';
      return !hit.has(parent) && isKnown(parent);
    };
    const known = should.filter(isKnown).map(printable);
    assert.deepEqual(
      known.filter((one) => !damaged.paths.includes(one)),
      [],
      `chunk ${chunk}: every path below directories that can be read`,
    );
    const possible = new Set(should.map(printable));
    assert.deepEqual(
      damaged.paths.filter((one) => !possible.has(one)),
      [],
      `chunk ${chunk}: no other path`,
    );
    // If a directory is lost, so are names in it.
    const isLost = should.some((one) => folders.has(one));
    if (isLost) assert.ok(damaged.unreadable > 0 && damaged.metadata, `chunk ${chunk}: the loss is reported`);
  }
  t.ok(pathCount > 100, `${pathCount} paths in ${disk.length / CHUNK_BYTES} chunks`);
}

t.test('the paths of every chunk of a lazydisk disk are those that debugfs finds', async (t) => {
  if (skipWithout(t, 'debugfs')) return;
  const path = join(t.testdir(), 'disk');
  await variedTree().write(path, { sizeBytes: DISK_BYTES });
  await compareAll(t, path, 4096);
});

t.test(
  'the paths of every chunk of mke2fs disks, of each block and inode size, are those that debugfs finds',
  async (t) => {
    if (skipWithout(t, 'debugfs', 'mke2fs')) return;
    const dir = t.testdir();
    const from = join(dir, 'from');
    mkdirSync(join(from, 'a/b/c'), { recursive: true });
    mkdirSync(join(from, 'wide'));
    for (let n = 0; n < 60; n++) writeFileSync(join(from, 'a', `file-${n}`), Buffer.alloc(n * 3000, n + 1));
    for (let n = 0; n < 500; n++) writeFileSync(join(from, 'wide', `${n}`.padEnd(60, 'w')), n % 8 ? '' : 'w');
    writeFileSync(join(from, 'a/b/c/large'), Buffer.alloc(7 * 2 ** 20, 7));
    writeFileSync(join(from, 'holes'), '');
    truncateSync(join(from, 'holes'), 2 ** 22);
    symlinkSync('l'.repeat(200), join(from, 'a/long'));
    symlinkSync('short', join(from, 'a/b/short'));
    const kinds: [number, string[]][] = [
      [1024, []],
      [1024, ['-I', '128', '-O', '^64bit,^metadata_csum']],
      [4096, ['-b', '4096']],
      [4096, ['-b', '4096', '-I', '512', '-O', '^has_journal,^flex_bg']],
      [2048, ['-b', '2048', '-O', '^metadata_csum,uninit_bg']],
    ];
    for (const [n, [blockBytes, words]] of kinds.entries()) {
      const path = join(dir, `disk-${n}`);
      execFileSync('mke2fs', ['-q', '-t', 'ext4', '-d', from, ...words, path, '64M'], { stdio: 'pipe' });
      await compareAll(t, path, blockBytes);
    }
  },
);

t.test('hit paths are named, with a count of what cannot be read', async (t) => {
  const path = join(t.testdir(), 'disk');
  const tree = new TreeBuilder();
  tree.add('dir', inode('directory'));
  for (let n = 0; n < 3000; n++) tree.add(`dir/${n}`, inode('fifo'));
  tree.add('dir/file', tree.file(Buffer.from('data')));
  const { layout } = await tree.write(path, { sizeBytes: DISK_BYTES });
  const disk = readFileSync(path);
  const hitBy = (...chunks: number[]) => {
    const set = new Set(chunks);
    return pathsOfChunks(reader(disk, set), disk.length, set);
  };
  t.strictSame(await hitBy(), { paths: [], more: 0, metadata: false, unreadable: 0 });
  const superblock = { paths: ['/'], more: 0, metadata: true, unreadable: 1 };
  t.strictSame(await hitBy(0), superblock, 'the superblock');
  t.strictSame(
    await hitBy(layout.metadataChunks),
    { paths: ['/dir/file'], more: 0, metadata: false, unreadable: 0 },
    'data',
  );
  const table = await hitBy(1);
  t.match(table, { metadata: true, more: table.unreadable - 1000 });
  t.equal(
    table.paths.length,
    1000,
    'an inode table: the names are known, and a thousand of them are returned',
  );
  t.ok(table.unreadable > 1000);
  const journal = disk.indexOf(Buffer.from('c03b3998', 'hex')) / CHUNK_BYTES;
  t.strictSame(
    await hitBy(Math.ceil(journal) + 1),
    { paths: [], more: 0, metadata: true, unreadable: 0 },
    'the journal',
  );
  t.match(await hitBy(layout.metadataChunks - 1), {
    paths: ['/'],
    more: 0,
    metadata: true,
    unreadable: 1,
  });
});

t.test('paths are text on one line', async (t) => {
  t.equal(printable('/gr\xc3\xbc\xc3\x9fe'), '/grüße');
  t.equal(printable('/not UTF-8: \xfc'), '/not UTF-8: ü');
  t.equal(printable('/a\nb\x1b[2J\x9b'), '/a\\u000ab\\u001b[2J\\u009b');
  t.equal(printable('/\xe2\x80\xa8'), '/\\u2028');
});

t.test('other file systems, unsupported features, impossible numbers and an abort are refused', async (t) => {
  const path = join(t.testdir(), 'disk');
  await variedTree().write(path, { sizeBytes: DISK_BYTES });
  const good = readFileSync(path);
  const none = new Set<number>();
  await t.rejects(pathsOfChunks(reader(Buffer.alloc(2 ** 20)), 2 ** 20, none), { code: 'UNSUPPORTED' });
  await t.rejects(pathsOfChunks(reader(Buffer.alloc(512)), 512, none), { code: 'UNSUPPORTED' });
  await t.rejects(pathsOfChunks(reader(good), good.length / 2, none), { code: 'CORRUPT' });
  const changes: [string, number, number, string][] = [
    ['inline data', 96, 0x8000 | 0x2c2, 'UNSUPPORTED'],
    ['clusters', 100, 0x200, 'UNSUPPORTED'],
    ['block size', 24, 60, 'UNSUPPORTED'],
    ['blocks', 336, 1, 'CORRUPT'],
    ['first block', 20, 2, 'CORRUPT'],
    ['group size', 32, 8, 'UNSUPPORTED'],
    ['inodes', 0, 2 ** 32 - 1, 'CORRUPT'],
    ['inodes of a group', 40, 0, 'CORRUPT'],
    ['inode size', 88, 3, 'CORRUPT'],
  ];
  for (const [what, at, value, code] of changes) {
    const disk = Buffer.from(good);
    disk.writeUInt32LE(value, 1024 + at);
    await t.rejects(pathsOfChunks(reader(disk), disk.length, none), { code }, what);
  }
  await t.rejects(pathsOfChunks(reader(good), good.length, none, { signal: AbortSignal.abort() }), {
    code: 'ABORTED',
  });
});

t.test('a walk of cyclic trees and directories ends', async (t) => {
  if (skipWithout(t, 'debugfs')) return;
  const path = join(t.testdir(), 'disk');
  const tree = variedTree();
  tree.add('twin', inode('directory'));
  await tree.write(path, { sizeBytes: DISK_BYTES });
  const { inodeAt } = seenByDebugfs(path, 4096);
  const good = readFileSync(path);
  const broken = async (change: (disk: Buffer, at: (path: string) => number) => void) => {
    const disk = Buffer.from(good);
    change(disk, (of) => inodeAt.get(of)!);
    return pathsOfChunks(reader(disk), disk.length, new Set(), ALL);
  };
  const childOf = (disk: Buffer, at: number) => disk.readUInt32LE(at + 40 + 12 + 4) * 4096;
  const loop = await broken((disk, at) => {
    const node = childOf(disk, at('/few/pieces'));
    disk.writeUInt16LE(1, node + 6);
    disk.writeUInt32LE(node / 4096, node + 12 + 4);
    disk.writeUInt16LE(2, at('/few/pieces') + 40 + 6);
  });
  t.strictSame(loop.paths, ['/few/pieces'], 'an extent block that refers to itself');
  t.equal(loop.unreadable, 1);
  const twin = await broken((disk, at) => {
    disk.copy(disk, at('/twin') + 40, at('/few') + 40, at('/few') + 100);
  });
  t.match(twin, { paths: ['/twin'], unreadable: 1 }, 'two directories that share a block');
  const cycle = await broken((disk, at) => {
    const block = disk.readUInt32LE(at('/names') + 40 + 20) * 4096;
    const entry = disk.indexOf('xattr-folder', block, 'latin1') - 8;
    disk.writeUInt32LE(2, entry);
  });
  t.match(cycle, { paths: [], unreadable: 0 }, 'a directory that contains the root');
  const emptied = await broken((disk, at) => {
    const block = disk.readUInt32LE(at('/names') + 40 + 20) * 4096;
    disk.fill(0, block, block + 4096);
  });
  t.strictSame(
    emptied,
    { paths: ['/names'], more: 0, metadata: false, unreadable: 1 },
    'a directory of zeroes',
  );
  const dangling = await broken((disk, at) => disk.fill(0, at('/names/xattrs'), at('/names/xattrs') + 256));
  t.match(dangling, { paths: ['/names/xattrs'], unreadable: 1 }, 'a name without an inode');
});

t.test('any corruption leads to a result or a LazydiskError, and no block is read repeatedly', async (t) => {
  const dir = t.testdir();
  const disks = [join(dir, 'ours')];
  await variedTree().write(disks[0]!, { sizeBytes: DISK_BYTES });
  if (!skipWithout(t, 'mke2fs')) {
    disks.push(join(dir, 'other'));
    execFileSync('mke2fs', ['-q', '-t', 'ext4', '-d', import.meta.dirname, disks[1]!, '16M'], {
      stdio: 'pipe',
    });
  }
  for (const disk of disks.map((path) => readFileSync(path))) {
    const blocks: number[] = [];
    for (let at = 0; at < disk.length; at += 1024) {
      if (!disk.subarray(at, at + 1024).equals(Buffer.alloc(1024))) blocks.push(at);
    }
    // The start of the disk matters most: superblock, descriptors, inode tables, directories.
    const place = fc.oneof(fc.nat(Math.min(400, blocks.length - 1)), fc.nat(blocks.length - 1));
    const wanted = fc.oneof(
      fc.uint8Array({ minLength: 1, maxLength: 8 }),
      fc.constantFrom(
        [0],
        [1, 0],
        [0xff, 0xff],
        [0xff, 0xff, 0xff, 0xff],
        [2, 0, 0, 0],
        [0x0a, 0xf3],
        [5, 0],
      ),
    );
    const mutation = fc.oneof(
      fc.record({ place, offset: fc.nat(1023), bytes: wanted }),
      fc.record({ place, offset: fc.nat(255).map((n) => n * 4), bytes: wanted }),
      fc.record({
        place,
        offset: fc.constant(0),
        bytes: fc
          .nat(blocks.length - 1)
          .map((n) => Buffer.from(disk.subarray(blocks[n]!, blocks[n]! + 1024))),
      }),
    );
    let answers = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.array(mutation, { minLength: 1, maxLength: 40 }),
        fc.uniqueArray(fc.nat(disk.length / CHUNK_BYTES - 1), { maxLength: 3 }),
        async (mutations, damaged) => {
          const before: [number, Buffer][] = [];
          for (const { place, offset, bytes } of mutations) {
            const at = blocks[place]! + offset;
            before.push([at, Buffer.from(disk.subarray(at, at + bytes.length))]);
            disk.set(Uint8Array.from(bytes).subarray(0, disk.length - at), at);
          }
          const chunks = new Set(damaged);
          const read = reader(disk, chunks);
          let readBytes = 0;
          try {
            const { paths, more, unreadable } = await pathsOfChunks(
              (offset, lengthBytes) => {
                readBytes += lengthBytes;
                return read(offset, lengthBytes);
              },
              disk.length,
              chunks,
            );
            assert.ok(paths.length <= 1000 && more >= 0 && unreadable >= 0);
            answers++;
          } catch (error) {
            if (!(error instanceof LazydiskError)) throw error;
            assert.ok(error.code === 'CORRUPT' || error.code === 'UNSUPPORTED', error.message);
          } finally {
            for (const [at, bytes] of before.toReversed()) bytes.copy(disk, at);
          }
          // Once in each pass, and a directory's inode again.
          assert.ok(readBytes <= 3 * disk.length, `${readBytes} bytes`);
        },
      ),
      { numRuns: 400 },
    );
    t.ok(answers > 50, `${answers} answers of 400`);
  }
});
