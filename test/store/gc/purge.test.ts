/** What a purge does with which area and when, and what `gc status` reports of it. */
import { hash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import { TenantKey } from '../../../src/format/keys.ts';
import { sealManifest } from '../../../src/format/manifest-seal.ts';
import { lastEntries } from '../../../src/store/gc/journal.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { purgePlan } from '../../../src/store/gc/purge-plan.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { gcStatus } from '../../../src/store/gc/status.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { DirObjects } from '../../../src/store/objects/dir-objects.ts';
import type { ObjectInfo } from '../../../src/store/objects/object-store.ts';
import { type LastRead, recordRead } from '../../../src/store/roots/host-reads.ts';
import {
  type AreaMarker,
  type AreaPath,
  chunkKey,
  JOURNAL_PREFIX,
  manifestKey,
  stateKey,
} from '../../../src/store/roots/layout.ts';
import type { StoreParts } from '../../../src/store/roots/parts.ts';
import { DEFAULT_POLICY } from '../../../src/store/roots/policy.ts';
import { References } from '../../../src/store/roots/references.ts';
import { RootStore } from '../../../src/store/roots/root-store.ts';
import { viewOf } from '../../../src/store/roots/view.ts';
import { sampleEntries, sampleParts } from '../../format/samples.ts';
import { age } from '../../support/dir-store.ts';
import { HookedObjects, type RequestHook } from '../../support/hooked-objects.ts';

const DAY_MS = 24 * 60 * 60 * 1000;
const NOW_MS = 1000 * DAY_MS;

/** A marker of an area, or `read-HOST` for a read from it, and its age in days. */
type Past = readonly [AreaPath, AreaMarker | `read-${string}`, number];

/** Returns area → why it is held, or 'goes'. */
function plan(...past: readonly Past[]): Record<string, string> {
  const reads = new Map<AreaPath, LastRead>();
  const markers: ObjectInfo[] = [];
  for (const [area, marker, days] of past) {
    const modifiedMs = NOW_MS - days * DAY_MS;
    if (marker.startsWith('read-')) reads.set(area, { atMs: modifiedMs, host: marker.slice('read-'.length) });
    else markers.push({ key: stateKey(area, marker as AreaMarker), sizeBytes: 0, modifiedMs });
  }
  const steps = purgePlan(viewOf(markers), reads, DEFAULT_POLICY, NOW_MS);
  return Object.fromEntries(steps.map(({ area, held }) => [area.path, held?.why ?? 'goes']));
}

t.test('trash stays for its retention, from its end or the last read', async (t) => {
  const root: Past = ['roots/1', 'opened', 100];
  const cases: [string, [Past[1], number][]][] = [
    ['goes', [['opened', 8], ['closed', 7.5]]],
    ['kept for its retention', [['opened', 8], ['closed', 6]]],
    ['its sweep has not ended: goes with roots/1, after `gc rotate`', [['opened', 85]]],
    ['goes', [['opened', 80], ['closed', 79], ['read-host', 8]]],
    ['read by host at 1972-09-26T00:00:00.000Z', [['opened', 80], ['closed', 79], ['read-host', 1]]],
    ['goes', [['opened', 1], ['deleting', 0]]],
    ['goes', [['opened', 80], ['deleting', 20], ['read-host', 8]]],
    ['read by host at 1972-09-26T00:00:00.000Z', [['opened', 80], ['deleting', 20], ['read-host', 1]]],
  ]; // biome-ignore format: a table
  for (const [expected, markers] of cases) {
    const trash = markers.map(([marker, days]): Past => ['trash/1-a', marker, days]);
    t.same(plan(root, ...trash), { 'trash/1-a': expected }, JSON.stringify(markers));
  }
});

t.test('roots go in the order of their age, each with its trash', async (t) => {
  const markers = (read: number): Past[] => [
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

t.test('a read from the trash of a retired root keeps the root', async (t) => {
  const markers = (read: number): Past[] => [
    ['roots/1', 'opened', 100], ['roots/1', 'retired', 50], ['roots/2', 'opened', 51],
    ['trash/1-a', 'opened', 60], ['trash/1-a', 'closed', 60], ['trash/1-a', 'read-h', read],
  ]; // biome-ignore format: a table
  t.same(plan(...markers(8)), { 'roots/1': 'goes', 'trash/1-a': 'goes' });
  t.same(plan(...markers(2)), {
    'roots/1': 'read by h at 1972-09-25T00:00:00.000Z',
    'trash/1-a': 'goes with roots/1',
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

/** A store with short periods and an image named `app`; `pass` makes everything in a folder a day old. */
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
  /** The store as seen by a process whose requests call `before`. */
  const hooked = (before: RequestHook): StoreParts => {
    const objects = new HookedObjects(store.parts.objects, before);
    return { ...store.parts, objects, references: new References(objects) };
  };
  /** An image without a name that a sweep has put aside, on its own. */
  const putAside = async (writerVersion: string) => {
    const { digest: aside, bytes: manifest } = sealManifest(sampleParts(key, { writerVersion, entries: [] }));
    await writer.putManifest(aside, key.id, manifest);
    pass('roots');
    const { trash } = await sweep(store.parts);
    return { trash: trash as AreaPath, digest: aside };
  };
  return { dir, store, writer, key, digest, pass, hooked, putAside };
}

t.test('a read during a purge keeps what it has not come to', async (t) => {
  const { dir, store, key, pass, hooked, putAside } = await newStore(t);
  const [first, second] = [await putAside('first/1'), await putAside('second/1')];
  pass('state/trash');
  const reader = await RootStore.open(new DirObjects(dir));
  let deleted = '';
  const purging = hooked(async (request, [at]) => {
    if (request !== 'delete' || !at!.startsWith('trash/') || deleted !== '') return;
    deleted = at!.startsWith(`${first.trash}/`) ? first.trash : second.trash;
    const other = deleted === first.trash ? second : first;
    t.ok(await reader.getManifest(other.digest, key.id));
    // Closing it writes the record of the read.
    await reader.close();
  });
  const report = await purge(purging);
  const kept = deleted === first.trash ? second : first;
  t.match(report, { purged: [deleted], held: [{ area: kept.trash, isRead: true, why: /^read by / }] });
  t.ok(await store.getManifest(kept.digest, key.id));
});

t.test('a read ends a deletion, and the next purge goes on when its time has come', async (t) => {
  const { dir, store, pass, hooked } = await newStore(t);
  const trash: AreaPath = 'trash/1-a';
  // One more than are deleted together.
  const ids = Array.from({ length: 1001 }, (_, n) => hash('sha256', `chunk ${n}`) as ChunkId);
  const files = ids.map((id) => join(dir, chunkKey(trash, id)));
  for (const marker of ['opened', 'closed'] as const) files.push(join(dir, stateKey(trash, marker)));
  for (const file of files) {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, '');
  }
  pass('state/trash');
  const purging = hooked(async (request, [at]) => {
    if (request === 'delete' && at!.startsWith('trash/')) await recordRead(store.parts.objects, trash);
  });
  t.match(await purge(purging), { purged: [], deletedObjects: 1000, held: [{ area: trash, isRead: true }] });
  t.equal(files.filter(existsSync).length, 1 + 2);
  t.match(await purge(store.parts), { purged: [], deletedObjects: 0, held: [{ area: trash, isRead: true }] });
  pass('hosts');
  t.match(await purge(store.parts), { purged: [trash], deletedObjects: 1 });
  t.equal(files.filter(existsSync).length, 0);
});

/**
 * An image without a name in the root, whose chunks a sweep has put aside: a build adopted them before the sweep knew
 * of the image.
 */
async function withSweptChunks(t: Test) {
  const parts = await newStore(t);
  const { dir, store, writer, key, pass } = parts;
  const { digest, bytes } = sealManifest(sampleParts(key, { writerVersion: 'unnamed/1' }));
  const entries = sampleEntries([0, 1, 7, 2047]);
  for (const { ref } of entries) await writer.putChunk(ref.id, Buffer.alloc(ref.sealedBytes));
  pass('roots');
  const { trash } = await sweep(store.parts);
  await writer.putManifest(digest, key.id, bytes);
  pass('state/trash');
  const manifestFile = join(dir, manifestKey('roots/1', digest, key.id));
  /** How many chunks exist. Uses head because a read would keep them. */
  const chunks = async () => {
    const { objects } = store.parts;
    const found = entries.map(async ({ ref }) =>
      Promise.all(['roots/1', trash].map((area) => objects.head(chunkKey(area as AreaPath, ref.id)))),
    );
    return (await Promise.all(found)).filter((heads) => heads.some(Boolean)).length;
  };
  return { ...parts, image: digest, trash, manifestFile, chunks };
}

t.test('a store that does not answer is not taken for one that has nothing', async (t) => {
  const { store, image, trash, chunks, hooked } = await withSweptChunks(t);
  const away = hooked((request, [at]) => {
    if (request === 'get' && at!.includes(image.slice('sha256:'.length)))
      throw new LazydiskError('UNAVAILABLE', '503 SlowDown');
  });
  await t.rejects(sweep(away), { code: 'UNAVAILABLE', message: /503/ });
  await t.rejects(purge(away), { code: 'UNAVAILABLE', message: /503/ });
  t.equal(await chunks(), 4);
  t.match(await purge(store.parts), { purged: [trash], restoredObjects: 4 });
  t.equal(await chunks(), 4);
});

t.test('as long as an image with a corrupt manifest counts, any chunk may be its own', async (t) => {
  const { dir, store, writer, image, trash, manifestFile, chunks, pass } = await withSweptChunks(t);
  const other = sampleEntries([5])[0]!.ref;
  await writer.putChunk(other.id, Buffer.alloc(other.sealedBytes));
  age(dir, 'roots/1/chunks', DAY_MS);
  const good = readFileSync(manifestFile);
  const corrupt = Buffer.from(good);
  corrupt[210]! ^= 1;
  writeFileSync(manifestFile, corrupt);
  t.match(await sweep(store.parts), { sweptChunks: 0, unknownImages: 1, trash: null });
  t.match(await purge(store.parts), {
    purged: [],
    held: [{ area: trash, why: new RegExp(`${image} is corrupt`) }],
  });
  t.equal(await chunks(), 4);
  // It got no name within the grace period, so it goes and no longer blocks anything.
  pass('roots');
  t.match(await sweep(store.parts), { sweptChunks: 1, sweptManifests: 1, unknownImages: 0 });
  t.match(await purge(store.parts), { purged: [trash], restoredObjects: 0 });
});

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
  // A file that is not an entry does not hide the others.
  await new DirObjects(dir).put(`${JOURNAL_PREFIX}9.json`, Buffer.from('null'));
  t.match(await lastEntries(store.parts.objects, 5), [{ command: 'sweep' }]);
});
