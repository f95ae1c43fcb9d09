/**
 * The contract of src/store/store.ts as tests; every implementation runs it. `open` must give, for one `place`,
 * views of one store, as two processes would have.
 */
import { randomBytes } from 'node:crypto';
import type { Test } from 'tap';
import { type ChunkId, chunkIdOf, SEALED_BYTES_MAX } from '../../src/format/chunk-id.ts';
import type { ImageDigest, Store } from '../../src/store/store.ts';

const digestOf = (fill: string) => `sha256:${fill.repeat(64)}` as ImageDigest;
const KEY_A = 'a'.repeat(16);
const KEY_B = 'b'.repeat(16);

export function storeSuite(t: Test, open: (t: Test) => Promise<() => Promise<Store>>): void {
  const withStore = (
    name: string,
    body: (t: Test, store: Store, again: () => Promise<Store>) => Promise<void>,
  ) =>
    t.test(name, async (t) => {
      const openView = await open(t);
      const stores: Store[] = [];
      const view = async () => {
        const store = await openView();
        stores.push(store);
        return store;
      };
      t.teardown(() => Promise.all(stores.map((store) => store.close())));
      await body(t, await view(), view);
    });

  const chunk = (sizeBytes = 1000): [ChunkId, Buffer] => [chunkIdOf(randomBytes(32)), randomBytes(sizeBytes)];

  withStore('an empty store has nothing, and says so without failing', async (t, store) => {
    const [id] = chunk();
    t.equal(await store.getChunk(id), undefined);
    t.equal(await store.hasChunk(id), false);
    t.equal(await store.getManifest(digestOf('1'), KEY_A), undefined);
    t.equal(await store.getReference('nothing'), undefined);
    t.same(await store.listReferences(), []);
  });

  withStore('a chunk is there for everyone when its put resolves', async (t, store, again) => {
    for (const sizeBytes of [1, 18, 4096, SEALED_BYTES_MAX]) {
      const [id, sealed] = chunk(sizeBytes);
      await store.putChunk(id, sealed);
      for (const view of [store, await again()]) {
        t.ok((await view.getChunk(id))?.equals(sealed));
        t.equal(await view.hasChunk(id), true);
        t.equal(await view.hasChunk(id, sizeBytes), true);
        t.equal(await view.hasChunk(id, sizeBytes + 1), false, 'not one of another length');
      }
    }
  });

  withStore('a chunk may be put again, by anyone, at the same time', async (t, store, again) => {
    const other = await again();
    const [id, sealed] = chunk(300_000);
    await Promise.all([store, other, store, other].map((view) => view.putChunk(id, sealed)));
    await store.putChunk(id, sealed);
    t.ok((await other.getChunk(id))?.equals(sealed));
  });

  withStore('many puts in flight all land', async (t, store, again) => {
    const chunks = Array.from({ length: 200 }, () => chunk(5000));
    await Promise.all(chunks.map(([id, sealed]) => store.putChunk(id, sealed)));
    const view = await again();
    for (const [id, sealed] of chunks) if (!(await view.getChunk(id))?.equals(sealed)) t.fail(id);
    t.pass('all of them');
  });

  withStore('a read that was cancelled is ABORTED', async (t, store) => {
    const [id, sealed] = chunk();
    await store.putChunk(id, sealed);
    await t.rejects(store.getChunk(id, { signal: AbortSignal.abort() }), { code: 'ABORTED' });
    t.ok(await store.getChunk(id, { signal: new AbortController().signal }));
  });

  withStore('manifests are kept by digest and key', async (t, store, again) => {
    await store.putManifest(digestOf('1'), KEY_A, Buffer.from('one for a'));
    await store.putManifest(digestOf('1'), KEY_B, Buffer.from('one for b'));
    await store.putManifest(digestOf('2'), KEY_A, Buffer.from('two for a'));
    const view = await again();
    t.equal(String(await view.getManifest(digestOf('1'), KEY_A)), 'one for a');
    t.equal(String(await view.getManifest(digestOf('1'), KEY_B)), 'one for b');
    t.equal(String(await view.getManifest(digestOf('2'), KEY_A)), 'two for a');
    t.equal(await view.getManifest(digestOf('2'), KEY_B), undefined);
    await store.putManifest(digestOf('1'), KEY_A, Buffer.from('one for a, wrapped again'));
    t.equal(String(await view.getManifest(digestOf('1'), KEY_A)), 'one for a, wrapped again');
  });

  withStore('names mean what was put last, and default to latest', async (t, store, again) => {
    const view = await again();
    await store.putReference('debian', digestOf('1'));
    t.match(await view.getReference('debian:latest'), { name: 'debian:latest', digest: digestOf('1') });
    await store.putReference('debian:latest', digestOf('2'));
    const reference = await view.getReference('debian');
    t.equal(reference?.digest, digestOf('2'));
    t.ok(Math.abs(Date.parse(reference?.updated ?? '') - Date.now()) < 60_000, 'written just now');
    t.equal(await view.getReference('debian:12'), undefined);
  });

  withStore('names are listed sorted, whatever is in them', async (t, store) => {
    const names = [
      'z:1',
      'a/b/c:x',
      'a:1',
      'team-a/app_1.2:v1.0-rc_1',
      'A:1',
      `${'n'.repeat(128)}:${'t'.repeat(64)}`,
    ];
    for (const name of names) await store.putReference(name, digestOf('3'));
    t.same(
      (await store.listReferences()).map(({ name }) => name),
      names.toSorted(),
    );
  });

  withStore('what is no name is USAGE', async (t, store) => {
    const bad = [
      '', ':', 'a:', ':a', 'a b', '../a', 'a/../b', '/a', 'a/', 'a//b', '.a', '-a', 'a:b:c', 'a:-', 'a%2Fb', 'ä',
      'a\0', 'a\n', 'n'.repeat(129), `a:${'t'.repeat(65)}`, 'sha256:abc', `a${'/a'.repeat(8)}`,
    ]; // biome-ignore format: a list of words
    for (const name of bad) {
      await t.rejects(store.getReference(name), { code: 'USAGE' }, JSON.stringify(name));
      await t.rejects(store.putReference(name, digestOf('4')), { code: 'USAGE' });
    }
    t.same(await store.listReferences(), []);
  });
}
