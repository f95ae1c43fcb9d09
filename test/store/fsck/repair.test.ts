/**
 * What fsck repairs: everything that has a good copy somewhere, from any kind of source, and only with verified data.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { DiskCache } from '../../../src/chunk/disk/disk-cache.ts';
import { CAP_BYTES_MIN } from '../../../src/chunk/disk/layout.ts';
import { FleetTier } from '../../../src/chunk/fleet/fleet-tier.ts';
import { usingSources } from '../../../src/cli/fsck-sources.ts';
import { TenantKey } from '../../../src/format/keys.ts';
import { rewrapManifest } from '../../../src/format/manifest-rewrap.ts';
import { KeyRing } from '../../../src/keys/key-ring.ts';
import { type RepairSource, storeSource } from '../../../src/store/fsck/source.ts';
import { lastEntries } from '../../../src/store/gc/journal.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { copyTo, DAMAGES, damage, FsckStore, idsOf } from '../../support/fsck-store.ts';
import { Memcached } from '../../support/memcached.ts';
import { skipWithout } from '../../support/tools.ts';

const CONTENTS = ['one', 'two', '', 'three', 'four', 'five'];

async function newStore(t: Test, name = 'store', key?: TenantKey) {
  const place = await FsckStore.open(t, join(t.testdirName, name), key);
  const image = await place.put('app', CONTENTS);
  return { place, image, ids: idsOf(image) };
}

/** Damages the chunks in all ways; the spare chunk, which others are swapped for, stays intact. */
function damageAll(place: FsckStore, ids: ReturnType<typeof idsOf>): void {
  for (const [at, how] of DAMAGES.slice(0, 4).entries())
    damage(place.chunk(ids[at + 1]!), how, place.chunk(ids[0]!));
}

async function isMended(t: Test, place: FsckStore, sources: readonly RepairSource[], from: string) {
  const dry = await place.check({ repair: { sources, dryRun: true } });
  t.match(dry, { remaining: 4, repair: { dryRun: true, chunks: 4, bySource: { [from]: 4 } } });
  t.equal((await place.check()).remaining, 4, 'a dry run writes nothing');
  const report = await place.check({ repair: { sources } });
  const repair = { dryRun: false, chunks: 4, manifests: 0, bySource: { [from]: 4 } };
  t.match(report, { damagedChunks: 4, remaining: 0, repair });
  t.ok(report.damaged.every(({ copyIn, repaired }) => copyIn === from && repaired));
  t.match(await place.check(), { damagedChunks: 0, remaining: 0 });
}

t.test('from a second store', async (t) => {
  t.testdir();
  const { place, ids } = await newStore(t);
  const other = await newStore(t, 'other', place.key);
  damageAll(place, ids);
  await isMended(t, place, [storeSource(other.place.store)], other.place.store.url);
  const [entry] = await lastEntries(place.store.parts.objects, 1);
  t.match(entry, { command: 'fsck --repair', state: 'done', details: { damagedChunks: 4, remaining: 0 } });
});

t.test('from the disk cache of a daemon, stopped or running', async (t) => {
  t.testdir();
  for (const isRunning of [false, true]) {
    const { place, ids } = await newStore(t, `store-${isRunning}`);
    const dir = join(t.testdirName, `cache-${isRunning}`);
    const cache = await DiskCache.open({ dir, capBytes: CAP_BYTES_MIN });
    t.teardown(() => cache.close());
    await cache.recovered();
    for (const id of ids) await cache.put(id, readFileSync(place.chunk(id)));
    if (!isRunning) await cache.close();
    damageAll(place, ids);
    await usingSources({ cache: [dir] }, (sources) => isMended(t, place, sources, dir));
    if (!isRunning) continue;
    const loan = await cache.get(ids[1]!, readFileSync(place.chunk(ids[1]!)).length);
    t.ok(loan, 'and the daemon has noticed nothing');
    loan?.release();
  }
  await t.rejects(
    usingSources({ cache: [join(t.testdirName, 'none')] }, async () => {}),
    { code: 'NOT_FOUND' },
  );
  writeFileSync(join(t.testdirName, 'chunks'), 'something else');
  await t.rejects(
    usingSources({ cache: [t.testdirName] }, async () => {}),
    { code: 'NOT_FOUND' },
  );
});

t.test('from a cache fleet, one node of it dead', async (t) => {
  if (skipWithout(t, 'memcached')) return;
  t.testdir();
  const { place, ids } = await newStore(t);
  const nodes = await Memcached.cluster(5);
  t.teardown(() => Promise.all(nodes.map((node) => node.kill())));
  const tier = new FleetTier({
    code: { k: 2, m: 1 },
    nodes: nodes.map(({ address }) => address),
    node: { connectTimeoutMs: 2_000, inflightMax: 1024, queuedBytesMax: 64 << 20 },
    timeoutMs: 2_000,
    fillBytesMax: 64 << 20,
  });
  for (const id of ids) await tier.put(id, readFileSync(place.chunk(id)));
  await tier.close();
  await nodes[0]!.kill();
  damageAll(place, ids);
  const fleet = `memcached://${nodes.map(({ port }) => `127.0.0.1:${port}`).join(',')}?k=2&m=1`;
  await usingSources({ fleet }, (sources) => isMended(t, place, sources, fleet));
});

t.test('from the trash and from a retired root of the same store', async (t) => {
  t.testdir();
  const { place, ids } = await newStore(t);
  await place.openArea('trash/1-x');
  for (const id of ids) copyTo(place.chunk(id), place.chunk(id, 'trash/1-x'));
  damageAll(place, ids);
  await isMended(t, place, [], 'trash/1-x');

  const turned = await newStore(t, 'turned');
  await rotate(turned.place.store.parts);
  for (const id of ids.slice(1, 3))
    damage(turned.place.chunk(turned.ids[ids.indexOf(id)]!, 'roots/2'), 'flipped', '');
  rmSync(turned.place.chunk(turned.ids[0]!, 'roots/2'));
  const report = await turned.place.check({ repair: { sources: [] } });
  t.match(report, { damagedChunks: 3, remaining: 0, repair: { bySource: { 'roots/1': 3 } } });
  t.match(await turned.place.check(), { damagedChunks: 0 });
});

t.test('sources that lie or fail are passed over, and nothing of theirs is written', async (t) => {
  t.testdir();
  const { place, ids } = await newStore(t);
  const sound = readFileSync(place.chunk(ids[1]!));
  rmSync(place.chunk(ids[1]!));
  const flipped = Buffer.from(sound);
  flipped[7]! ^= 1;
  const liar = (name: string, bytes: Buffer): RepairSource => ({ name, get: async () => bytes });
  const broken: RepairSource = {
    name: 'broken',
    get: async () => {
      throw new Error('no route');
    },
  };
  const lies = [flipped, Buffer.alloc(0), sound.subarray(1), Buffer.concat([sound, sound])];
  const liars = lies.map((bytes, at) => liar(`liar ${at}`, bytes));
  const refused = await place.check({ repair: { sources: [...liars, broken] } });
  t.match(refused, {
    remaining: 1,
    repair: { chunks: 0, bySource: {}, sourceErrors: { broken: 'no route' } },
  });
  t.notOk(existsSync(place.chunk(ids[1]!)));
  const report = await place.check({ repair: { sources: [...liars, broken, liar('honest', sound)] } });
  t.match(report, { remaining: 0, repair: { chunks: 1, bySource: { honest: 1 } } });
  t.ok(readFileSync(place.chunk(ids[1]!)).equals(sound));
});

t.test('manifests: a lost image comes back with its chunks', async (t) => {
  t.testdir();
  const { place, image, ids } = await newStore(t);
  const other = await FsckStore.open(t, join(t.testdirName, 'other'), place.key);
  // A bit-for-bit copy of the image: two builds would differ in their sealed part.
  for (const id of ids) copyTo(place.chunk(id), other.chunk(id));
  copyTo(place.manifest(image), other.manifest(image));
  rmSync(place.manifest(image));
  for (const id of ids.slice(0, 2)) rmSync(place.chunk(id));
  const sources = [storeSource(other.store)];
  const dry = await place.check({ repair: { sources, dryRun: true } });
  t.match(dry, { problems: [{ kind: 'name', copyIn: other.store.url }], damagedChunks: 2, remaining: 3 });
  const report = await place.check({ repair: { sources } });
  t.match(report, {
    problems: [{ unproven: true }],
    remaining: 0,
    repair: { manifests: 1, unproven: 1, chunks: 2, bySource: { [other.store.url]: 3 } },
  });
  t.match(await place.check({ keys: KeyRing.of(place.key) }), { remaining: 0, openedManifests: 1 });
  writeFileSync(place.manifest(image), 'x');
  const keys = KeyRing.of(place.key);
  t.match(await place.check({ keys, repair: { sources } }), {
    remaining: 0,
    repair: { manifests: 1, unproven: 0 },
  });
});

t.test('a manifest is replaced only by one that its key has proven', async (t) => {
  t.testdir();
  const { place, image } = await newStore(t);
  const other = await FsckStore.open(t, join(t.testdirName, 'other'), place.key);
  const whole = readFileSync(place.manifest(image));
  const flippedAt = (at: number) => {
    const bytes = Buffer.from(whole);
    bytes[at]! ^= 1;
    return bytes;
  };
  // Our manifest is broken where anyone can see it, and has the last good copy of the sealed part.
  const ours = flippedAt(50);
  writeFileSync(place.manifest(image), ours);
  copyTo(place.manifest(image), other.manifest(image));
  writeFileSync(other.manifest(image), flippedAt(whole.length - 30));
  const sources = [storeSource(other.store)];
  const found = {
    problems: [{ kind: 'manifest', copyIn: other.store.url, unproven: true, repaired: false }],
  };
  const dry = await place.check({ repair: { sources, dryRun: true } });
  t.match(dry, { ...found, remaining: 1, repair: { manifests: 0 } });
  t.match(await place.check({ repair: { sources } }), { ...found, remaining: 1, repair: { manifests: 0 } });
  t.ok(readFileSync(place.manifest(image)).equals(ours), 'not without the key');
  const keys = KeyRing.of(place.key);
  t.match(await place.check({ keys, repair: { sources } }), { problems: [{ copyIn: null }], remaining: 1 });
  t.ok(readFileSync(place.manifest(image)).equals(ours), 'nor by a bad one with it');
  writeFileSync(other.manifest(image), whole);
  t.match(await place.check({ repair: { sources } }), { ...found, remaining: 1 }, 'good, but not proven');
  const report = await place.check({ keys, repair: { sources } });
  t.match(report, { problems: [{ unproven: false, repaired: true }], remaining: 0 });
  t.ok(readFileSync(place.manifest(image)).equals(whole));
});

t.test("a manifest put together from its own parts and another key's", async (t) => {
  t.testdir();
  const { place, image } = await newStore(t);
  const other = TenantKey.generate({ sharing: place.key });
  const whole = readFileSync(place.manifest(image));
  const { clearBytes } = image.manifest.clear;
  const bends = { clear: 50, ids: clearBytes - 5, 'wrapped key': clearBytes + 20, body: whole.length - 30 };
  for (const [what, at] of Object.entries(bends)) {
    writeFileSync(place.manifest(image, other.id), rewrapManifest(whole, place.key, other));
    const bent = Buffer.from(whole);
    bent[at]! ^= 1;
    writeFileSync(place.manifest(image), bent);
    const keys = KeyRing.of(place.key, other);
    t.match((await place.check({ repair: { sources: [] } })).repair, { manifests: 0 }, 'not without the key');
    const report = await place.check({ keys, repair: { sources: [] } });
    const canBe = what !== 'wrapped key';
    t.match(report, { remaining: canBe ? 0 : 1, repair: { manifests: canBe ? 1 : 0 } }, what);
    t.equal(readFileSync(place.manifest(image)).equals(whole), canBe);
  }
});

t.test(
  'whatever is damaged is found, and what has a good copy is mended, and nothing else changes',
  async (t) => {
    let run = 0;
    const places = fc.constantFrom('nowhere', 'trash', 'other store', 'both');
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.option(fc.tuple(fc.constantFrom(...DAMAGES), places)), { minLength: 12, maxLength: 12 }),
        fc.boolean(),
        async (plan, isTwice) => {
          const dir = t.testdir();
          const place = await FsckStore.open(t, join(dir, `s${++run}`));
          const other = await FsckStore.open(t, join(dir, `o${run}`), place.key);
          await place.openArea('trash/1-x');
          const contents = plan.map((_, at) => `chunk ${at}`);
          const image = await place.put('a', contents);
          if (isTwice) await place.put('b', contents.toReversed());
          const ids = idsOf(image);
          const spare = place.chunk(idsOf(await place.put('spare', ['spare']))[0]!);
          const [damaged, mended] = [new Set<string>(), new Set<string>()];
          for (const [at, chosen] of plan.entries()) {
            if (!chosen) continue;
            const [how, where] = chosen;
            const id = ids[at]!;
            if (where === 'trash' || where === 'both') copyTo(place.chunk(id), place.chunk(id, 'trash/1-x'));
            if (where === 'other store' || where === 'both') copyTo(place.chunk(id), other.chunk(id));
            damage(place.chunk(id), how, spare);
            // A chunk that is missing from the root but present in its sweep's trash counts as put aside, not as
            // damage.
            if (how === 'missing' && (where === 'trash' || where === 'both')) continue;
            damaged.add(id);
            if (where !== 'nowhere') mended.add(id);
          }
          const found = await place.check();
          const idSet = (report: typeof found) => new Set(report.damaged.map(({ id }) => id as string));
          t.strictSame(idSet(found), damaged);
          const repaired = await place.check({ repair: { sources: [storeSource(other.store)] } });
          t.strictSame(idSet(repaired), damaged);
          t.strictSame(
            new Set(repaired.damaged.filter((one) => one.repaired).map(({ id }) => id as string)),
            mended,
          );
          t.equal(repaired.remaining, damaged.size - mended.size);
          const left = await place.check();
          t.strictSame(idSet(left), damaged.difference(mended));
          await Promise.all([place.store.close(), other.store.close()]);
        },
      ),
      { numRuns: 12 },
    );
  },
);
