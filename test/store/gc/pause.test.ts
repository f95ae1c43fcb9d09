/**
 * Processes that are stopped at a bad moment, for longer than any period, and then go on as if nothing had happened.
 */
import { readdirSync, readFileSync, unlinkSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { ImageDigest } from '../../../src/format/image-digest.ts';
import { TenantKey } from '../../../src/format/keys.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { INDEX_KEY } from '../../../src/store/roots/layout.ts';
import type { RootStore } from '../../../src/store/roots/root-store.ts';
import { writeIndex } from '../../../src/store/roots/view.ts';
import {
  AGING_POLICY,
  agingStore,
  diskOf,
  filesIn,
  isWholeFor,
  RETENTION_MS,
} from '../../support/aging-store.ts';
import { withCalls } from '../../support/fsck-store.ts';
import { PausedObjects } from '../../support/paused-objects.ts';
import { putDisk } from '../../support/stored-disk.ts';

const key = TenantKey.generate();

t.test('a sweep that takes away late what has come to be needed leaves it in its trash', async (t) => {
  const { dir, disk, open, openOn, pass, store } = await agingStore(t);
  const content = diskOf();
  await putDisk(store, key, 'first', content);
  await (await store.writer()).removeReference('first');
  pass(AGING_POLICY.graceMs + 1_000);
  const objects = new PausedObjects(disk(), (change, at) => change === 'delete' && at.includes('/chunks/'));
  const sweeping = sweep((await openOn(objects)).parts);
  await objects.stopped;
  const image = await putDisk(await open(), key, 'second', content);
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
  const { disk, open, openOn, pass, store } = await agingStore(t);
  await putDisk(store, key, 'kept', diskOf());
  await putDisk(store, key, 'gone', diskOf());
  await (await store.writer()).removeReference('gone');
  pass(AGING_POLICY.graceMs + 1_000);
  const refusing = withCalls(disk(), { delete: () => Promise.reject(new Error('EACCES')) });
  await t.rejects(sweep((await openOn(refusing)).parts), { message: /EACCES/ });
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: [/^trash/], held: [] });

  const objects = new PausedObjects(disk(), (change) => change === 'delete');
  void sweep((await openOn(objects)).parts);
  await objects.stopped;
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: [], held: [{ why: /goes with roots\/1, after `gc rotate`/ }] });
  await rotate(store.parts);
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: ['roots/1', /^trash/], held: [] });
  t.equal((await (await open()).listReferences()).length, 1);
});

t.test('a name that a stopped writer gives to what was deleted meanwhile is taken back', async (t) => {
  const { disk, open, openOn, pass, store } = await agingStore(t);
  const former = await putDisk(store, key, 'app', diskOf());
  const stoppedAt = (part: string) => new PausedObjects(disk(), (_, at) => at.includes(part));
  const [naming, renaming] = [stoppedAt('history/new'), stoppedAt('history/app')];
  const builds = [
    putDisk(await openOn(naming), key, 'new', diskOf(2)),
    putDisk(await openOn(renaming), key, 'app', diskOf(3)),
  ];
  await Promise.all([naming.stopped, renaming.stopped]);
  await collect(store, pass);
  // A machine that resumes from a snapshot does not know how long it stood still.
  const failed = Promise.all(
    builds.map((build) =>
      t.rejects(build, { code: 'NOT_FOUND', message: /; (?:new|app):latest means .* again/ }),
    ),
  );
  naming.resume();
  renaming.resume();
  await failed;
  t.equal(await (await open()).getReference('new'), undefined);
  t.equal((await (await open()).getReference('app'))?.digest, former.digest);
  t.match(await sweep(store.parts), { lostNames: [] });
});

t.test('a name that was set since is not taken back', async (t) => {
  const { disk, open, openOn, pass, store } = await agingStore(t);
  const objects = new PausedObjects(
    disk(),
    (change, at) => change === 'put' && at.endsWith('/app%3Alatest.json'),
  );
  const late = putDisk(await openOn(objects), key, 'app', diskOf());
  await objects.stopped;
  await collect(store, pass);
  const image = await putDisk(await open(), key, 'app', diskOf());
  objects.resume();
  await t.rejects(late);
  t.equal((await (await open()).getReference('app'))?.digest, image.digest);
});

t.test('a writer that dies after it named what was deleted stops no collector', async (t) => {
  const { disk, open, openOn, pass, store } = await agingStore(t);
  await putDisk(store, key, 'kept', diskOf());
  // Requests after its name is written are never answered.
  let isNamed = false;
  const objects = new PausedObjects(disk(), (_, at) => at.includes('history/lost'));
  const dying = withCalls(objects, {
    put: async (at, bytes, options) => {
      await objects.put(at, bytes, options);
      isNamed = at.includes('/references/lost');
      if (isNamed) await new Promise(() => {});
    },
  });
  void putDisk(await openOn(dying), key, 'lost', diskOf());
  await objects.stopped;
  await collect(store, pass);
  objects.resume();
  while (!(await (await open()).getReference('lost'))) await sleep(5);
  t.match(await sweep(store.parts), { lostNames: ['lost:latest'], liveImages: 2 });
  t.match(await rotate(store.parts), { lostNames: ['lost:latest'], names: 1, retired: true });
  t.match(
    (await (await open()).listReferences()).map(({ name }) => name),
    ['kept:latest'],
  );
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: ['roots/1'], held: [] });
});

t.test('a name that a dying writer left in a root that was given up goes with it, and is told', async (t) => {
  const { open, pass, store, leaveName } = await lateStore(t);
  await putDisk(store, key, 'kept', diskOf());
  await rotate(store.parts);
  await leaveName();
  // The next rotation, at any later time.
  await rotate((await open()).parts);
  pass(RETENTION_MS);
  const report = { purged: ['roots/1', 'roots/2'], held: [], lostNames: ['late:latest'] };
  t.match(await purge((await open()).parts, { dryRun: true }), report);
  t.match(await purge((await open()).parts), report);
  t.match(
    (await (await open()).listReferences()).map(({ name }) => name),
    ['kept:latest'],
  );
});

t.test('a name of which nobody can tell that it was late holds its root, until it is set', async (t) => {
  const { dir, disk, open, pass, store, leaveName } = await lateStore(t);
  await rotate(store.parts);
  const digest = await leaveName();
  await rotate(store.parts);
  // As after a copy of the store by a program that does not preserve times.
  for (const marker of ['roots/1/retired', 'roots/2/opened'])
    await disk().put(`state/${marker}`, Buffer.alloc(0));
  await putDisk(await open(), key, 'gone', diskOf());
  await (await (await open()).writer()).removeReference('gone');
  pass(AGING_POLICY.graceMs + 1_000);
  await sweep((await open()).parts);
  pass(RETENTION_MS);
  const why = `has late:latest, image ${digest}, which no later root knows: \`lazydisk tag ${digest} late:latest\`, then \`rm\` it if nobody needs it`;
  const held = [
    { area: 'roots/1', why },
    { area: 'roots/2', why: 'goes after roots/1' },
  ];
  t.match(await purge((await open()).parts), { purged: [/^trash/], held, lostNames: [] });
  t.equal(filesIn(dir, 'roots/1/chunks').length, 4);
  const writer = await (await open()).writer();
  await writer.putReference('late', digest);
  await writer.removeReference('late');
  t.match(await purge((await open()).parts), { purged: ['roots/1', 'roots/2'], held: [], lostNames: [] });
});

t.test('a manifest that a stopped writer put is no proof that its chunks are there', async (t) => {
  const { dir, disk, open, openOn, pass, store } = await agingStore(t);
  const objects = new PausedObjects(disk(), (request, at) => request === 'put' && at.includes('/manifests/'));
  const late = putDisk(await openOn(objects), key, 'app', diskOf());
  await objects.stopped;
  await collect(store, pass);
  objects.resume();
  await t.rejects(late, { code: 'TIMEOUT' });
  const [keyFile] = readdirSync(join(dir, 'roots/1/manifests'), {
    recursive: true,
    withFileTypes: true,
  }).filter((entry) => entry.isFile());
  const digest = `sha256:${basename(keyFile!.parentPath)}` as ImageDigest;
  await t.rejects((await (await open()).writer()).putReference('tagged', digest), {
    code: 'NOT_FOUND',
    message: /chunk 0 .* is nowhere in the store; tagged:latest means nothing again/,
  });
  t.equal(await (await open()).getReference('tagged'), undefined);
});

t.test(
  'what is written late into a root that is gone is no image, and goes with the next purge',
  async (t) => {
    const { dir, disk, open, openOn, pass, store } = await agingStore(t);
    await putDisk(store, key, 'kept', diskOf());
    const objects = new PausedObjects(disk(), (request, at) => request === 'put' && at.includes('/chunks/'));
    const late = putDisk(await openOn(objects), key, 'late', diskOf());
    await objects.stopped;
    await rotate(store.parts);
    pass(RETENTION_MS);
    t.match(await purge(store.parts), { purged: ['roots/1'] });
    objects.resume();
    await t.rejects(late);
    t.equal(filesIn(dir, 'roots/1').length, 4);
    t.match(await purge(await (await open()).parts, { dryRun: true }), { purged: [], deletedObjects: 4 });
    t.match(await purge((await open()).parts), { purged: [], deletedObjects: 4 });
    t.equal(filesIn(dir, 'roots/1').length, 0);
    t.match(
      (await (await open()).listReferences()).map(({ name }) => name),
      ['kept:latest'],
    );
  },
);

t.test('a rotation that opens a root once more when that is gone holds up nothing', async (t) => {
  const { dir, disk, open, openOn, pass, store } = await agingStore(t);
  await putDisk(store, key, 'kept', diskOf());
  const objects = new PausedObjects(disk(), (_, at) => at === 'state/roots/2/opened');
  const late = rotate((await openOn(objects)).parts);
  await objects.stopped;
  for (let turn = 0; turn < 3; turn++) {
    await rotate((await open()).parts);
    pass(RETENTION_MS);
    await purge((await open()).parts);
  }
  t.same(filesIn(dir, 'state/roots/2'), []);
  objects.resume();
  await t.rejects(late, { code: 'BUSY' });
  t.same(filesIn(dir, 'state/roots/2'), ['opened']);
  pass(RETENTION_MS);
  await rotate((await open()).parts);
  pass(RETENTION_MS);
  t.match(await purge((await open()).parts), { purged: ['roots/2', 'roots/4'], held: [] });
});

t.test('an index that is written late does not hide a root that was opened meanwhile', async (t) => {
  for (const canCompareAndSet of [true, false]) {
    const { dir, disk, openOn, store } = await agingStore(t);
    await putDisk(store, key, 'app', diskOf());
    const plain = disk();
    const blind = withCalls(plain, {
      put: (at, bytes, { ifVersion: _, ...options } = {}) => plain.put(at, bytes, options),
      canCompareAndSet: async () => false,
    });
    const objects = new PausedObjects(
      canCompareAndSet ? plain : blind,
      (request, at) => request === 'put' && at === INDEX_KEY,
    );
    unlinkSync(join(dir, INDEX_KEY));
    const late = writeIndex((await openOn(objects)).parts.objects);
    await objects.stopped;
    await rotate(store.parts);
    objects.resume();
    await late;
    const index = JSON.parse(readFileSync(join(dir, INDEX_KEY), 'utf8'));
    t.same(index, { version: 1, areas: ['roots/2', 'roots/1'], draining: null });
  }
});

/**
 * A store with a writer that stops in root 1 after it has put an image, sets the name when a test says so, and dies.
 */
async function lateStore(t: Test) {
  const aging = await agingStore(t);
  const isName = (at: string) => at.includes('/references/');
  const objects = new PausedObjects(aging.disk(), (_, at) => isName(at));
  const named = Promise.withResolvers<void>();
  const dying = withCalls(objects, {
    put: async (at, bytes, options) => {
      await objects.put(at, bytes, options);
      if (!isName(at)) return;
      named.resolve();
      await new Promise(() => {});
    },
  });
  void putDisk(await aging.openOn(dying), key, 'late', diskOf());
  await objects.stopped;
  const leaveName = async () => {
    aging.pass(1_000);
    objects.resume();
    await named.promise;
    aging.pass(1_000);
    const file = readFileSync(join(aging.dir, 'roots/1/references/late%3Alatest.json'), 'utf8');
    return (JSON.parse(file) as { digest: ImageDigest }).digest;
  };
  return { ...aging, leaveName };
}

/** Deletes everything that no name means. */
async function collect(store: RootStore, pass: (ms: number) => void): Promise<void> {
  pass(AGING_POLICY.graceMs + 1_000);
  await sweep(store.parts);
  pass(RETENTION_MS);
  await purge(store.parts);
}
