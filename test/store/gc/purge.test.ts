/** What a purge does with which area and when, and what `gc status` says of it. */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { TenantKey } from '../../../src/format/keys.ts';
import { sealManifest } from '../../../src/format/manifest-seal.ts';
import { lastEntries } from '../../../src/store/gc/journal.ts';
import { purge, purgePlan } from '../../../src/store/gc/purge.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { gcStatus } from '../../../src/store/gc/status.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { type AreaMarker, type AreaPath, JOURNAL_PREFIX, stateKey } from '../../../src/store/layout.ts';
import { DirObjects } from '../../../src/store/objects/dir-objects.ts';
import { DEFAULT_POLICY } from '../../../src/store/policy.ts';
import { RootStore } from '../../../src/store/root-store.ts';
import { viewOf } from '../../../src/store/view.ts';
import { sampleParts } from '../../format/samples.ts';
import { age } from '../../support/dir-store.ts';

const DAY_MS = 24 * 60 * 60 * 1000;
const NOW_MS = 1000 * DAY_MS;

/** A view of markers of so many days ago. */
function view(...markers: readonly [AreaPath, AreaMarker, number][]) {
  return viewOf(
    markers.map(([area, marker, days]) => ({
      key: stateKey(area, marker),
      sizeBytes: 0,
      modifiedMs: NOW_MS - days * DAY_MS,
    })),
  );
}

/** Area → why it is held, or 'goes'. */
function plan(...markers: readonly [AreaPath, AreaMarker, number][]): Record<string, string> {
  const steps = purgePlan(view(...markers), DEFAULT_POLICY, NOW_MS);
  return Object.fromEntries(steps.map(({ area, held }) => [area.path, held?.why ?? 'goes']));
}

t.test('trash stays for its retention, from its end or the last read', async (t) => {
  const root: [AreaPath, AreaMarker, number] = ['roots/1', 'opened', 100];
  const cases: [string, [AreaMarker, number][]][] = [
    ['goes', [['opened', 8], ['closed', 7.5]]],
    ['kept for its retention', [['opened', 8], ['closed', 6]]],
    ['its sweep has not ended: goes with roots/1, after `gc rotate`', [['opened', 85]]],
    ['goes', [['opened', 80], ['closed', 79], ['read-host', 8]]],
    ['read by host at 1972-09-26T00:00:00.000Z', [['opened', 80], ['closed', 79], ['read-host', 1]]],
    ['goes', [['opened', 1], ['deleting', 0]]],
  ]; // biome-ignore format: a table
  for (const [expected, markers] of cases) {
    const trash = markers.map(([marker, days]): [AreaPath, AreaMarker, number] => [
      'trash/1-a',
      marker,
      days,
    ]);
    t.same(plan(root, ...trash), { 'trash/1-a': expected }, JSON.stringify(markers));
  }
});

t.test('roots go in the order of their age, each with its trash', async (t) => {
  const markers = (read: number): [AreaPath, AreaMarker, number][] => [
    ['roots/1', 'opened', 100], ['roots/1', 'retired', 50], ['roots/1', 'read-h', read],
    ['trash/1-a', 'opened', 60], ['trash/1-a', 'closed', 60],
    ['roots/2', 'opened', 51], ['roots/2', 'retired', 30],
    ['roots/3', 'opened', 31],
    ['trash/3-b', 'opened', 20], ['trash/3-b', 'closed', 20],
  ]; // biome-ignore format: a table
  t.same(plan(...markers(40)), {
    'roots/1': 'goes',
    'roots/2': 'goes',
    'trash/1-a': 'goes',
    'trash/3-b': 'goes',
  });
  t.same(plan(...markers(2)), {
    'roots/1': 'read by h at 1972-09-25T00:00:00.000Z',
    'roots/2': 'goes after roots/1',
    'trash/1-a': 'goes with roots/1',
    'trash/3-b': 'goes',
  });
});

t.test('while images move, the trash of both roots stays; that of a root long gone does not', async (t) => {
  t.same(
    plan(
      ['roots/1', 'opened', 100],
      ['roots/2', 'opened', 1],
      ['trash/1-a', 'opened', 90],
      ['trash/2-b', 'opened', 90],
      ['trash/1-c', 'deleting', 1],
    ),
    {
      'roots/1': 'images still move out of it',
      'trash/1-a': 'goes with roots/1',
      'trash/2-b': 'a rotation is under way',
      'trash/1-c': 'a rotation is under way',
    },
  );
  t.same(plan(['roots/2', 'opened', 100], ['trash/1-a', 'opened', 90]), { 'trash/1-a': 'goes' });
});

/** A store that is not waited for long, with an image named `app`, and what makes everything in it a day old. */
async function newStore(t: Test) {
  const dir = join(t.testdir(), 'store');
  const policy = { graceMs: 23_000, retentionMs: 3_600_000, buildMs: 20_000, viewMs: 300, settleMs: 500 };
  const store = await RootStore.open(new DirObjects(dir), { create: true, policy });
  t.teardown(() => store.close());
  const key = TenantKey.generate();
  const { digest, bytes } = sealManifest(sampleParts(key, { entries: [] }));
  const writer = await store.writer();
  await writer.putManifest(digest, key.id, bytes);
  await writer.putReference('app', digest);
  const pass = (folder: string) => age(dir, folder, DAY_MS);
  return { dir, store, writer, key, digest, pass };
}

t.test('a root that goes takes its trash along, and the report says so', async (t) => {
  const { store, writer, digest, key, pass } = await newStore(t);
  const { digest: old, bytes } = sealManifest(sampleParts(key, { writerVersion: 'old/1', entries: [] }));
  await writer.putManifest(old, key.id, bytes);
  pass('roots');
  const { trash } = await sweep(store.parts);
  await rotate(store.parts);
  t.match((await purge(store.parts)).held, [{ area: 'roots/1' }, { area: trash, why: 'goes with roots/1' }]);
  pass('state/roots/1');
  const planned = await purge(store.parts, { dryRun: true });
  const report = await purge(store.parts);
  t.same(planned, report);
  t.match(report, { purged: ['roots/1', trash], held: [] });
  t.ok(report.deletedObjects >= 2);
  t.equal((await store.getReference('app'))?.digest, digest);
  t.match(
    (await gcStatus(store.parts)).areas.map(({ area, state }) => [area, state]),
    [['roots/2', 'active']],
  );
});

t.test('the status tells who reads what was put aside, what stays, and what was done', async (t) => {
  const { dir, store, writer, key, digest, pass } = await newStore(t);
  await writer.removeReference('app');
  pass('roots');
  pass('history');
  const { trash } = await sweep(store.parts);
  const before = await gcStatus(store.parts);
  t.match(before, {
    alarm: false,
    areas: [
      { area: 'roots/1', state: 'active', heldBecause: 'active', heldUntil: null },
      { area: trash, state: 'trash', heldBecause: 'kept for its retention', lastReadAt: null },
    ],
    journal: [{ command: 'sweep', state: 'done', details: { sweptManifests: 1 } }],
  });
  t.ok(await store.getManifest(digest, key.id), 'a drive reads it still');
  for (let tries = 0; !(await gcStatus(store.parts)).alarm && tries < 50; tries++)
    await new Promise((resolve) => setTimeout(resolve, 5));
  const [, area] = (await gcStatus(store.parts)).areas;
  t.match(area, { area: trash, isRead: true, heldBecause: /^read by /, lastReadHost: String });
  // What is no entry hides no other.
  await new DirObjects(dir).put(`${JOURNAL_PREFIX}9.json`, Buffer.from('null'));
  t.match(await lastEntries(store.parts.objects, 5), [{ command: 'sweep' }]);
});
