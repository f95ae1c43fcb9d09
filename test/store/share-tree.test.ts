/** Sharing in a store: what each image adds, and which older image is its parent in the tree. */
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import type { ImageDigest } from '../../src/format/image-digest.ts';
import { TenantKey } from '../../src/format/keys.ts';
import type { ManifestEntry } from '../../src/format/manifest-seal.ts';
import { shareTree } from '../../src/store/share-tree.ts';
import type { StoreWriter } from '../../src/store/store.ts';
import { sampleEntries } from '../format/samples.ts';
import { openDirStore } from '../support/dir-store.ts';
import { putEntries } from '../support/stored-disk.ts';

async function newStore(t: Test) {
  const store = await openDirStore(join(t.testdir(), 'store'));
  t.teardown(() => store.close());
  const writer = await store.writer();
  const key = TenantKey.generate();
  return { store, writer, put: putter(writer, key) };
}

/** Puts and names an image with these chunks; chunk _n_ has 1000 + _n_ sealed bytes. */
function putter(writer: StoreWriter, key: TenantKey) {
  return async (name: string, chunks: readonly number[]) => {
    const entries: ManifestEntry[] = sampleEntries(chunks);
    await putEntries(writer, key, { name, diskBytes: 2 ** 30, entries, writerVersion: `test/${name}` });
  };
}

/** The tree is ordered by the times of names, which are in milliseconds. */
async function nextTime(): Promise<void> {
  for (const from = Date.now(); Date.now() <= from; ) await new Promise((resolve) => setTimeout(resolve, 1));
}

t.test('each image stands below the older one that it shares the most with', async (t) => {
  const { store, writer, put } = await newStore(t);
  t.same(await shareTree(store), []);
  for (const [name, chunks] of [
    ['base', [1, 2, 3]],
    ['app:1', [1, 2, 3, 4]],
    ['other', [9]],
    ['app:2', [1, 2, 3, 4, 5]],
    ['base:2', [1, 2, 6]],
  ] as const) {
    await put(name, chunks);
    await nextTime();
  }
  const tree = await shareTree(store);
  t.match(tree, [
    { names: ['base:latest'], depth: 0, parent: null, stored: { chunks: 3, sealedBytes: 3006 } },
    { names: ['app:1'], depth: 1, parent: 'base:latest', added: { chunks: 1, sealedBytes: 1004 } },
    { names: ['app:2'], depth: 2, parent: 'app:1', shared: { chunks: 4, sealedBytes: 4010 } },
    { names: ['base:2'], depth: 1, parent: 'base:latest', shared: { chunks: 2, sealedBytes: 2003 } },
    { names: ['other:latest'], depth: 0, parent: null, added: { chunks: 1, sealedBytes: 1009 } },
  ]);
  t.equal(tree.length, 5);
  await writer.putReference('again', tree[1]!.digest);
  t.same((await shareTree(store))[1]!.names, ['again:latest', 'app:1'], 'an image of two names is one');
});

t.test('an image whose manifest is broken hides no other', async (t) => {
  const { store, writer, put } = await newStore(t);
  await put('a', [1, 2]);
  const none = `sha256:${'0'.repeat(64)}` as ImageDigest;
  await writer.putManifest(none, 'f'.repeat(16), Buffer.from('no manifest'));
  await writer.putReference('broken', none);
  await put('b', [2, 3]);
  t.match(
    (await shareTree(store)).toSorted((x, y) => (x.names[0]! < y.names[0]! ? -1 : 1)),
    [
      { names: ['a:latest'], problem: null },
      { names: ['b:latest'], problem: null },
      { names: ['broken:latest'], problem: /manifest/, parent: null, stored: { chunks: 0 } },
    ],
  );
});

t.test('what all add is what the store has, whatever they share', async (t) => {
  const { store, put } = await newStore(t);
  const images = new Map<string, number[]>();
  let count = 0;
  await fc.assert(
    fc.asyncProperty(fc.uniqueArray(fc.nat(30), { minLength: 1, maxLength: 15 }), async (chunks) => {
      const name = `image-${count++}:latest`;
      images.set(
        name,
        chunks.sort((a, b) => a - b),
      );
      await put(name, images.get(name)!);
      const tree = await shareTree(store);
      const bytesOf = (some: Iterable<number>) => [...some].reduce((sum, chunk) => sum + 1000 + chunk, 0);
      const added = tree.reduce((sum, image) => sum + image.added.sealedBytes, 0);
      t.equal(added, bytesOf(new Set([...images.values()].flat())));
      for (const [at, { names, parent, depth, stored, shared, added }] of tree.entries()) {
        const own = images.get(names[0]!)!;
        const above = parent === null ? [] : images.get(parent)!;
        t.equal(stored.sealedBytes, bytesOf(own));
        t.equal(shared.sealedBytes, bytesOf(own.filter((chunk) => above.includes(chunk))));
        t.ok(added.sealedBytes + shared.sealedBytes <= stored.sealedBytes);
        const isBelow =
          parent === null ||
          tree.slice(0, at).some((one) => one.names[0] === parent && one.depth === depth - 1);
        t.ok(isBelow);
      }
    }),
    { numRuns: 20 },
  );
});
