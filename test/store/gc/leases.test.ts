/**
 * Images that hosts have attached are kept, wherever they lie and whatever becomes of their names; and nobody can block
 * a store with leases.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import type { ImageDigest } from '../../../src/format/image-digest.ts';
import { TenantKey } from '../../../src/format/keys.ts';
import { sealManifest } from '../../../src/format/manifest-seal.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { gcStatus } from '../../../src/store/gc/status.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import type { Image } from '../../../src/store/image.ts';
import { openRemote } from '../../../src/store/objects/remote.ts';
import { chunkKey, leaseKey, readKey } from '../../../src/store/roots/layout.ts';
import { References } from '../../../src/store/roots/references.ts';
import { RootStore } from '../../../src/store/roots/root-store.ts';
import { sampleEntries, sampleParts } from '../../format/samples.ts';
import { AGING_POLICY, agingStore, diskOf, isWholeFor, RETENTION_MS } from '../../support/aging-store.ts';
import { HookedObjects } from '../../support/hooked-objects.ts';
import { MapObjects } from '../../support/map-objects.ts';
import { type Key, RGW_TOOLS, Rgw } from '../../support/rgw.ts';
import { putDisk } from '../../support/stored-disk.ts';
import { skipWithout } from '../../support/tools.ts';

const key = TenantKey.generate();
/** Allows for the time that a loaded machine takes for a test's operations. */
const SLACK_MS = 20 * 60 * 1000;

/** A store with an image that has lost its name, and the lease of a host. */
async function newStore(t: Test) {
  const place = await agingStore(t);
  const { store } = place;
  const image = await putDisk(store, key, 'app', diskOf());
  await (await store.writer()).removeReference('app');
  const renew = () => store.parts.objects.put(leaseKey(image.digest, 'host-1'), Buffer.alloc(0));
  /** Uses a new store object, which does not know yet where things are; its reads are not recorded. */
  const isWhole = async (of: Pick<Image, 'digest' | 'manifest'> = image) => {
    const reader = await place.open();
    const { put } = reader.parts.objects;
    reader.parts.objects.put = async () => undefined;
    const whole = await isWholeFor(key, reader, of);
    reader.parts.objects.put = put;
    await reader.close();
    return whole;
  };
  return { ...place, image, renew, isWhole };
}

t.test('an image that stays attached outlives every period, and goes when its lease is over', async (t) => {
  const { store, pass, renew, isWhole } = await newStore(t);
  for (let period = 1; period <= 4; period++) {
    await renew();
    pass(AGING_POLICY.retentionMs - SLACK_MS);
    t.match(
      await sweep(store.parts),
      { sweptChunks: 0, sweptManifests: 0, liveImages: 1 },
      `period ${period}`,
    );
    t.match(await purge(store.parts), { purged: [], forgottenObjects: 0 });
  }
  t.ok(await isWhole());
  pass(AGING_POLICY.retentionMs + 1_000);
  const { trash } = await sweep(store.parts);
  t.ok(await isWhole(), 'it is put aside first, as whatever has lost its name');
  pass(RETENTION_MS);
  t.match(await purge(store.parts), { purged: [trash], forgottenObjects: 1 });
  t.notOk(await isWhole());
});

t.test('what is leased when it was put aside already comes back', async (t) => {
  const { store, pass, renew, isWhole } = await newStore(t);
  pass(AGING_POLICY.graceMs + 1_000);
  const first = await sweep(store.parts);
  t.match(first, { sweptChunks: 4, sweptManifests: 1 });
  pass(RETENTION_MS);
  await renew();
  t.match(await purge(store.parts), { purged: [first.trash], restoredObjects: 5 });
  t.ok(await isWhole());
  pass(AGING_POLICY.graceMs + 1_000);
  const second = await sweep(store.parts);
  t.match(second, { sweptChunks: 4 }, 'the lease is over by now');
  await renew();
  t.match(await sweep(store.parts), { restoredObjects: 5 }, 'a sweep brings it back as well');
});

t.test('what is leased while a purge deletes is kept', async (t) => {
  const { store, pass, renew, isWhole } = await newStore(t);
  pass(AGING_POLICY.graceMs + 1_000);
  await sweep(store.parts);
  pass(RETENTION_MS);
  let isLeased = false;
  const objects = new HookedObjects(store.parts.objects, async (request, [at]) => {
    if (request !== 'put' || !at!.endsWith('/deleting') || isLeased) return;
    isLeased = true;
    await renew();
  });
  const report = await purge({ ...store.parts, objects, references: new References(objects) });
  t.ok(isLeased);
  t.match(report, { restoredObjects: 5 });
  t.ok(await isWhole());
});

t.test('a rotation takes along what is attached, and the old root goes without it', async (t) => {
  const { store, pass, renew, isWhole, open } = await newStore(t);
  await renew();
  t.match(await rotate(store.parts, { dryRun: true }), { names: 0, leasedImages: 1 });
  t.match(await rotate(store.parts), { names: 0, leasedImages: 1, movedChunks: 4 });
  pass(RETENTION_MS);
  await renew();
  t.match(await purge(store.parts), { purged: ['roots/1'], carriedImages: 0 });
  t.ok(await isWhole());
  const drive = await open();
  await drive.parts.views.newerThan(0);
  t.match(drive.stats().roots, { active: 1, retired: 0 });
});

t.test('what is attached in a retired root leaves it before it goes', async (t) => {
  const { store, pass, renew, isWhole } = await newStore(t);
  await rotate(store.parts);
  pass(RETENTION_MS);
  await renew();
  t.match(await purge(store.parts, { dryRun: true }), { purged: ['roots/1'], carriedImages: 1 });
  t.match(await purge(store.parts), { purged: ['roots/1'], carriedImages: 1 });
  t.ok(await isWhole());
  pass(AGING_POLICY.graceMs - SLACK_MS);
  await renew();
  t.match(await sweep(store.parts), { sweptChunks: 0 });
  t.ok(await isWhole());
});

t.test('a root that an attached image cannot leave stays, and says for whom', async (t) => {
  const { dir, store, image, pass, renew } = await newStore(t);
  await rotate(store.parts);
  pass(RETENTION_MS);
  await renew();
  rmSync(join(dir, chunkKey('roots/1', image.manifest.ref(2).id)));
  t.match(await purge(store.parts), {
    purged: [],
    held: [
      { area: 'roots/1', why: /attached on host-1, is damaged and cannot leave it: .*nowhere in the store/ },
    ],
  });
  pass(AGING_POLICY.retentionMs);
  t.match(await purge(store.parts), { purged: ['roots/1'] }, 'until the lease is over');
});

/** A store in memory, created a hundred days ago, with a named image and an attached one, each with chunks. */
async function bigStore() {
  const objects = new MapObjects();
  const policy = { graceMs: 23_000, retentionMs: 40_000_000, buildMs: 20_000, viewMs: 300, settleMs: 5 };
  const store = await RootStore.open(objects, { create: true, policy });
  const writer = await store.writer();
  const put = async (writerVersion: string, indices: readonly number[]) => {
    const entries = sampleEntries(indices);
    for (const { ref } of entries) await writer.putChunk(ref.id, Buffer.alloc(ref.sealedBytes));
    const { digest, bytes } = sealManifest(sampleParts(key, { writerVersion, entries }));
    await writer.putManifest(digest, key.id, bytes);
    return digest;
  };
  const named = await put('named/1', [1, 2]);
  await writer.putReference('named', named);
  const attached = await put('attached/1', [3, 4]);
  const garbage = await put('garbage/1', [5, 6]);
  for (const object of objects.objects.values()) object.modifiedMs -= 100 * 24 * 60 * 60 * 1000;
  return { objects, store, named, attached, garbage };
}

t.test(
  'a hundred thousand hosts, each with its lease and its reads, are no burden to anybody else',
  { timeout: 300_000 },
  async (t) => {
    const { objects, store, named, attached } = await bigStore();
    const HOSTS = 100_000;
    const lease = { bytes: Buffer.alloc(0), modifiedMs: Date.now() };
    for (let n = 0; n < HOSTS; n++) {
      const image = n === 77_777 ? attached : numbered(n % 20);
      objects.objects.set(leaseKey(image, `host-${n}`), lease);
      objects.objects.set(leaseKey(named, `host-${n}`), lease);
      objects.objects.set(readKey('trash/1-a', `host-${n}`), lease);
    }
    const { asked } = objects;
    asked.pages = 0;
    const { active } = await store.parts.views.newerThan(0);
    t.equal(active.path, 'roots/1');
    t.equal(asked.pages, 1, 'what every daemon lists twice a minute does not grow with them');
    t.match(await sweep(store.parts), { sweptChunks: 2, liveImages: 2, keptChunks: 4 });
    t.match(await gcStatus(store.parts), { leases: { current: 2 * HOSTS, over: 0, strange: 0 } });
    for (const [at, object] of objects.objects)
      if (at.startsWith('state/trash/')) object.modifiedMs -= 80_000_000;
    asked.get = 0;
    asked.pages = 0;
    t.match(await purge(store.parts), { purged: [String], restoredObjects: 0, forgottenObjects: 0 });
    t.ok(asked.get < 100, `${asked.get} objects read`);
    t.ok(asked.pages < 10 * (HOSTS / 1000), `${asked.pages} pages listed`);
  },
);

t.test(
  'what daemons may write can be anything, and unreadable, and stops nothing: it goes in time',
  async (t) => {
    const { objects, store, attached } = await bigStore();
    const honest = leaseKey(attached, 'honest');
    const [folder] = honest.split('/honest');
    const hostile = [
      honest,
      leaseKey(attached, 'hostile'),
      leaseKey(numbered(1), 'hostile'),
      'hosts/leases/host',
      'hosts/leases/below/it',
      `${folder}/below/it`,
      `${folder}/${'x'.repeat(200)}`,
      `hosts/leases/${'x'.repeat(64)}/host`,
      'hosts/other',
      'hosts/reads/roots/1/x/y',
      'hosts/reads/roots/77/host',
      'hosts/reads/state/opened',
    ];
    for (let n = 0; n < 20_000; n++)
      hostile.push(`hosts/leases/litter/${n}`, leaseKey(numbered(n), 'litter'));
    await objects.put(honest, Buffer.alloc(0));
    for (const at of hostile)
      objects.objects.set(at, { bytes: Buffer.from('anything'), modifiedMs: Date.now() });
    // As in a bucket where objects belong to the account that put them, or are encrypted with its key.
    const refusing = new HookedObjects(objects, (request, [at]) => {
      if (['get', 'head', 'copy'].includes(request) && at!.startsWith('hosts/'))
        throw new LazydiskError('UNAVAILABLE', `access denied to ${at}`, { retryable: false });
    });
    const { parts } = await RootStore.open(refusing);
    t.match(await sweep(parts), { sweptChunks: 2, liveImages: 2 });
    for (const [at, object] of objects.objects)
      if (at.startsWith('state/trash/')) object.modifiedMs -= 80_000_000;
    t.match(await purge(parts), { purged: [String], forgottenObjects: 0 });
    t.match(await gcStatus(parts), { leases: { current: 20_003, over: 0, strange: 20_005 } });
    for (const [at, object] of objects.objects) if (at.startsWith('hosts/')) object.modifiedMs -= 80_000_000;
    await objects.put(honest, Buffer.alloc(0));
    t.match(await purge(parts), { forgottenObjects: hostile.length - 1 });
    t.same(
      [...objects.objects.keys()].filter((at) => at.startsWith('hosts/')),
      [honest],
    );
    t.ok(await store.getManifest(attached, key.id));
  },
);

t.test('nobody takes a lease away by writing what he likes over it and beside it', async (t) => {
  const { store, image, pass, renew, isWhole } = await newStore(t);
  await renew();
  pass(AGING_POLICY.graceMs - SLACK_MS);
  const { objects } = store.parts;
  await objects.put(leaseKey(image.digest, 'host-1'), Buffer.from('{"images":[]}'));
  await objects.put(leaseKey(numbered(1), 'host-1'), Buffer.alloc(0));
  t.match(await sweep(store.parts), { sweptChunks: 0 });
  t.ok(await isWhole());
});

t.test('what the owner of a bucket may not read stops nothing either, on a real RGW', async (t) => {
  if (skipWithout(t, ...RGW_TOOLS)) return;
  const rgw = await Rgw.start();
  t.teardown(() => rgw.close());
  await rgw.createBucket('images');
  const url = `s3://images/prod?endpoint=${rgw.endpoint}`;
  const opened = async (credentials: Key) => {
    rgw.useInThisProcess(credentials);
    const objects = openRemote(url, 's3', undefined);
    t.teardown(() => objects.close());
    // The first request looks up the credentials.
    await objects.nowMs();
    return objects;
  };
  const owner = await opened(rgw.key);
  // RGW reports whole seconds.
  const policy = { viewMs: 100, settleMs: 100, buildMs: 1_000, graceMs: 2_000, retentionMs: 600_000 };
  const store = await RootStore.open(owner, { create: true, policy });
  const image = await putDisk(store, key, 'app', diskOf());
  await (await store.writer()).removeReference('app');
  const hostKey = await rgw.addStranger();
  await rgw.allowDaemon('images', 'prod', hostKey);
  const host = await opened(hostKey);
  const lease = leaseKey(image.digest, 'honest');
  const others = ['hosts/leases/host', leaseKey(numbered(1), 'hostile'), 'hosts/reads/roots/7/hostile'];
  for (const at of [lease, ...others]) await host.put(at, Buffer.from('anything'));
  await t.rejects(owner.get(lease, 100), { message: /access denied/ });
  await sleep(policy.graceMs + 1_500);
  t.match(await sweep(store.parts), { sweptChunks: 0, sweptManifests: 0, liveImages: 1 });
  t.match(await purge(store.parts), { forgottenObjects: 0 });
  await store.parts.objects.delete([lease]);
  const { trash } = await sweep(store.parts);
  t.ok(trash, 'without a lease it would have gone');
  // A term that is over already for what was just written.
  const over = { ...store.parts, policy: { ...policy, retentionMs: 1_000 } };
  await sleep(2_500);
  t.match(await purge(over), { purged: [trash], forgottenObjects: others.length });
});

function numbered(n: number): ImageDigest {
  return `sha256:${n.toString(16).padStart(64, '0')}`;
}
