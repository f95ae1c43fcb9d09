/**
 * The list of a store's images: sizes without a key, what is shared and what is not, and which images are damaged how.
 */
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { ChunkId } from '../../src/format/chunk-id.ts';
import type { ImageDigest } from '../../src/format/image-digest.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { ClearManifest } from '../../src/format/manifest-clear.ts';
import { rewrapManifest } from '../../src/format/manifest-rewrap.ts';
import { type ManifestEntry, sealManifest } from '../../src/format/manifest-seal.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { ChunkOwners } from '../../src/store/chunk-owners.ts';
import { listImages } from '../../src/store/image-list.ts';
import { sampleEntries, sampleParts } from '../format/samples.ts';
import { openDirStore, rootDir } from '../support/dir-store.ts';

async function newStore(t: Test) {
  const dir = join(t.testdir(), 'store');
  const store = await openDirStore(dir);
  t.teardown(() => store.close());
  const writer = await store.writer();
  const key = TenantKey.generate();
  const put = async (name: string, chunks: readonly number[], sealer = key) => {
    const { digest, bytes } = sealManifest(
      sampleParts(sealer, { writerVersion: `test/${chunks.join('-')}`, entries: sampleEntries(chunks) }),
    );
    await writer.putManifest(digest, sealer.id, bytes);
    await writer.putReference(name, digest);
    return { digest, bytes };
  };
  return { dir, store, writer, key, put };
}

t.test('sizes need no key, and what only one image has is told', async (t) => {
  const { store, writer, key, put } = await newStore(t);
  const { digest, bytes } = await put('a', [1, 2, 3]);
  await put('b', [3, 4]);
  await writer.putReference('a:again', digest);
  const other = TenantKey.generate({ sharing: key });
  await writer.addManifest(digest, other.id, rewrapManifest(bytes, key, other));
  const listed = await listImages(store);
  const a = { diskBytes: 2 ** 30, storedChunks: 3, storedBytes: 3006, uniqueBytes: 1001 + 1002 };
  const keyIds = [key.id, other.id].sort();
  t.match(listed, [
    { reference: { name: 'a:again' }, keyIds, figures: a, problem: undefined },
    { reference: { name: 'a:latest' }, keyIds, figures: a },
    { reference: { name: 'b:latest' }, keyIds: [key.id], figures: { storedBytes: 2007, uniqueBytes: 1004 } },
  ]);
  t.same(await listImages(store, KeyRing.of(key)), listed);
});

t.test('what is wrong with one hides no other', async (t) => {
  const { dir, store, writer, key, put } = await newStore(t);
  await put('app', [1, 2]);
  const { digest: bent } = await put('bent', [2, 3]);
  await put('theirs', [4], TenantKey.generate());
  const none = `sha256:${'0'.repeat(64)}` as ImageDigest;
  await writer.putManifest(none, 'f'.repeat(16), Buffer.from('no manifest'));
  await writer.putReference('gone', none);
  rmSync(join(rootDir(dir), 'manifests/sha256', none.slice(7)), { recursive: true });
  writeFileSync(join(rootDir(dir), 'manifests/sha256', bent.slice(7), key.id), 'bent');
  const names = (listed: Awaited<ReturnType<typeof listImages>>) =>
    listed.map(({ reference, figures, problem }) => [reference.name, figures !== undefined, problem]);
  t.match(names(await listImages(store, KeyRing.of(key))), [
    ['app:latest', true, undefined],
    ['bent:latest', false, /does not start with the magic of a manifest/],
    ['gone:latest', false, /no manifest of sha256:0/],
    ['theirs:latest', true, /is sealed for key .{16}, and this host has key /],
  ]);
  t.match(names(await listImages(store)), [
    ['app:latest', true, undefined],
    ['bent:latest', false, /does not start with the magic of a manifest/],
    ['gone:latest', false, /no manifest of sha256:0/],
    ['theirs:latest', true, undefined],
  ]);
});

t.test('many images share as a count of every chunk says', async (t) => {
  const key = TenantKey.generate();
  const owners = new ChunkOwners();
  const holders = new Map<number, Set<number>>();
  const images = Array.from({ length: 12 }, (_, image) =>
    // The last chunk of each image occurs twice.
    Array.from({ length: 2000 }, (_, n) => image * 1500 + Math.min(n, 1998)),
  );
  const idOf = (chunk: number) =>
    Buffer.from(Uint32Array.of(chunk * 2654435761, chunk, 7, 7, 7, 7, 7, 7).buffer).toString(
      'hex',
    ) as ChunkId;
  const entry = (chunk: number, index: number): ManifestEntry => ({
    index,
    ref: { id: idOf(chunk), key: Buffer.alloc(32), sealedBytes: 100 + (chunk % 7) },
  });
  for (const [image, chunks] of images.entries()) {
    const { bytes } = sealManifest(sampleParts(key, { diskBytes: 2 ** 30, entries: chunks.map(entry) }));
    t.equal(await owners.add(new ClearManifest(bytes)), image);
    for (const chunk of chunks) holders.set(chunk, (holders.get(chunk) ?? new Set()).add(image));
  }
  for (const image of images.keys()) {
    let expected = 0;
    for (const [chunk, of] of holders) if (of.size === 1 && of.has(image)) expected += 100 + (chunk % 7);
    t.equal(owners.uniqueBytes(image), expected);
  }
});
