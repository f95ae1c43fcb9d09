/**
 * Removing names: everything that can go goes, and the report says what becomes of their images and why others stay.
 */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { TenantKey } from '../../src/format/keys.ts';
import { sealManifest } from '../../src/format/manifest-seal.ts';
import { removeNames } from '../../src/store/remove.ts';
import { sampleEntries, sampleParts } from '../format/samples.ts';
import { openDirStore } from '../support/dir-store.ts';

/** A store where `one:latest` and `one:again` mean one image, and `two:latest` another. */
async function newStore(t: Test) {
  const store = await openDirStore(join(t.testdir(), 'store'));
  t.teardown(() => store.close());
  const writer = await store.writer();
  const key = TenantKey.generate();
  const put = async (chunk: number, ...names: string[]) => {
    const { digest, bytes } = sealManifest(sampleParts(key, { entries: sampleEntries([chunk]) }));
    await writer.putManifest(digest, key.id, bytes);
    for (const name of names) await writer.putReference(name, digest);
    return digest;
  };
  const one = await put(1, 'one', 'one:again');
  const two = await put(2, 'two');
  const names = async () => (await store.listReferences()).map(({ name }) => name);
  return { store, one, two, names };
}

t.test('an image is without a name when its last name goes, not before', async (t) => {
  const { store, one, names } = await newStore(t);
  const first = await removeNames(store, ['one:latest']);
  t.match(first, { removed: [{ name: 'one:latest', digest: one }], unnamed: [], failures: [] });
  t.same((await removeNames(store, ['one:again'])).unnamed, [one]);
  t.same(await names(), ['two:latest']);
});

t.test('names that cannot go hold nothing up, and each has its reason', async (t) => {
  const { store, one, two, names } = await newStore(t);
  const wanted = ['two:latest', 'none:latest', 'one:latest'];
  const { removed, unnamed, failures } = await removeNames(store, wanted, { expected: one });
  t.match(removed, [{ name: 'one:latest' }]);
  t.same(unnamed, []);
  t.match(failures, [
    { name: 'two:latest', error: { code: 'BUSY', message: new RegExp(two) } },
    { name: 'none:latest', error: { code: 'NOT_FOUND' } },
  ]);
  t.same(await names(), ['one:again', 'two:latest']);
});

t.test('a dry run reports the same and changes nothing', async (t) => {
  const { store, one, two, names } = await newStore(t);
  const wanted = ['one:latest', 'one:again', 'two:latest'];
  const planned = await removeNames(store, wanted, { dryRun: true });
  t.same(planned.unnamed, [one, two]);
  t.equal((await names()).length, 3);
  t.same(await removeNames(store, wanted), planned);
});
