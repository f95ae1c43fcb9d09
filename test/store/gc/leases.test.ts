/** What hosts have attached is kept, wherever it lies and whatever becomes of its name; and nobody stops a store by it. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { ImageDigest } from '../../../src/format/image-digest.ts';
import { TenantKey } from '../../../src/format/keys.ts';
import { sealManifest } from '../../../src/format/manifest-seal.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { gcStatus } from '../../../src/store/gc/status.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import type { Image } from '../../../src/store/image.ts';
import { encodeLease } from '../../../src/store/leases.ts';
import { chunkKey, leaseKey, readKey } from '../../../src/store/roots/layout.ts';
import { References } from '../../../src/store/roots/references.ts';
import { RootStore } from '../../../src/store/roots/root-store.ts';
import { sampleEntries, sampleParts } from '../../format/samples.ts';
import { AGING_POLICY, agingStore, diskOf, isWholeFor, RETENTION_MS } from '../../support/aging-store.ts';
import { HookedObjects } from '../../support/hooked-objects.ts';
import { MapObjects } from '../../support/map-objects.ts';
import { putDisk } from '../../support/stored-disk.ts';

const key = TenantKey.generate();
/** For what a loaded machine takes to do what a test asks. */
const SLACK_MS = 20 * 60 * 1000;

/** A store with an image that has lost its name, and the lease of a host. */
async function newStore(t: Test) {
  const place = await agingStore(t);
  const { store } = place;
  const image = await putDisk(store, key, 'app', diskOf());
  await (await store.writer()).removeReference('app');
  const renew = (images: readonly ImageDigest[] = [image.digest]) =>
    store.parts.objects.put(leaseKey('host-1'), encodeLease(images));
  /** By a store of its own, that does not know yet where things are; reads do not count as such for it. */
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

/** A store in memory that was made a hundred days ago, with a named image and an attached one, both of chunks. */
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
    const { objects, store, attached } = await bigStore();
    const HOSTS = 100_000;
    for (let n = 0; n < HOSTS; n++) {
      const images =
        n === 77_777 ? [attached] : [`sha256:${n.toString(16).padStart(64, '0')}` as ImageDigest];
      const modifiedMs = Date.now();
      objects.objects.set(leaseKey(`host-${n}`), { bytes: encodeLease(images), modifiedMs });
      objects.objects.set(readKey('trash/1-a', `host-${n}`), { bytes: Buffer.alloc(0), modifiedMs });
    }
    const { asked } = objects;
    asked.pages = 0;
    const { active } = await store.parts.views.newerThan(0);
    t.equal(active.path, 'roots/1');
    t.equal(asked.pages, 1, 'what every daemon lists twice a minute does not grow with them');
    t.match(await sweep(store.parts), { sweptChunks: 2, liveImages: 2, keptChunks: 4 });
    t.match(await gcStatus(store.parts), { leases: { hosts: HOSTS, over: 0, strange: 0 } });
    for (const [at, object] of objects.objects)
      if (at.startsWith('state/trash/')) object.modifiedMs -= 80_000_000;
    asked.get = 0;
    asked.pages = 0;
    t.match(await purge(store.parts), { purged: [String], restoredObjects: 0, forgottenObjects: 0 });
    t.ok(asked.get < 2.5 * HOSTS, `${asked.get} leases read`);
    t.ok(asked.pages < 10 * (HOSTS / 1000), `${asked.pages} pages listed`);
  },
);

t.test(
  'what daemons may write can be anything, and stops nothing: it is told of, and goes in time',
  async (t) => {
    const { objects, store, attached } = await bigStore();
    const lease = encodeLease([attached]);
    await objects.put(leaseKey('honest'), lease);
    const many = Array.from(
      { length: 16_385 },
      (_, n) => `sha256:${n.toString(16).padStart(64, '0')}` as ImageDigest,
    );
    const strange: Record<string, Buffer> = {
      'hosts/leases/empty': Buffer.alloc(0),
      'hosts/leases/huge': Buffer.alloc(3 * 1024 * 1024, ' '),
      'hosts/leases/null': Buffer.from('null'),
      'hosts/leases/deep': Buffer.from('['.repeat(100_000)),
      'hosts/leases/many': encodeLease(many),
      'hosts/leases/later': Buffer.from(JSON.stringify({ version: 2, images: [] })),
      'hosts/leases/wrong': Buffer.from(JSON.stringify({ version: 1, images: ['app:1'] })),
      'hosts/leases/below/it': lease,
      [`hosts/leases/${'x'.repeat(200)}`]: lease,
    };
    const elsewhere = [
      'hosts/other',
      'hosts/reads/roots/1/x/y',
      'hosts/reads/roots/77/host',
      'hosts/reads/state/opened',
    ];
    for (const [at, bytes] of Object.entries(strange)) await objects.put(at, bytes);
    for (const at of elsewhere) await objects.put(at, Buffer.alloc(0));
    for (let n = 0; n < 20_000; n++)
      objects.objects.set(`hosts/leases/litter/${n}`, { bytes: Buffer.alloc(0), modifiedMs: Date.now() });
    t.match(await sweep(store.parts), { sweptChunks: 2, liveImages: 2 });
    for (const [at, object] of objects.objects)
      if (at.startsWith('state/trash/')) object.modifiedMs -= 80_000_000;
    const report = await purge(store.parts);
    t.match(report, { purged: [String], forgottenObjects: 0 });
    t.equal(report.strangeLeases?.strange, 20_000 + Object.keys(strange).length);
    t.equal(report.strangeLeases?.examples.length, 5);
    for (const [at, object] of objects.objects) if (at.startsWith('hosts/')) object.modifiedMs -= 80_000_000;
    await objects.put(leaseKey('honest'), lease);
    t.match(await purge(store.parts), {
      forgottenObjects: 20_000 + Object.keys(strange).length + elsewhere.length,
    });
    t.same(
      [...objects.objects.keys()].filter((at) => at.startsWith('hosts/')),
      [leaseKey('honest')],
    );
    t.ok(await store.getManifest(attached, key.id));
  },
);
