/**
 * Copies between stores: missing objects are copied, corrupt ones stop the copy, and the name is set last or not at
 * all.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { LazydiskError } from '../../src/errors.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { rewrapManifest } from '../../src/format/manifest-rewrap.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { type CopyOptions, copyImage } from '../../src/store/copy.ts';
import { loadImage } from '../../src/store/image.ts';
import { rootPath, stateKey } from '../../src/store/roots/layout.ts';
import type { RootStore } from '../../src/store/roots/root-store.ts';
import type { Store } from '../../src/store/store.ts';
import { chunkFileIn, openDirStore, rootDir } from '../support/dir-store.ts';
import { putDisk } from '../support/stored-disk.ts';

/**
 * A store with image `app:1`, sealed for two keys, and an empty store. Three in four of its chunks hold data, and two
 * of them are equal: of 24, 17 are stored.
 */
async function twoStores(t: Test, chunks = 24) {
  const dirs = { from: join(t.testdir(), 'from'), to: join(t.testdirName, 'to') };
  const [from, to] = await Promise.all([openDirStore(dirs.from), openDirStore(dirs.to)]);
  t.teardown(() => Promise.all([from.close(), to.close()]));
  const key = TenantKey.generate();
  const other = TenantKey.generate({ sharing: key });
  const disk = randomBytes(chunks * CHUNK_BYTES);
  for (let chunk = 3; chunk < chunks; chunk += 4)
    disk.fill(0, chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
  disk.copy(disk, 0, 5 * CHUNK_BYTES, 6 * CHUNK_BYTES);
  const image = await putDisk(from, key, 'app:1', disk);
  const bytes = (await from.getManifest(image.digest, key.id))!;
  await (await from.writer()).addManifest(image.digest, other.id, rewrapManifest(bytes, key, other));
  return { dirs, from, to, key, other, image, digest: image.digest };
}

/** Wraps `store` so that `before` runs before each call of `method`. */
function watched(store: RootStore, method: 'getChunk', before: () => void): Store {
  return new Proxy(store as Store, {
    get(target, name) {
      const value = Reflect.get(target, name, target) as unknown;
      if (typeof value !== 'function') return value;
      return (...args: unknown[]) => {
        if (name === method) before();
        return Reflect.apply(value, target, args) as unknown;
      };
    },
  });
}

t.test('an image is copied whole, for all its keys, and once', async (t) => {
  const { from, to, key, other, digest } = await twoStores(t);
  const planned = await copyImage({ from, to, image: 'app:1', dryRun: true });
  t.match(planned, { copiedChunks: 17, presentChunks: 0, manifests: 2 });
  t.equal(await to.getReference('app:1'), undefined, 'a dry run writes nothing');
  const progress: number[] = [];
  const report = await copyImage({
    from,
    to,
    image: 'app:1',
    onProgress: ({ doneBytes, totalBytes }) => progress.push(doneBytes / totalBytes),
  });
  t.match(report, { name: 'app:1', digest, chunks: 17, copiedChunks: 17, presentChunks: 0, manifests: 2 });
  t.equal(report.copiedBytes, planned.copiedBytes);
  t.equal(progress.length, 17);
  t.equal(progress.at(-1), 1);
  for (const ring of [KeyRing.of(key), KeyRing.of(other)])
    t.equal((await loadImage(to, 'app:1', ring)).digest, digest);
  const reads: number[] = [];
  const again = await copyImage({
    from: watched(from, 'getChunk', () => reads.push(1)),
    to,
    image: digest,
    name: 'team/app:2',
  });
  t.match(again, { name: 'team/app:2', copiedChunks: 0, copiedBytes: 0, presentChunks: 17 });
  t.equal(reads.length, 0);
  t.equal((await to.getReference('team/app:2'))?.digest, digest);
});

t.test('a copy into its own store is one more name', async (t) => {
  const { from, digest } = await twoStores(t);
  t.match(await copyImage({ from, to: from, image: 'app:1', name: 'other' }), { copiedChunks: 0 });
  t.equal((await from.getReference('other'))?.digest, digest);
});

t.test('what is only in the target in part is completed', async (t) => {
  const { dirs, from, to, image } = await twoStores(t);
  await copyImage({ from, to, image: 'app:1' });
  const [first, second] = [image.manifest.ref(0).id, image.manifest.ref(2).id];
  rmSync(chunkFileIn(dirs.to, first));
  truncateSync(chunkFileIn(dirs.to, second), 100);
  t.match(await copyImage({ from, to, image: 'app:1' }), { copiedChunks: 2, presentChunks: 15 });
  t.equal((await to.getChunk(second))?.length, image.manifest.ref(2).sealedBytes);
});

t.test('a chunk that is missing or bad is named, and nothing else is', async (t) => {
  const { dirs, from, to, image } = await twoStores(t);
  const { id } = image.manifest.ref(6);
  const index = image.manifest.indexOf(6);
  const good = (await from.getChunk(id))!;
  const bent = Buffer.from(good);
  bent[100]! ^= 1;
  const file = chunkFileIn(dirs.from, id);
  for (const bad of [bent, good.subarray(1), Buffer.concat([good, Buffer.alloc(1)]), Buffer.alloc(0)]) {
    writeFileSync(file, bad);
    await t.rejects(copyImage({ from, to, image: 'app:1' }), {
      code: 'CORRUPT',
      message: new RegExp(`chunk ${index} \\(${id}\\)`),
    });
  }
  rmSync(file);
  await t.rejects(copyImage({ from, to, image: 'app:1' }), {
    code: 'NOT_FOUND',
    message: new RegExp(`chunk ${index} \\(${id}\\)`),
  });
  t.same(await to.listReferences(), []);
  t.notOk(existsSync(join(rootDir(dirs.to), 'manifests')));
  t.notOk(existsSync(chunkFileIn(dirs.to, id)));
});

t.test('a bad manifest stops the copy before a chunk moves', async (t) => {
  const { dirs, from, to, digest, other } = await twoStores(t);
  const file = join(rootDir(dirs.from), 'manifests/sha256', digest.slice(7), other.id);
  const bytes = (await from.getManifest(digest, other.id))!;
  bytes[300]! ^= 1;
  for (const bad of [bytes, Buffer.alloc(0)]) {
    writeFileSync(file, bad);
    await t.rejects(copyImage({ from, to, image: 'app:1' }), {
      code: 'CORRUPT',
      message: new RegExp(other.id),
    });
  }
  t.notOk(existsSync(rootDir(dirs.to)));
});

/** The image in both stores. `bend` flips a bit of the manifest for `keyId` in a store and returns its bytes. */
async function copied(t: Test) {
  const stores = await twoStores(t);
  const { dirs, from, to, digest } = stores;
  await copyImage({ from, to, image: 'app:1' });
  const fileOf = (dir: string, keyId: string) =>
    join(rootDir(dir), 'manifests/sha256', digest.slice('sha256:'.length), keyId);
  const bend = (dir: string, keyId: string, at: number) => {
    const bytes = readFileSync(fileOf(dir, keyId));
    bytes[at < 0 ? bytes.length + at : at]! ^= 1;
    writeFileSync(fileOf(dir, keyId), bytes);
    return bytes;
  };
  const manifest = (keyId: string) => readFileSync(fileOf(dirs.to, keyId));
  return { ...stores, bend, manifest };
}

t.test('a good manifest is not overwritten by one whose sealed part is bad', async (t) => {
  const { dirs, from, to, key, other, bend, manifest } = await copied(t);
  const good = manifest(key.id);
  bend(dirs.from, key.id, -40);
  const planned = await copyImage({ from, to, image: 'app:1', dryRun: true });
  t.match(planned, { provenManifests: 0, keptManifests: [key.id] });
  t.match(await copyImage({ from, to, image: 'app:1' }), { manifests: 2, keptManifests: [key.id] });
  t.ok(manifest(key.id).equals(good), 'without a key');
  await t.rejects(copyImage({ from, to, image: 'app:1', keys: KeyRing.of(other, key) }), {
    code: 'CORRUPT',
    message: new RegExp(key.id),
  });
  t.ok(manifest(key.id).equals(good), 'with the key');
});

t.test('a bad manifest is replaced by a good one that the key proves, and by no other', async (t) => {
  const { dirs, from, to, key, other, bend, manifest } = await copied(t);
  const good = manifest(key.id);
  const sealedBad = bend(dirs.to, key.id, -40);
  t.match(await copyImage({ from, to, image: 'app:1' }), { keptManifests: [key.id] });
  t.match(await copyImage({ from, to, image: 'app:1', keys: KeyRing.of(other) }), {
    provenManifests: 1,
    keptManifests: [key.id],
  });
  t.ok(manifest(key.id).equals(sealedBad));
  t.match(await copyImage({ from, to, image: 'app:1', keys: KeyRing.of(key) }), { keptManifests: [] });
  t.ok(manifest(key.id).equals(good));
  const clearBad = bend(dirs.to, key.id, 210);
  for (const dryRun of [true, false])
    await t.rejects(copyImage({ from, to, image: 'app:1', name: 'new', dryRun }), {
      code: 'CORRUPT',
      message: /--key/,
    });
  t.ok(manifest(key.id).equals(clearBad), 'its sealed part may be the last good copy');
  t.equal(await to.getReference('new'), undefined, 'and it gets no name');
  t.match(await copyImage({ from, to, image: 'app:1', keys: KeyRing.of(key) }), { keptManifests: [] });
  t.ok(manifest(key.id).equals(good));
});

t.test(
  'of two good manifests the one that is there stays, and with the key that is no question',
  async (t) => {
    const { from, to, key, other, digest, manifest } = await copied(t);
    const bytes = manifest(key.id);
    const writer = await from.writer();
    await writer.removeManifest(digest, key.id);
    await writer.addManifest(digest, key.id, rewrapManifest(manifest(other.id), other, key));
    t.match(await copyImage({ from, to, image: 'app:1' }), { keptManifests: [key.id] });
    t.match(await copyImage({ from, to, image: 'app:1', keys: KeyRing.of(key) }), { keptManifests: [] });
    t.ok(manifest(key.id).equals(bytes));
  },
);

t.test('a manifest in the root that images still move out of is not hidden by an unproven one', async (t) => {
  const { dirs, from, to, key, bend, manifest } = await copied(t);
  const good = manifest(key.id);
  bend(dirs.from, key.id, -40);
  const { objects } = to.parts;
  await objects.put(stateKey(rootPath(1), 'opened'), Buffer.alloc(0));
  await objects.put(stateKey(rootPath(2), 'opened'), Buffer.alloc(0));
  await to.parts.views.newerThan(0);
  t.match(await copyImage({ from, to, image: 'app:1' }), { keptManifests: [key.id] });
  t.ok(manifest(key.id).equals(good));
  t.equal((await loadImage(to, 'app:1', KeyRing.of(key))).name, 'app:1', 'and it is what readers meet');
});

t.test('a copy that was stopped names nothing, and goes on when it is run again', async (t) => {
  const { dirs, from, to } = await twoStores(t, 128);
  const stopping = new AbortController();
  const onProgress: CopyOptions['onProgress'] = ({ copiedChunks }) => {
    if (copiedChunks === 3) stopping.abort(new LazydiskError('ABORTED', 'stop'));
  };
  await t.rejects(copyImage({ from, to, image: 'app:1', onProgress, signal: stopping.signal }), {
    code: 'ABORTED',
  });
  t.same(await to.listReferences(), []);
  const there = readdirSync(join(rootDir(dirs.to), 'chunks'), {
    recursive: true,
    withFileTypes: true,
  }).filter((entry) => entry.isFile()).length;
  t.ok(there >= 3 && there < 90, `${there} chunks`);
  const report = await copyImage({ from, to, image: 'app:1' });
  t.match(report, { presentChunks: there, copiedChunks: 95 - there });
});

t.test('from a store that cannot be listed only manifests of known keys come', async (t) => {
  const { from, to, key, other, digest } = await twoStores(t);
  from.manifestKeys = async () => {
    throw new LazydiskError('UNSUPPORTED', 'only read');
  };
  await t.rejects(copyImage({ from, to, image: 'app:1' }), { code: 'UNSUPPORTED', message: /--key/ });
  await t.rejects(copyImage({ from, to, image: 'app:1', keys: KeyRing.of(TenantKey.generate()) }), {
    code: 'NOT_FOUND',
  });
  const keys = KeyRing.of(TenantKey.generate(), key);
  t.match(await copyImage({ from, to, image: 'app:1', keys }), { manifests: 1, provenManifests: 1 });
  t.same(await to.manifestKeys(digest), [key.id]);
  t.not(key.id, other.id);
});

t.test('names that are none, or missing, are refused', async (t) => {
  const { from, to, digest } = await twoStores(t);
  const cases: [string, Partial<CopyOptions>][] = [
    ['USAGE', { image: '../x' }],
    ['USAGE', { image: 'app:1', name: 'a b' }],
    ['USAGE', { image: digest }],
    ['NOT_FOUND', { image: 'none' }],
    ['NOT_FOUND', { image: `sha256:${'0'.repeat(64)}`, name: 'x' }],
  ];
  for (const [code, options] of cases)
    await t.rejects(copyImage({ from, to, image: 'app:1', ...options }), { code }, JSON.stringify(options));
  t.match(await copyImage({ from, to: undefined, image: 'app:1', dryRun: true }), { copiedChunks: 17 });
});
