import { execFileSync } from 'node:child_process';
import { lstatSync, mkdtempSync, readFileSync, readlinkSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { LazydiskError } from '../../src/errors.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { type FlattenProgress, flatten } from '../../src/image/flatten.ts';
import { openSource } from '../../src/image/source/open-source.ts';
import { contentOf, flattenAll, flattenLayers, sourceOf } from '../support/image.ts';
import { makeOciLayout, packTar, type TarEntrySpec } from '../support/oci.ts';
import { skipWithout, skipWithoutRoot } from '../support/tools.ts';
import { UGLY_LAYERS, UNPACK_TIMED } from '../support/ugly-layers.ts';

const big = (name: string, chunks: number): TarEntrySpec => ({
  name,
  body: Buffer.alloc(chunks * CHUNK_BYTES, name),
});

t.test('one image has one result, however it is compressed', async (t) => {
  const layers: TarEntrySpec[][] = [
    [{ name: './', mode: 0o700 }, { name: 'etc/hosts', body: 'localhost' }, big('bin/sh', 3)],
    [{ name: 'etc/.wh.hosts' }, { name: 'bin/bash', type: 'link', target: 'bin/sh' }],
  ];
  const results: unknown[] = [];
  for (const compression of ['none', 'gzip', 'zstd'] as const) {
    const dir = t.testdirName + compression;
    t.teardown(() => rmSync(dir, { recursive: true }));
    await makeOciLayout(dir, { layers, compression });
    const source = await openSource(`oci:${dir}`);
    const { image, chunks } = await flattenAll(source);
    await source.close();
    t.same(
      image.layerMap.map(({ digest, sizeBytes }) => ({ digest, sizeBytes })),
      source.layers.map(({ digest, sizeBytes }) => ({ digest, sizeBytes })),
    );
    const places = image.layerMap.map(({ firstChunk, chunks }) => [firstChunk, chunks]);
    results.push({ root: image.root, live: image.liveChunks, places, chunks });
  }
  t.same(results[1], results[0]);
  t.same(results[2], results[0]);
});

t.test('progress counts the blobs’ bytes up to their sum', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(dir, { layers: [[big('a', 2)], [big('b', 1)]] });
  const source = await openSource(`oci:${dir}`);
  const seen: FlattenProgress[] = [];
  await flatten(source, async () => {}, { onProgress: (progress) => seen.push(progress) });
  await source.close();
  const total = source.layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  t.match(seen.at(-1), { layer: 2, layers: 2, inputBytes: total, totalInputBytes: total });
  t.match(seen.at(-1), { entries: 2, unpackedBytes: 3 * CHUNK_BYTES + 2 * 512 + 2 * 1024 });
  for (const counter of ['inputBytes', 'unpackedBytes', 'entries'] as const) {
    t.ok(
      seen.every((one, at) => at === 0 || one[counter] >= seen[at - 1]![counter]),
      counter,
    );
  }
});

t.test('the next chunk is filled only when the sink has room', async (t) => {
  let taken = 0;
  let inSink = 0;
  await flatten(
    sourceOf([[big('a', 5), { name: 'b', body: 'x' }]]),
    async () => {
      inSink++;
      const before = taken;
      await new Promise((resolve) => setTimeout(resolve, 5));
      t.equal(taken, before, 'no buffer is taken meanwhile');
      t.equal(inSink--, 1, 'one chunk at a time');
    },
    { takeBuffer: () => Buffer.alloc(CHUNK_BYTES, taken++) },
  );
  t.equal(taken, 6);
});

t.test('a failure of the sink is passed on unchanged, and stops flattening', async (t) => {
  const failure = new LazydiskError('UNAVAILABLE', 'the store is gone');
  let calls = 0;
  const sink = async () => {
    if (++calls === 2) throw failure;
  };
  const thrown = await flatten(sourceOf([[big('a', 5)]]), sink).catch((error: unknown) => error);
  t.equal(thrown, failure);
  t.equal(calls, 2);
});

t.test('a signal stops flattening with ABORTED', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(dir, { layers: [[big('a', 20)]], compression: 'gzip' });
  const source = await openSource(`oci:${dir}`);
  t.teardown(() => source.close());
  const abort = new AbortController();
  let calls = 0;
  const sink = async () => {
    if (++calls === 3) abort.abort();
  };
  await t.rejects(flatten(source, sink, { signal: abort.signal }), { code: 'ABORTED' });
  t.ok(calls < 20, `${calls} chunks`);
  await t.rejects(flatten(source, sink, { signal: AbortSignal.abort() }), { code: 'ABORTED' });
});

t.test('a truncated layer is refused with its layer and path', async (t) => {
  const tar = packTar([{ name: 'ok', body: 'x' }, big('usr/bin/cut', 1)]);
  await t.rejects(flattenLayers([[{ name: 'a' }], tar.subarray(0, 100_000)]), {
    code: 'CORRUPT',
    message:
      /^layer 2 of 2 \(sha256:[0-9a-f]{64}\): path "usr\/bin\/cut": the tar ends after 98464 of 524288/,
  });
});

t.test('a layer is read to its end, past the archive’s end marker', async (t) => {
  const dir = t.testdir();
  const tar = Buffer.concat([packTar([{ name: 'a' }]), Buffer.alloc(2 ** 20, 'trailing')]);
  const { layerDigests } = await makeOciLayout(dir, { layers: [tar], compression: 'none' });
  const source = await openSource(`oci:${dir}`);
  await flatten(source, async () => {});
  truncateSync(join(dir, 'blobs/sha256', layerDigests[0]!.slice(7)), tar.length - 1);
  await t.rejects(
    flatten(source, async () => {}),
    { code: 'CORRUPT', message: /is \d+ bytes, expected \d+/ },
  );
  await source.close();
});

t.test('an image without layers, or with empty ones, has an empty root', async (t) => {
  for (const layers of [[], [[]], [Buffer.alloc(0)], [[], []]]) {
    const flat = await flattenLayers(layers);
    t.equal(flat.image.dataChunks, 0);
    t.match(flat.image.root, { kind: 'directory', mode: 0o755 });
  }
});

t.test('the tree equals what umoci unpacks', async (t) => {
  if (skipWithoutRoot(t, 'unpack owners and devices') || skipWithout(t, 'umoci', 'getfattr')) return;
  const dir = mkdtempSync(join(tmpdir(), 'lazydisk-flatten-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  await makeOciLayout(join(dir, 'image'), { layers: UGLY_LAYERS });
  execFileSync('umoci', ['unpack', '--image', `${dir}/image:latest`, `${dir}/bundle`], { stdio: 'pipe' });
  const source = await openSource(`oci:${dir}/image:latest`);
  const { image, chunks } = await flattenAll(source);
  await source.close();

  const rootfs = join(dir, 'bundle/rootfs');
  let compared = 0;
  const compare = (inode: typeof image.root, path: string) => {
    const real = join(rootfs, path);
    const stat = lstatSync(real, { bigint: true });
    const names = stat.isDirectory()
      ? execFileSync('find', [real, '-mindepth', '1', '-maxdepth', '1', '-printf', '%f\\n'], {
          encoding: 'latin1',
        })
      : '';
    t.same([...inode.children.keys()].sort(), names.split('\n').filter(Boolean).sort(), `names in ${path}`);
    t.equal(BigInt(inode.mode), stat.mode & 0o7777n, `mode of ${path}`);
    t.equal(BigInt(inode.uid), stat.uid, `uid of ${path}`);
    t.equal(BigInt(inode.gid), stat.gid, `gid of ${path}`);
    if (!UNPACK_TIMED.has(path)) t.equal(inode.mtimeNs, stat.mtimeNs, `mtime of ${path}`);
    if (inode.kind !== 'directory') t.equal(BigInt(inode.links), stat.nlink, `links of ${path}`);
    if (inode.kind === 'symlink') t.equal(inode.target, readlinkSync(real));
    if (inode.kind === 'file')
      t.ok(contentOf(inode, chunks).equals(readFileSync(real)), `content of ${path}`);
    if (inode.kind === 'char' || inode.kind === 'block') {
      const { rdevMajor: major, rdevMinor: minor } = inode;
      const rdev = (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12);
      t.equal(BigInt(rdev), stat.rdev, `device number of ${path}`);
    }
    const kinds = [
      'isFile',
      'isDirectory',
      'isSymbolicLink',
      'isCharacterDevice',
      'isBlockDevice',
      'isFIFO',
    ] as const;
    const kind = ['file', 'directory', 'symlink', 'char', 'block', 'fifo'][
      kinds.findIndex((is) => stat[is]())
    ];
    t.equal(inode.kind, kind, `kind of ${path}`);
    const dump = execFileSync('getfattr', ['-h', '-d', '-m', '-', '-e', 'hex', real], {
      encoding: 'utf8',
      stdio: 'pipe',
    });
    const xattrs = [...inode.xattrs].map(([name, value]) => `${name}=0x${value.toString('hex')}`);
    t.same(
      xattrs.sort(),
      dump
        .split('\n')
        .filter((line) => line.includes('=0x'))
        .sort(),
      `xattrs of ${path}`,
    );
    compared++;
    for (const [name, child] of inode.children) compare(child, path === '.' ? name : `${path}/${name}`);
  };
  compare(image.root, '.');
  t.ok(compared >= 20, `${compared} inodes`);
});
