/**
 * The contract of src/store/store.ts as tests; every implementation runs it. `open` must return, for one `place`, views
 * of one store, as two processes would have.
 */
import { hash, randomBytes } from 'node:crypto';
import type { Test } from 'tap';
import { type ChunkId, chunkIdOf, SEALED_BYTES_MAX } from '../../src/format/chunk-id.ts';
import type { ImageDigest } from '../../src/format/image-digest.ts';
import type { Store, StoreWriter } from '../../src/store/store.ts';
import { type OpenViews, testsOnViews } from '../support/views.ts';

const digestOf = (fill: string) => `sha256:${fill.repeat(64)}` as ImageDigest;
const KEY_A = 'a'.repeat(16);
const KEY_B = 'b'.repeat(16);

/** Names an image that has a manifest and no chunks. */
async function name(writer: StoreWriter, text: string, digest: ImageDigest): Promise<void> {
  await writer.putManifest(digest, KEY_A, Buffer.from('manifest'));
  await writer.putReference(text, digest);
}

export function storeSuite(t: Test, open: OpenViews<Store>): void {
  const withStore = testsOnViews(t, open);

  const chunk = (sizeBytes = 1000): [ChunkId, Buffer] => {
    const sealed = randomBytes(sizeBytes);
    return [chunkIdOf(hash('sha256', sealed, 'buffer')), sealed];
  };

  withStore('an empty store has nothing, and says so without failing', async (t, store) => {
    const [id] = chunk();
    t.equal(await store.getChunk(id), undefined);
    t.equal(await (await store.writer()).hasChunk(id), false);
    t.equal(await store.getManifest(digestOf('1'), KEY_A), undefined);
    t.same(await store.manifestKeys(digestOf('1')), []);
    t.equal(await store.getReference('nothing'), undefined);
    t.same(await store.listReferences(), []);
    t.same(await store.history(), []);
  });

  withStore('a chunk is there for everyone when its put resolves', async (t, store, again) => {
    for (const sizeBytes of [1, 18, 4096, SEALED_BYTES_MAX]) {
      const [id, sealed] = chunk(sizeBytes);
      await (await store.writer()).putChunk(id, sealed);
      for (const view of [store, await again()]) {
        t.ok((await view.getChunk(id))?.equals(sealed));
        const writer = await view.writer();
        t.equal(await writer.hasChunk(id), true);
        t.equal(await writer.hasChunk(id, sizeBytes), true);
        t.equal(await writer.hasChunk(id, sizeBytes + 1), false, 'not one of another length');
      }
    }
  });

  withStore('a chunk may be put again, by anyone, at the same time', async (t, store, again) => {
    const other = await again();
    const [id, sealed] = chunk(300_000);
    const writers = await Promise.all([store, other, store, other].map((view) => view.writer()));
    await Promise.all(writers.map((writer) => writer.putChunk(id, sealed)));
    await writers[0]!.putChunk(id, sealed);
    t.ok((await other.getChunk(id))?.equals(sealed));
  });

  withStore('many puts in flight all land', async (t, store, again) => {
    const chunks = Array.from({ length: 200 }, () => chunk(5000));
    const writer = await store.writer();
    await Promise.all(chunks.map(([id, sealed]) => writer.putChunk(id, sealed)));
    const view = await again();
    for (const [id, sealed] of chunks) if (!(await view.getChunk(id))?.equals(sealed)) t.fail(id);
    t.pass('all of them');
  });

  withStore('a read that was cancelled is ABORTED', async (t, store) => {
    const [id, sealed] = chunk();
    await (await store.writer()).putChunk(id, sealed);
    await t.rejects(store.getChunk(id, { signal: AbortSignal.abort() }), { code: 'ABORTED' });
    t.ok(await store.getChunk(id, { signal: new AbortController().signal }));
  });

  withStore('manifests are kept by digest and key', async (t, store, openAgain) => {
    const writer = await store.writer();
    await writer.putManifest(digestOf('1'), KEY_A, Buffer.from('one for a'));
    await writer.putManifest(digestOf('1'), KEY_B, Buffer.from('one for b'));
    await writer.putManifest(digestOf('2'), KEY_A, Buffer.from('two for a'));
    const view = await openAgain();
    t.equal(String(await view.getManifest(digestOf('1'), KEY_A)), 'one for a');
    t.equal(String(await view.getManifest(digestOf('1'), KEY_B)), 'one for b');
    t.equal(String(await view.getManifest(digestOf('2'), KEY_A)), 'two for a');
    t.equal(await view.getManifest(digestOf('2'), KEY_B), undefined);
    t.same(await view.manifestKeys(digestOf('1')), [KEY_A, KEY_B]);
    const again = Buffer.from('one for a, wrapped again');
    t.equal(await writer.putManifest(digestOf('1'), KEY_A, again), 'kept', 'not over one without a proof');
    const opens = (what: string) => (bytes: Buffer) => String(bytes) === what;
    t.equal(await writer.putManifest(digestOf('1'), KEY_A, again, opens('one for a')), 'present');
    t.equal(await writer.putManifest(digestOf('1'), KEY_A, again, opens('neither')), 'kept');
    t.equal(String(await view.getManifest(digestOf('1'), KEY_A)), 'one for a');
    t.equal(await writer.putManifest(digestOf('1'), KEY_A, again, opens(String(again))), 'written');
    t.equal(await writer.putManifest(digestOf('1'), KEY_A, again), 'present');
    t.equal(String(await view.getManifest(digestOf('1'), KEY_A)), String(again));
    await writer.addManifest(digestOf('2'), KEY_B, Buffer.from('two for b'));
    t.same(await view.manifestKeys(digestOf('2')), [KEY_A, KEY_B]);
    await t.rejects(writer.addManifest(digestOf('3'), KEY_B, Buffer.alloc(1)), { code: 'NOT_FOUND' });
  });

  withStore('names mean what was put last, and default to latest', async (t, store, again) => {
    const writer = await store.writer();
    const view = await again();
    await name(writer, 'debian', digestOf('1'));
    t.match(await view.getReference('debian:latest'), { name: 'debian:latest', digest: digestOf('1') });
    await name(writer, 'debian:latest', digestOf('2'));
    const reference = await view.getReference('debian');
    t.equal(reference?.digest, digestOf('2'));
    t.ok(Math.abs(Date.parse(reference?.updated ?? '') - Date.now()) < 60_000, 'written just now');
    t.equal(await view.getReference('debian:12'), undefined);
  });

  withStore('a name is only given to an image that is there', async (t, store) => {
    const writer = await store.writer();
    await t.rejects(writer.putReference('x', digestOf('1')), { code: 'NOT_FOUND' });
    t.equal(await store.getReference('x'), undefined);
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
    const writer = await store.writer();
    for (const text of names) await name(writer, text, digestOf('3'));
    t.same(
      (await store.listReferences()).map((reference) => reference.name),
      names.toSorted(),
    );
  });

  withStore('a name that is removed is gone, and may come back', async (t, store, again) => {
    const writer = await store.writer();
    const view = await again();
    await name(writer, 'a', digestOf('1'));
    await name(writer, 'b', digestOf('1'));
    await writer.removeReference('a');
    t.equal(await view.getReference('a'), undefined);
    t.same(
      (await view.listReferences()).map((reference) => reference.name),
      ['b:latest'],
    );
    await t.rejects(writer.removeReference('a'), { code: 'NOT_FOUND' });
    await name(writer, 'a', digestOf('2'));
    t.equal((await view.getReference('a'))?.digest, digestOf('2'));
  });

  withStore('what a name was set to is remembered', async (t, store, again) => {
    const writer = await store.writer();
    await name(writer, 'a', digestOf('1'));
    await name(writer, 'team/b:2', digestOf('2'));
    await name(writer, 'a', digestOf('2'));
    await writer.removeReference('a');
    const view = await again();
    t.match(await view.history('a'), [
      { name: 'a:latest', digest: digestOf('1') },
      { name: 'a:latest', digest: digestOf('2') },
      { name: 'a:latest', digest: null },
    ]);
    t.equal((await view.history()).length, 4);
  });

  withStore('a name is set only if it means what is expected', async (t, store, again) => {
    const [writer, other] = [await store.writer(), await (await again()).writer()];
    await writer.putManifest(digestOf('1'), KEY_A, Buffer.from('1'));
    await other.putManifest(digestOf('2'), KEY_A, Buffer.from('2'));
    await writer.putReference('a', digestOf('1'), { expected: null });
    await t.rejects(other.putReference('a', digestOf('2'), { expected: null }), { code: 'BUSY' });
    await t.rejects(other.putReference('a', digestOf('2'), { expected: digestOf('2') }), { code: 'BUSY' });
    await t.rejects(other.removeReference('a', { expected: digestOf('2') }), { code: 'BUSY' });
    await other.putReference('a', digestOf('2'), { expected: digestOf('1') });
    await writer.removeReference('a', { expected: digestOf('2') });
    t.equal(await store.getReference('a'), undefined);
  });

  withStore(
    'of two who set one name at once both come through, one after the other',
    async (t, store, again) => {
      const writers = [await store.writer(), await (await again()).writer(), await (await again()).writer()];
      await Promise.all(writers.map((writer) => name(writer, 'a', digestOf('1'))));
      t.equal((await store.getReference('a'))?.digest, digestOf('1'));
      t.equal((await store.history('a')).length >= 3, true);
    },
  );

  withStore('what is no name is USAGE', async (t, store) => {
    const bad = [
      '', ':', 'a:', ':a', 'a b', '../a', 'a/../b', '/a', 'a/', 'a//b', '.a', '-a', 'a:b:c', 'a:-', 'a%2Fb', 'ä',
      'a\0', 'a\n', 'n'.repeat(129), `a:${'t'.repeat(65)}`, 'sha256:abc', `a${'/a'.repeat(8)}`,
    ]; // biome-ignore format: a list of words
    const writer = await store.writer();
    for (const text of bad) {
      await t.rejects(store.getReference(text), { code: 'USAGE' }, JSON.stringify(text));
      await t.rejects(writer.putReference(text, digestOf('4')), { code: 'USAGE' });
    }
    t.same(await store.listReferences(), []);
  });
}
