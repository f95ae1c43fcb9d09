/** Rotation, sweep and purge on a directory: what moves, what stays, what stops them, and what a kill leaves behind. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import type { ImageDigest } from '../../../src/format/image-digest.ts';
import { TenantKey } from '../../../src/format/keys.ts';
import { KeyRing } from '../../../src/keys/key-ring.ts';
import { lastEntries } from '../../../src/store/gc/journal.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { type Image, loadImage } from '../../../src/store/image.ts';
import { DirObjects } from '../../../src/store/objects/dir-objects.ts';
import { manifestKey, stateKey } from '../../../src/store/roots/layout.ts';
import { checkPolicy, DEFAULT_POLICY } from '../../../src/store/roots/policy.ts';
import { RootStore } from '../../../src/store/roots/root-store.ts';
import {
  agingStore,
  diskOf,
  filesIn,
  isWholeFor,
  AGING_POLICY as POLICY,
  RETENTION_MS,
} from '../../support/aging-store.ts';
import { putDisk } from '../../support/stored-disk.ts';

const key = TenantKey.generate();

const isWhole = (store: RootStore, image: Pick<Image, 'digest' | 'manifest'>) =>
  isWholeFor(key, store, image);

t.test('a policy that does not make deletion safe is refused', async (t) => {
  checkPolicy(DEFAULT_POLICY);
  checkPolicy(POLICY);
  for (const change of [
    { graceMs: POLICY.buildMs },
    { retentionMs: POLICY.buildMs + POLICY.viewMs },
    { buildMs: POLICY.graceMs },
    { settleMs: 0 },
    { viewMs: 1.5 },
  ])
    t.throws(() => checkPolicy({ ...POLICY, ...change }), { code: 'USAGE' });
});

t.test('images move to the next root as they are, and only new ones take its salt', async (t) => {
  const { dir, open, pass, store } = await agingStore(t);
  const old = await putDisk(store, key, 'app:1', diskOf());
  const drive = await open();
  t.ok(await isWhole(drive, old));
  const before = filesIn(dir, '').length;
  t.match(await rotate(store.parts, { dryRun: true }), {
    from: 'roots/1',
    to: 'roots/2',
    names: 1,
    movedChunks: 4,
  });
  t.equal(filesIn(dir, '').length, before + 1, 'a dry run leaves its journal and no more');

  t.match(await rotate(store.parts), {
    from: 'roots/1',
    to: 'roots/2',
    names: 1,
    movedChunks: 4,
    retired: true,
  });
  const found = await loadImage(await open(), 'app:1', KeyRing.of(key));
  t.equal(found.digest, old.digest);
  t.match(found.reference, { updated: old.reference!.updated });
  t.equal(filesIn(dir, 'roots/2/chunks').length, 4);
  const next = await putDisk(await open(), key, 'app:2', diskOf());
  t.equal(old.manifest.clear.saltEpoch, 1);
  t.equal(next.manifest.clear.saltEpoch, 2);
  t.not(next.manifest.ref(0).id, old.manifest.ref(0).id, 'the same chunk under another salt');
  t.ok(await isWhole(drive, old), 'a drive that knows nothing of it reads on');
  t.equal(drive.stats().retiredReads, 0, 'and not from what is to go');

  t.match(await purge(store.parts), { purged: [], held: [{ area: 'roots/1', isRead: false }] });
  pass(RETENTION_MS);
  const would = await purge(store.parts, { dryRun: true });
  t.match(would, { purged: ['roots/1'], deletedObjects: 6 });
  t.equal(filesIn(dir, 'roots/1').length, 6);
  t.same(await purge(store.parts), would, 'what a dry run says is what is done');
  t.same(filesIn(dir, 'roots/1'), []);
  t.same(filesIn(dir, 'state/roots/1'), []);
  for (const image of [old, next]) t.ok(await isWhole(await open(), image));
  t.match(
    (await lastEntries(store.parts.objects, 2)).map(({ command, state }) => `${command}: ${state}`),
    ['purge: done', 'purge --dry-run: done'],
  );
});

t.test('of several manifests for one key the whole one moves, and none replaces another', async (t) => {
  const { dir, store } = await agingStore(t);
  const { digest } = await putDisk(store, key, 'app:1', diskOf());
  const { objects } = store.parts;
  const good = (await store.getManifest(digest, key.id))!;
  const flippedAt = (at: number) => {
    const bytes = Buffer.from(good);
    bytes[at]! ^= 1;
    return bytes;
  };
  // A copy from an earlier image that was swept: its sealed part is corrupt, which cannot be detected without the key.
  await objects.put(stateKey('trash/1-x', 'opened'), Buffer.alloc(0));
  await objects.put(manifestKey('trash/1-x', digest, key.id), flippedAt(good.length - 40));
  await rotate(store.parts);
  const moved = () => readFileSync(join(dir, manifestKey('roots/2', digest, key.id)));
  t.ok(moved().equals(good), 'the one that readers meet first');

  await objects.put(manifestKey('trash/2-x', digest, key.id), good);
  await objects.put(stateKey('trash/2-x', 'opened'), Buffer.alloc(0));
  await objects.put(manifestKey('roots/2', digest, key.id), flippedAt(50));
  await rotate(store.parts);
  t.ok(readFileSync(join(dir, manifestKey('roots/3', digest, key.id))).equals(good), 'and is whole');
});

t.test('an image that lost its name is read from the retired root, which stays for it', async (t) => {
  const { dir, open, pass, store } = await agingStore(t);
  const image = await putDisk(store, key, 'app:1', diskOf());
  await (await store.writer()).removeReference('app:1');
  await rotate(store.parts);
  const drive = await open();
  t.ok(await isWhole(drive, image));
  t.equal(drive.stats().retiredReads, 5);
  t.equal(drive.stats().unrecordedReads, 0);
  while (!existsSync(join(dir, 'hosts/reads/roots/1'))) await sleep(5);
  pass(POLICY.retentionMs - 1_000);
  t.ok(await isWhole(drive, image));
  pass(2_000);
  t.match(await purge(store.parts), {
    purged: [],
    held: [{ area: 'roots/1', isRead: true, why: /^read by / }],
  });
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: ['roots/1'], held: [] });
  t.equal(await isWhole(drive, image), false);
  t.equal(await (await open()).getReference('app:1'), undefined, 'and its name does not come back');
});

t.test('a sweep puts aside what is nobody\u2019s, and nothing else', async (t) => {
  const { dir, open, pass, store } = await agingStore(t);
  const [kept, gone] = [
    await putDisk(store, key, 'kept', diskOf()),
    await putDisk(store, key, 'gone', diskOf()),
  ];
  await (await store.writer()).removeReference('gone');
  t.match(await sweep(store.parts), { sweptChunks: 0, trash: null }, 'all of it is young');
  pass(POLICY.graceMs + 1_000);
  const young = await putDisk(store, key, 'young', diskOf());
  const would = await sweep(store.parts, { dryRun: true });
  t.match(would, { chunks: 10, keptChunks: 7, sweptChunks: 3, sweptManifests: 1, trash: null });
  t.equal(filesIn(dir, 'roots/1/chunks').length, 10);
  const report = await sweep(store.parts);
  t.match(report, { sweptChunks: 3, sweptManifests: 1, sweptBytes: would.sweptBytes, trash: /^trash\/1-/ });
  t.equal(filesIn(dir, 'roots/1/chunks').length, 7, 'the shared chunk stays');
  const drive = await open();
  for (const image of [kept, young, gone]) t.ok(await isWhole(drive, image), 'and all can be read');
  t.equal(drive.stats().retiredReads, 4);
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: [report.trash], deletedObjects: 4, restoredObjects: 0 });
  t.same(filesIn(dir, 'trash'), []);
  for (const image of [kept, young]) t.ok(await isWhole(await open(), image));
  t.equal(await isWhole(await open(), gone), false);
});

t.test('what was swept and is named again goes back where it was', async (t) => {
  const { dir, open, pass, store } = await agingStore(t);
  const image = await putDisk(store, key, 'app', diskOf());
  await (await store.writer()).removeReference('app');
  pass(POLICY.graceMs + 1_000);
  const { trash } = await sweep(store.parts);
  t.equal(filesIn(dir, 'roots/1/chunks').length, 0);
  await (await (await open()).writer()).putReference('again', image.digest);
  t.equal(filesIn(dir, 'roots/1/chunks').length, 4, 'a name brings its image along');
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: [trash], restoredObjects: 0 });
  t.ok(await isWhole(await open(), image));
});

t.test('a name that means nothing stops a sweep before it does anything', async (t) => {
  const { dir, pass, store } = await agingStore(t);
  await putDisk(store, key, 'good', diskOf());
  const writer = await store.writer();
  const digest = `sha256:${'7'.repeat(64)}` as ImageDigest;
  await writer.putManifest(digest, key.id, Buffer.from('nonsense'));
  await writer.putReference('broken', digest);
  pass(POLICY.graceMs + 1_000);
  await t.rejects(sweep(store.parts), { code: 'CORRUPT', message: /broken:latest/ });
  await writer.removeManifest(digest, key.id);
  await t.rejects(sweep(store.parts), {
    code: 'NOT_FOUND',
    message: /broken:latest means image sha256:7+, .*fsck/,
  });
  await t.rejects(rotate(store.parts), { code: 'NOT_FOUND', message: /broken:latest/ });
  t.equal(filesIn(dir, 'roots/1/chunks').length, 4);
  await t.rejects(sweep(store.parts), { code: 'BUSY', message: /gc rotate/ }, 'the rotation is not over');
  await (await store.writer()).removeReference('broken');
  t.match(await rotate(store.parts), { from: 'roots/1', to: 'roots/2', retired: true });
});

t.test('a reader that cannot write says that a deletion does not know of it', async (t) => {
  const { dir, store } = await agingStore(t);
  const image = await putDisk(store, key, 'app', diskOf());
  await (await store.writer()).removeReference('app');
  await rotate(store.parts);
  class ReadOnly extends DirObjects {
    override async put(): Promise<void> {
      throw new Error('EROFS');
    }
  }
  const reader = await RootStore.open(new ReadOnly(dir));
  t.teardown(() => reader.close());
  t.ok(await isWhole(reader, image));
  await sleep(1);
  t.equal(reader.stats().unrecordedReads, 1, 'it tries once in a while');
  t.match(reader.stats(), { retiredReads: 5, roots: { active: 1, draining: 0, retired: 1, trash: 0 } });
});

t.test('a build that took too long gets no name', async (t) => {
  const { pass, store } = await agingStore(t);
  const writer = await store.writer();
  pass(POLICY.buildMs + 1_000);
  const digest = `sha256:${'7'.repeat(64)}` as ImageDigest;
  await t.rejects(writer.putManifest(digest, key.id, Buffer.from('x')), {
    code: 'TIMEOUT',
    message: /run it again/,
  });
  await t.rejects(writer.removeReference('x'), { code: 'TIMEOUT' });
});

t.test(
  'a build that a rotation overtakes has its name in the new root, with all that it means',
  async (t) => {
    const { dir, open, store } = await agingStore(t);
    const image = await putDisk(store, key, 'first', diskOf());
    const writer = await store.writer();
    await rotate((await open()).parts);
    await (await (await open()).writer()).removeReference('first');
    await writer.putReference('second', image.digest);
    t.equal((await (await open()).getReference('second'))?.digest, image.digest);
    t.ok(filesIn(dir, 'roots/2/references').includes('second%3Alatest.json'));
    t.equal(filesIn(dir, 'roots/2/chunks').length, 4);
  },
);

for (const [what, work] of Object.entries({ rotate, sweep, purge }) as [
  string,
  (parts: RootStore['parts']) => Promise<unknown>,
][]) {
  t.test(`a ${what} that is killed at any request loses nothing, and is finished by the next`, async (t) => {
    const { dir, open, pass, store } = await agingStore(t);
    const kept = await putDisk(store, key, 'kept', diskOf());
    const gone = await putDisk(store, key, 'gone', diskOf());
    await (await store.writer()).removeReference('gone');
    pass(POLICY.graceMs + 1_000);
    if (what === 'purge') {
      await sweep(store.parts);
      pass(RETENTION_MS);
    }
    let killed = 0;
    // Most requests of a sweep are listings of folders, which are all alike.
    const step = what === 'sweep' ? 17 : 3;
    for (let askedMax = 2; ; askedMax += step) {
      const dying = await open(askedMax).catch(() => undefined);
      const ended =
        dying &&
        (await work(dying.parts).then(
          () => true,
          (error) => error,
        ));
      if (!(await isWhole(await open(), kept))) t.fail(`killed at request ${askedMax}`);
      t.match(
        (await (await open()).listReferences()).map(({ name }) => name),
        ['kept:latest'],
      );
      if (ended === true) break;
      killed++;
    }
    t.ok(killed >= 5, `killed ${killed} times`);
    const left = { rotate: 'roots/2/chunks', sweep: 'roots/1/chunks', purge: 'roots/1/chunks' }[what]!;
    t.equal(filesIn(dir, left).length, 4);
    const last = await open();
    t.equal(await isWhole(last, gone), what !== 'purge', 'what is put aside can be read');
    // Closing it writes down that it has read.
    await last.close();
  });
}
