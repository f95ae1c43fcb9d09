/** Processes that are stopped at a bad moment, for longer than any period, and then go on as if nothing had happened. */
import t from 'tap';
import { TenantKey } from '../../../src/format/keys.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { DirObjects } from '../../../src/store/objects/dir-objects.ts';
import {
  AGING_POLICY,
  agingStore,
  diskOf,
  filesIn,
  isWholeFor,
  RETENTION_MS,
} from '../../support/aging-store.ts';
import { PausedObjects } from '../../support/paused-objects.ts';
import { putDisk } from '../../support/stored-disk.ts';

const key = TenantKey.generate();

t.test('a sweep that takes away late what has come to be needed leaves it in its trash', async (t) => {
  const { dir, open, openOn, pass, store } = await agingStore(t);
  const disk = diskOf();
  await putDisk(store, key, 'first', disk);
  await (await store.writer()).removeReference('first');
  pass(AGING_POLICY.graceMs + 1_000);
  const objects = new PausedObjects(
    new DirObjects(dir),
    (change, at) => change === 'delete' && at.includes('/chunks/'),
  );
  const sweeping = sweep((await openOn(objects)).parts);
  await objects.stopped;
  const image = await putDisk(await open(), key, 'second', disk);
  for (let turn = 0; turn < 3; turn++) {
    pass(RETENTION_MS);
    t.match(await purge((await open()).parts), { purged: [], held: [{ why: /^its sweep has not ended/ }] });
    await sweep((await open()).parts);
  }
  objects.resume();
  await sweeping;
  t.equal(filesIn(dir, 'roots/1/chunks').length, 0, 'it did take them away');
  pass(RETENTION_MS);
  t.match(await purge((await open()).parts), { purged: [/^trash/], held: [], restoredObjects: 4 });
  t.ok(await isWholeFor(key, await open(), image));
  t.equal(filesIn(dir, 'roots/1/chunks').length, 4);
});

t.test('a sweep that fails closes its trash, and one that was killed leaves it to its root', async (t) => {
  const { dir, open, openOn, pass, store } = await agingStore(t);
  await putDisk(store, key, 'kept', diskOf());
  await putDisk(store, key, 'gone', diskOf());
  await (await store.writer()).removeReference('gone');
  pass(AGING_POLICY.graceMs + 1_000);
  class Refusing extends DirObjects {
    override async delete(): Promise<void> {
      throw new Error('EACCES');
    }
  }
  await t.rejects(sweep((await openOn(new Refusing(dir))).parts), { message: /EACCES/ });
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: [/^trash/], held: [] });

  const objects = new PausedObjects(new DirObjects(dir), (change) => change === 'delete');
  void sweep((await openOn(objects)).parts);
  await objects.stopped;
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: [], held: [{ why: /goes with roots\/1, after `gc rotate`/ }] });
  await rotate(store.parts);
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: ['roots/1', /^trash/], held: [] });
  t.equal((await (await open()).listReferences()).length, 1);
});
