/** Sweeps over a directory whose files have the ages that a case needs. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { TenantKey } from '../../../src/format/keys.ts';
import { sealManifest } from '../../../src/format/manifest-seal.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { sampleParts } from '../../format/samples.ts';
import { age, openDirStore } from '../../support/dir-store.ts';

const DAY_MS = 24 * 60 * 60 * 1000;

/** A new store, and images that differ only in their number. */
async function newStore(t: Test) {
  const dir = join(t.testdir(), 'store');
  const store = await openDirStore(dir);
  t.teardown(() => store.close());
  const writer = await store.writer();
  const key = TenantKey.generate();
  const put = async (n: number) => {
    const { digest, bytes } = sealManifest(sampleParts(key, { writerVersion: `test/${n}` }));
    await writer.putManifest(digest, key.id, bytes);
    return digest;
  };
  const ageBy = (folder: string, days: number, but?: readonly string[]) =>
    age(dir, folder, days * DAY_MS, but);
  return { dir, store, writer, put, ageBy };
}

t.test('what a name meant until lately is no garbage, however long ago it was set', async (t) => {
  const { dir, store, writer, put, ageBy } = await newStore(t);
  const first = await put(1);
  await writer.putReference('app', first);
  ageBy('history', 200);
  const [record] = readdirSync(join(dir, 'history/app%3Alatest'));
  ageBy('roots', 200);
  const second = await put(2);
  await writer.putReference('app', second);
  const { modifiedMs } = (await store.parts.references.history()).find(({ digest }) => digest === second)!;
  t.ok(Date.now() - modifiedMs < DAY_MS);
  for (let run = 1; run <= 3; run++) {
    t.match(await sweep(store.parts), { liveImages: 2, sweptManifests: 0 }, `sweep ${run}`);
    t.ok(
      readdirSync(join(dir, 'history/app%3Alatest')).includes(record!),
      'the record of it is needed still',
    );
  }
  // A hundred days later.
  ageBy('history', 100, [record!]);
  t.match(await sweep(store.parts, { dryRun: true }), { liveImages: 1, sweptManifests: 1 });
});

t.test('records of long ago are forgotten, but for the last of each name', async (t) => {
  const { store, writer, put, ageBy } = await newStore(t);
  const [first, second] = [await put(1), await put(2)];
  for (const digest of [first, second, first]) await writer.putReference('app', digest);
  await writer.putReference('other', second);
  ageBy('history', 100);
  await sweep(store.parts);
  t.match(await store.history(), [
    { name: 'app:latest', digest: first },
    { name: 'other:latest', digest: second },
  ]);
});
