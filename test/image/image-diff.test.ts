/**
 * What two images share, and which paths take what they do not; which path lies in which chunks: on images that are built
 * from layers and related in the ways that images are.
 */
import assert from 'node:assert/strict';
import { createCipheriv } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { Best } from '../../src/image/best.ts';
import { buildImage } from '../../src/image/build.ts';
import { chunkPaths } from '../../src/image/chunk-paths.ts';
import { exportImage } from '../../src/image/export.ts';
import { globMatcher } from '../../src/image/glob.ts';
import { type DiffSide, diffImages } from '../../src/image/image-diff.ts';
import { printable } from '../../src/image/quote.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { loadImage } from '../../src/store/image.ts';
import type { RootStore } from '../../src/store/roots/root-store.ts';
import { seenByDebugfs } from '../support/debugfs.ts';
import { chunkFileIn, openDirStore } from '../support/dir-store.ts';
import { type Layer, sourceOf } from '../support/image.ts';
import type { TarEntrySpec } from '../support/oci.ts';
import { putDisk } from '../support/stored-disk.ts';
import { skipWithout } from '../support/tools.ts';

const ALL = { pathsMax: Number.POSITIVE_INFINITY };

/** Bytes that do not compress, the same each time. */
function noise(lengthBytes: number, seed: number): Buffer {
  const key = Buffer.alloc(16);
  key.writeUInt32LE(seed);
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(lengthBytes));
}

const BASE: TarEntrySpec[] = [
  { name: 'etc/' },
  ...Array.from({ length: 80 }, (_, n) => ({ name: `etc/file-${n}`, body: noise(20_000, n) })),
  { name: 'big', body: noise(3_000_000, 1000) },
];
const TOP: TarEntrySpec[] = [{ name: 'app/' }, { name: 'app/main', body: noise(700_000, 1001) }];

interface Place {
  readonly store: RootStore;
  readonly storeDir: string;
  readonly key: TenantKey;
  readonly keys: KeyRing;
  build(name: string, layers: Layer[], labels?: Record<string, string>): Promise<void>;
}

async function newPlace(t: Test): Promise<Place> {
  const storeDir = join(t.testdir(), 'store');
  const store = await openDirStore(storeDir);
  t.teardown(() => store.close());
  const key = TenantKey.generate();
  const build: Place['build'] = async (name, layers, labels = {}) => {
    const source = sourceOf(layers);
    const labelled = { ...source, config: { ...source.config, labels } };
    await buildImage({ source: labelled, store, key, name, sizeBytes: 64 * 2 ** 20 });
  };
  return { store, storeDir, key, keys: KeyRing.of(key), build };
}

const pathsOf = ({ content }: DiffSide) => content!.paths.map(({ path }) => path);

/** All that is unique is there for something. */
function checkSums(t: Test, { name, unique, content }: DiffSide): void {
  const { paths, more, metadata, unreadable } = content!;
  const parts = [...paths, ...metadata, more];
  const sum = parts.reduce((all, { sealedBytes }) => all + sealedBytes, 0);
  t.ok(Math.abs(sum - unique.sealedBytes) <= parts.length, `${name}: ${sum} of ${unique.sealedBytes}`);
  t.equal(unreadable, 0);
  t.notOk(metadata.some(({ use }) => use === 'unknown'));
  const sorted = paths.toSorted((a, b) => b.sealedBytes - a.sealedBytes);
  t.same(paths, sorted, 'the most first');
}

t.test('an image that only has other labels shares all', async (t) => {
  const { store, keys, build } = await newPlace(t);
  await build('a', [BASE, TOP]);
  await build('b', [BASE, TOP], { version: '2' });
  const { a, b, shared, obstacles } = await diffImages(store, 'a', 'b', { keys, ...ALL });
  t.not(a.digest, b.digest);
  t.match(a, { name: 'a:latest', stored: shared, unique: { chunks: 0, sealedBytes: 0 } });
  t.match(b, { content: { paths: [], more: { paths: 0, sealedBytes: 0 }, metadata: [] } });
  t.same(obstacles, []);
});

t.test('an image whose layers are squashed differs in metadata and what starts a layer', async (t) => {
  const { store, keys, build } = await newPlace(t);
  await build('a', [BASE, TOP]);
  await build('b', [[...BASE, ...TOP]]);
  const { a, b, shared } = await diffImages(store, 'a', 'b', { keys, ...ALL });
  t.ok(shared.sealedBytes > 0.8 * a.stored.sealedBytes);
  for (const side of [a, b]) checkSums(t, side);
});

t.test('of an image with one file changed, that file is named, and what lies in its chunks', async (t) => {
  const { store, keys, build } = await newPlace(t);
  const changed = BASE.map((entry) =>
    entry.name === 'big' ? { ...entry, body: noise(3_000_000, 2000) } : entry,
  );
  await build('a', [BASE, TOP]);
  await build('b', [changed, TOP]);
  const { a, b, shared } = await diffImages(store, 'a', 'b', { keys, ...ALL });
  for (const side of [a, b]) {
    checkSums(t, side);
    t.match(side.content!.paths, [{ path: '/big', chunks: Math.ceil(3_000_000 / CHUNK_BYTES) }]);
    t.ok(side.content!.paths[0]!.sealedBytes > 0.99 * 3_000_000);
    t.same(pathsOf(side), ['/big']);
  }
  t.ok(shared.sealedBytes > 2_000_000);
  t.equal(shared.sealedBytes + b.unique.sealedBytes, b.stored.sealedBytes);
  t.equal(shared.chunks + b.unique.chunks, b.stored.chunks);
});

t.test('images that share nothing are told whole, and a bounded list says what is left out', async (t) => {
  const { store, keys, build } = await newPlace(t);
  await build('a', [BASE]);
  await build('b', [[{ name: 'other', body: noise(5_000_000, 3000) }]]);
  const all = await diffImages(store, 'a', 'b', { keys, ...ALL });
  t.same(all.b.content!.paths.length, 1);
  t.same(pathsOf(all.a).toSorted(), ['/big', ...BASE.slice(1, -1).map(({ name }) => `/${name}`)].sort());
  checkSums(t, all.a);
  const few = await diffImages(store, 'a', 'b', { keys, pathsMax: 10 });
  t.same(few.a.content!.paths, all.a.content!.paths.slice(0, 10));
  t.equal(few.a.content!.more.paths, 71);
  checkSums(t, few.a);
});

t.test('a hard link takes its bytes once', async (t) => {
  const { store, keys, build } = await newPlace(t);
  const files: TarEntrySpec[] = [
    { name: 'one', body: noise(600_000, 1) },
    { name: 'two', type: 'link', target: 'one' },
  ];
  await build('a', [files]);
  await build('b', [BASE]);
  const { a } = await diffImages(store, 'a', 'b', { keys, ...ALL });
  t.equal(a.content!.paths.length, 1);
  checkSums(t, a);
});

t.test('chunks need no key, paths do, and the one that is given must open both', async (t) => {
  const { store, keys, build } = await newPlace(t);
  await build('a', [BASE]);
  await build('b', [BASE, TOP]);
  const blind = await diffImages(store, 'a', 'b', ALL);
  const seen = await diffImages(store, 'a', 'b', { keys, ...ALL });
  t.same(blind, { ...seen, a: { ...seen.a, content: null }, b: { ...seen.b, content: null } });
  const byDigest = await diffImages(store, seen.a.digest, seen.b.digest, ALL);
  t.same(byDigest.shared, seen.shared);
  t.equal(byDigest.a.name, seen.a.digest);

  const other = TenantKey.generate({ domain: 'theirs' });
  await putDisk(store, other, 'theirs', Buffer.alloc(CHUNK_BYTES, 1));
  const mixed = await diffImages(store, 'a', 'theirs', ALL);
  t.match(mixed, { shared: { chunks: 0 }, b: { unique: { chunks: 1 } } });
  t.match(mixed.obstacles, ['dedup domain default and theirs', /^disk writer /]);
  await t.rejects(diffImages(store, 'a', 'theirs', { keys, ...ALL }), { code: 'KEY', message: /theirs/ });
  await t.rejects(diffImages(store, 'a', 'none', ALL), { code: 'NOT_FOUND', message: /none:latest/ });
  await t.rejects(diffImages(store, 'none', 'a', { keys, ...ALL }), { code: 'NOT_FOUND' });
  await t.rejects(diffImages(store, 'a', '..', ALL), { code: 'USAGE' });
});

t.test('only metadata is read, and a chunk of it that is damaged or gone is named', async (t) => {
  const { store, storeDir, keys, build } = await newPlace(t);
  await build('a', [BASE]);
  await build('b', [BASE, TOP]);
  const image = await loadImage(store, 'b', keys);
  const { metadata } = await chunkPaths(store, image, ALL);
  const own = new Set(metadata.map(({ id }) => id));
  for (let entry = 0; entry < image.manifest.storedChunks; entry++) {
    const { id } = image.manifest.ref(entry);
    if (!own.has(id)) rmSync(chunkFileIn(storeDir, id), { force: true });
  }
  t.equal((await diffImages(store, 'a', 'b', { keys, ...ALL })).b.content!.paths[0]!.path, '/app/main');
  const { index, id } = metadata.find(({ uses }) => uses.includes('inodes'))!;
  const file = chunkFileIn(storeDir, id);
  const bytes = readFileSync(file);
  bytes[bytes.length >> 1]! ^= 1;
  writeFileSync(file, bytes);
  const named = new RegExp(`^chunk ${index} \\(${id}\\) of b:latest `);
  await t.rejects(chunkPaths(store, image, ALL), { code: 'CORRUPT', message: named });
  rmSync(file);
  await t.rejects(chunkPaths(store, image, ALL), { code: 'NOT_FOUND', message: named });
});

t.test('a disk that is not ext4 has no paths to tell', async (t) => {
  const { store, key, keys } = await newPlace(t);
  const image = await putDisk(store, key, 'raw', Buffer.alloc(4 * CHUNK_BYTES, 1));
  await t.rejects(chunkPaths(store, image, ALL), { code: 'UNSUPPORTED' });
  const { shared } = await diffImages(store, 'raw', 'raw', ALL);
  t.equal(shared.chunks, 1, 'a chunk that the disk has four times counts once');
  await t.rejects(diffImages(store, 'raw', 'raw', { keys, ...ALL }), { code: 'UNSUPPORTED' });
});

t.test('every path lies in the chunks that debugfs says', async (t) => {
  if (skipWithout(t, 'debugfs')) return;
  const { store, storeDir, keys, build } = await newPlace(t);
  const varied: TarEntrySpec[] = [
    { name: 'links/' },
    { name: 'links/long', type: 'symlink', target: 'l'.repeat(300) },
    { name: 'links/short', type: 'symlink', target: 'l' },
    { name: 'links/hard', type: 'link', target: 'big' },
    { name: 'many/' },
    ...Array.from({ length: 900 }, (_, n) => ({
      name: `many/${String(n).padEnd(100, 'm')}` as string,
      body: '',
    })),
  ];
  await build('a', [BASE, varied, TOP]);
  const image = await loadImage(store, 'a', keys);
  const disk = join(storeDir, '..', 'disk');
  await exportImage({ image, store, out: disk });
  const { paths, metadata } = await chunkPaths(store, image, ALL);
  const told = new Map<string, Set<number>>();
  for (const { path, chunks } of paths) told.set(path, new Set(chunks.map(({ index }) => index)));
  const seen = seenByDebugfs(disk, 4096);
  t.same([...told.keys()].toSorted(), [...seen.inodeAt.keys()].map(printable).toSorted());
  const inodeChunks = new Set(
    metadata.filter(({ uses }) => uses.includes('inodes')).map(({ index }) => index),
  );
  for (const [chunk, ofChunk] of seen.paths) {
    const missing = ofChunk
      .map(printable)
      // debugfs counts a path's inode, which is metadata here.
      .filter((path) => !told.get(path)!.has(chunk) && !inodeChunks.has(chunk));
    t.same(missing, [], `chunk ${chunk}`);
  }
  for (const [path, chunks] of told)
    for (const chunk of chunks) if (!seen.paths.get(chunk)?.map(printable).includes(path)) t.fail(path);
});

t.test('the chunks of all paths and the metadata are those of the image', async (t) => {
  const { store, keys, build } = await newPlace(t);
  const bodies = fc.oneof(
    fc.constant(Buffer.alloc(0)),
    fc
      .record({ size: fc.integer({ min: 1, max: 30_000 }), seed: fc.nat(9) })
      .map((one) => noise(one.size, one.seed)),
    fc
      .record({ size: fc.integer({ min: 400_000, max: 1_300_000 }), seed: fc.nat(9) })
      .map((one) => noise(one.size, one.seed)),
    fc.constant(Buffer.alloc(700_000)),
  );
  const entry = fc
    .record({ folder: fc.constantFrom('', 'a/', 'a/b/', 'c/'), file: fc.nat(20), body: bodies })
    .map(({ folder, file, body }): TarEntrySpec => ({ name: `${folder}f${file}`, body }));
  const layers = fc.array(fc.array(entry, { maxLength: 12 }), { minLength: 1, maxLength: 3 });
  let images = 0;
  await fc.assert(
    fc.asyncProperty(layers, async (some) => {
      const name = `image-${images++}`;
      await build(name, some);
      const image = await loadImage(store, name, keys);
      const { paths, metadata, morePaths, unreadable } = await chunkPaths(store, image, ALL);
      const chunks = [...metadata, ...paths.flatMap((path) => path.chunks)];
      const { clear } = image.manifest;
      const stored = Array.from({ length: clear.storedChunks }, (_, at) => clear.indexOf(at));
      t.same(
        [...new Set(chunks.map(({ index }) => index))].sort((a, b) => a - b),
        stored,
      );
      for (const { index, id, sealedBytes } of chunks) {
        const at = clear.entryOf(index);
        if (clear.idOf(at) !== id || clear.sealedBytesOf(at) !== sealedBytes) t.fail(`chunk ${index}`);
      }
      t.notOk(
        metadata.some(({ uses }) => uses.length === 0),
        'of each chunk it is known what it is for',
      );
      t.same({ morePaths, unreadable }, { morePaths: 0, unreadable: 0 });
    }),
    { numRuns: 25 },
  );
});

t.test('paths are chosen by patterns', async (t) => {
  const matches = (glob: string, ...paths: string[]) => paths.filter(globMatcher(glob));
  const paths = ['/', '/a', '/a/b.so', '/a/.hid/b.so', '/b.so', '/b.so.1', '/a/b+c(d)', '/a/é', '/a/x\ny'];
  t.same(matches('/**', ...paths), paths);
  t.same(matches('/*', ...paths), ['/', '/a', '/b.so', '/b.so.1']);
  t.same(matches('/a/**', ...paths), ['/a/b.so', '/a/.hid/b.so', '/a/b+c(d)', '/a/é', '/a/x\ny']);
  t.same(matches('*.so', ...paths), ['/a/b.so', '/a/.hid/b.so', '/b.so']);
  t.same(matches('/a/**/b.so', ...paths), ['/a/b.so', '/a/.hid/b.so']);
  t.same(matches('a/?', ...paths), ['/a/é']);
  t.same(matches('b+c(d)', ...paths), ['/a/b+c(d)']);
  t.same(matches('/b.s?', ...paths), ['/b.so']);
  t.same(matches('*-1.?', '/lib-1.0', '/a/x-1.2', '/lib_1.0'), ['/lib-1.0', '/a/x-1.2']);
  const plain = fc.string({ unit: 'grapheme' }).map((text) => `/${text.replaceAll(/[*?]/g, '')}`);
  fc.assert(
    fc.property(plain, plain, (path, other) => {
      assert.deepEqual(matches(path, path), [path], 'a pattern without * and ? matches itself');
      if (other !== path) assert.deepEqual(matches(path, other), [], 'and nothing else');
    }),
    {
      examples: [
        ['/[a-z]', '/b'],
        ['/a-b.c+d^$|(){}\\', '/a'],
      ],
    },
  );
});

t.test('of many, the best are kept in order', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.nat(1000), { maxLength: 500 }), fc.nat(60), (all, max) => {
      const best = new Best<number>(max, (a, b) => a - b);
      for (const one of all) best.add(one);
      const sorted = all.toSorted((a, b) => a - b);
      t.same(best.take(), { best: sorted.slice(0, max), more: Math.max(0, all.length - max) });
    }),
  );
});
