/** How many requests a writer needs to find out which chunks a root has; the answers are the same either way. */
import { createHash } from 'node:crypto';
import t from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import { chunkKey, rootPath } from '../../../src/store/roots/layout.ts';
import { RootStore } from '../../../src/store/roots/root-store.ts';
import { openDirStore } from '../../support/dir-store.ts';
import { MapObjects } from '../../support/map-objects.ts';

const idOf = (n: number) => createHash('sha256').update(`${n}`).digest('hex') as ChunkId;

/**
 * A store with the chunks 0 to `chunks` - 1, of 10 bytes each, in the order in which S3 lists keys or in that of
 * `compare`.
 */
async function storeWith(chunks: number, compare: (a: ChunkId, b: ChunkId) => number = byKey) {
  const objects = new MapObjects();
  const store = await RootStore.open(objects, { create: true });
  const ids = Array.from({ length: chunks }, (_, n) => idOf(n)).sort(compare);
  const bytes = Buffer.alloc(10);
  for (const id of ids) objects.objects.set(chunkKey(rootPath(1), id), { bytes, modifiedMs: Date.now() });
  /** Counts a writer's requests for `wanted` chunks, every other one of which exists. */
  const look = async (wanted: number) => {
    const writer = await store.writer(wanted);
    const before = { ...objects.asked };
    const wrong: number[] = [];
    await Promise.all(
      Array.from({ length: wanted }, async (_, n) => {
        const isThere = n % 2 === 0;
        const found = await writer.hasChunk(idOf(isThere ? n : chunks + n), 10);
        if (found !== isThere) wrong.push(n);
      }),
    );
    return {
      wrong,
      heads: objects.asked.head - before.head,
      pages: objects.asked.pages - before.pages,
    };
  };
  return { objects, store, look };
}

function byKey(a: ChunkId, b: ChunkId): number {
  return a < b ? -1 : 1;
}

t.test('a root that is not much larger than the image is listed', async (t) => {
  const { look } = await storeWith(5_500);
  t.same(await look(1_000), { wrong: [], heads: 0, pages: 6 });
  t.same(await look(2_000), { wrong: [], heads: 0, pages: 6 });
});

t.test('an empty root is listed', async (t) => {
  const { store, objects } = await storeWith(0);
  const writer = await store.writer(50);
  const before = { ...objects.asked };
  for (let n = 0; n < 50; n++) t.equal(await writer.hasChunk(idOf(n)), false);
  t.match(objects.asked, { head: before.head, pages: before.pages + 1 });
});

t.test(
  'of a root that is much larger than the image one page is listed, and each chunk asked for',
  async (t) => {
    const { look } = await storeWith(30_000);
    t.same(await look(1_000), { wrong: [], heads: 1_000, pages: 1 });
    t.same(await look(10), { wrong: [], heads: 10, pages: 1 });
  },
);

t.test('whatever the order of a listing, the answers are right, and it ends', async (t) => {
  const backwards = await storeWith(5_500, (a, b) => byKey(b, a));
  t.same(await backwards.look(1_000), { wrong: [], heads: 0, pages: 6 });
  const large = await storeWith(30_000, (a, b) => byKey(b, a));
  t.same(await large.look(1_000), { wrong: [], heads: 1_000, pages: 10 });
});

t.test('a writer that has said nothing of many asks for each', async (t) => {
  const { store, objects } = await storeWith(10);
  const writer = await store.writer();
  const before = { ...objects.asked };
  t.equal(await writer.hasChunk(idOf(1)), true);
  t.equal(await writer.hasChunk(idOf(1), 11), false);
  t.match(objects.asked, { head: before.head + 2, pages: before.pages });
});

t.test(
  'a chunk that was listed with another length is not there, and one that was put since is',
  async (t) => {
    const { store } = await storeWith(10);
    const writer = await store.writer(10);
    t.equal(await writer.hasChunk(idOf(1), 11), false);
    t.equal(await writer.hasChunk(idOf(1), 10), true);
    const id = idOf(99);
    t.equal(await writer.hasChunk(id), false);
    await writer.putChunk(id, Buffer.alloc(7));
    t.equal(await writer.hasChunk(id, 7), true);
  },
);

t.test('a listing that fails is no empty root', async (t) => {
  const { store, objects } = await storeWith(10);
  const writer = await store.writer(10);
  objects.list = () => {
    throw new LazydiskError('UNAVAILABLE', 'the store burns');
  };
  await t.rejects(writer.hasChunk(idOf(1)), { code: 'UNAVAILABLE' });
});

t.test('a directory is not listed: there each question is a system call', async (t) => {
  const store = await openDirStore(t.testdir());
  t.teardown(() => store.close());
  const writer = await store.writer(1_000);
  store.parts.objects.list = () => {
    throw new LazydiskError('INTERNAL', 'listed');
  };
  t.equal(await writer.hasChunk(idOf(1)), false);
});
