/** What fsck finds: every kind of damage, by name and with the images it affects, and nothing if all is well. */
import {
  appendFileSync,
  mkdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { describeFsck } from '../../../src/cli/fsck-report.ts';
import { LazydiskError } from '../../../src/errors.ts';
import { TenantKey } from '../../../src/format/keys.ts';
import { ClearManifest } from '../../../src/format/manifest-clear.ts';
import { rewrapManifest } from '../../../src/format/manifest-rewrap.ts';
import { KeyRing } from '../../../src/keys/key-ring.ts';
import { fsck } from '../../../src/store/fsck/fsck.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { leaseKey, manifestKey } from '../../../src/store/roots/layout.ts';
import { copyTo, DAMAGES, damage, FsckStore, idsOf, withCalls } from '../../support/fsck-store.ts';

async function newStore(t: Test) {
  const place = await FsckStore.open(t, join(t.testdir(), 'store'));
  const a = await place.put('a', ['one', 'two', '', 'three', 'one']);
  const b = await place.put('b:2', ['two', 'four']);
  return { place, a, b, ids: idsOf(a), keys: KeyRing.of(place.key) };
}

function flipClear(file: string): void {
  const bytes = readFileSync(file);
  bytes[210]! ^= 1;
  writeFileSync(file, bytes);
}

const WELL = { problems: [], damagedChunks: 0, damaged: [], hitImages: [], inTrash: 0, remaining: 0 };

t.test('a store that is well, with and without a key', async (t) => {
  const { place, keys } = await newStore(t);
  const report = await place.check();
  t.match(report, { ...WELL, names: 2, images: 2, manifests: 2, openedManifests: 0, liveChunks: 4 });
  t.match(report, { readChunks: 4, unknownImages: 0, repair: null });
  const none = { chunks: 0, manifests: 0, bytes: 0 };
  t.same(report.orphans, { leased: none, young: none, garbage: none });
  t.same(report.foreign, { objects: 0, bytes: 0, examples: [] });
  t.match(await place.check({ keys }), { ...WELL, openedManifests: 2 });
  t.match(await place.check({ sample: 0 }), { ...WELL, readChunks: 0 });
});

t.test('an empty store is well', async (t) => {
  const place = await FsckStore.open(t, join(t.testdir(), 'store'));
  t.match(await place.check(), { ...WELL, names: 0, liveChunks: 0 });
});

t.test('each kind of damage to a chunk is named, with all images and places that it hits', async (t) => {
  const what = { flipped: 'content', truncated: 'length', longer: 'length', missing: 'missing' };
  for (const how of DAMAGES) {
    const { place, ids } = await newStore(t);
    const sound = readFileSync(place.chunk(ids[1]!)).length;
    damage(place.chunk(ids[1]!), how, place.chunk(ids[0]!));
    const { damaged, remaining, damagedChunks, hitImages } = await place.check();
    t.match({ remaining, damagedChunks }, { remaining: 1, damagedChunks: 1 }, how);
    const found = how === 'missing' ? null : readFileSync(place.chunk(ids[1]!)).length;
    const kind = how === 'swapped' ? (found === sound ? 'content' : 'length') : what[how];
    t.match(
      damaged,
      [{ id: ids[1], what: kind, sealedBytes: sound, foundBytes: found, repaired: false }],
      how,
    );
    t.equal(damaged[0]!.area, how === 'missing' ? null : 'roots/1');
    const hits = damaged[0]!.hits.map(({ name, indices, paths }) => ({ name, indices, paths }));
    t.same(
      hits.sort((x, y) => (x.name < y.name ? -1 : 1)),
      [
        { name: 'a:latest', indices: [1], paths: null },
        { name: 'b:2', indices: [0], paths: null },
      ],
    );
    t.match(hitImages, [
      { names: ['a:latest'], damagedChunks: 1, paths: null, why: 'no key is given' },
      { names: ['b:2'] },
    ]);
  }
});

t.test('a chunk that an image has twice is hit twice', async (t) => {
  const { place, ids } = await newStore(t);
  damage(place.chunk(ids[0]!), 'missing', '');
  t.match((await place.check()).damaged, [{ hits: [{ name: 'a:latest', indices: [0, 4] }] }]);
});

t.test('what presence and lengths tell needs no reading; bytes are told by the sample', async (t) => {
  const { place, ids } = await newStore(t);
  damage(place.chunk(ids[0]!), 'flipped', '');
  damage(place.chunk(ids[1]!), 'truncated', '');
  t.match(await place.check({ sample: 0 }), { damagedChunks: 1, damaged: [{ id: ids[1] }] });
  // The samples of consecutive seeds form a partition: each chunk is in exactly one of four.
  const reports = await Promise.all([0, 1, 2, 3].map((seed) => place.check({ sample: 0.25, seed })));
  t.equal(
    reports.reduce((sum, { readChunks }) => sum + readChunks, 0),
    3,
    'each is read once, and the short one by nobody',
  );
  t.equal(reports.filter(({ damagedChunks }) => damagedChunks === 2).length, 1);
  t.same(await place.check({ sample: 0.25, seed: 1 }), reports[1], 'and the same again');
});

t.test('a disk that cannot be read is a damage, a store that is away is an error', async (t) => {
  const { place, ids } = await newStore(t);
  const { objects } = place.store.parts;
  const failing = (keys: readonly string[]) => ({
    ...place.store.parts,
    objects: withCalls(objects, {
      get: async (key, bytesMax) => {
        if (keys.some((end) => key.endsWith(end))) throw new LazydiskError('UNAVAILABLE', `${key}: EIO`);
        return objects.get(key, bytesMax);
      },
    }),
  });
  t.match(await fsck(failing([ids[1]!]), { sample: 1 }), {
    damaged: [{ id: ids[1], what: 'unreadable', area: 'roots/1', foundBytes: null }],
    damagedChunks: 1,
  });
  t.match(await fsck(failing([`/${place.key.id}`]), { sample: 1 }), {
    problems: [{ text: /cannot be read/ }, {}],
    remaining: 2,
  });
  await t.rejects(fsck(failing([ids[1]!, 'lazydisk-store.json']), { sample: 1 }), { code: 'UNAVAILABLE' });
  const readOnly = { ...place.store.parts, objects: withCalls(objects, { isWritable: false }) };
  await t.rejects(fsck(readOnly, { sample: 1 }), { code: 'UNSUPPORTED' });
});

t.test('manifests: broken, cut short, mixed up, gone', async (t) => {
  const cases = {
    'a bit of the clear part': flipClear,
    'its end': (file: string) => truncateSync(file, readFileSync(file).length - 5),
    'more than all': (file: string) => appendFileSync(file, 'x'),
    'an empty file': (file: string) => writeFileSync(file, ''),
  };
  for (const [what, bend] of Object.entries(cases)) {
    const { place, a, b } = await newStore(t);
    bend(place.manifest(a));
    const report = await place.check({ keys: KeyRing.of(place.key) });
    t.match(
      report.problems,
      [{ kind: 'manifest', names: ['a:latest'], copyIn: null, repaired: false }],
      what,
    );
    t.match(report, { remaining: 1, damagedChunks: 0, unknownImages: 1, liveChunks: 2 });
    t.equal(report.orphans.young.chunks, 2, 'its own chunks belong to nobody known');
    copyTo(place.manifest(b), place.manifest(a));
    t.match((await place.check()).problems, [{ kind: 'manifest', text: /it is that of sha256:/ }]);
    rmSync(place.manifest(a));
    t.match((await place.check()).problems, [
      { kind: 'name', names: ['a:latest'], text: /has no manifest/, copyIn: null },
    ]);
  }
});

t.test('the sealed part: its length without a key, all of it with one', async (t) => {
  const { place, a, keys } = await newStore(t);
  const file = place.manifest(a);
  const whole = readFileSync(file);
  const bent = Buffer.from(whole);
  bent[bent.length - 20]! ^= 1;
  writeFileSync(file, bent);
  t.match(await place.check(), { ...WELL, problems: [] }, 'nobody can tell without the key');
  const report = await place.check({ keys });
  t.match(report, { problems: [{ kind: 'manifest', text: /sealed part does not decrypt/ }], remaining: 1 });
  t.equal(report.liveChunks, 2, 'a manifest that does not open is no proof of chunks');
  t.match(await place.check({ keys: KeyRing.of(TenantKey.generate()) }), WELL, "nor with another's key");
  const otherId = 'f'.repeat(16);
  writeFileSync(file, whole);
  copyTo(file, place.manifest(a, otherId));
  t.match((await place.check()).problems, [{ text: new RegExp(`not sealed for key ${otherId}`) }]);
});

t.test("each key's manifest is checked, and one good one tells of the chunks", async (t) => {
  const { place, a } = await newStore(t);
  const other = TenantKey.generate({ sharing: place.key });
  writeFileSync(
    place.manifest(a, other.id),
    rewrapManifest(readFileSync(place.manifest(a)), place.key, other),
  );
  t.match(await place.check(), { ...WELL, manifests: 3 });
  flipClear(place.manifest(a, other.id));
  t.match(await place.check(), { problems: [{ kind: 'manifest' }], liveChunks: 4, unknownImages: 0 });
});

t.test('a broken name hides no other, and the history tells what it meant', async (t) => {
  const { place, a } = await newStore(t);
  writeFileSync(place.path('roots/1/references/a%3Alatest.json'), '{');
  const report = await place.check();
  const text = new RegExp(`not JSON; it was last set to ${a.digest.slice(0, 19)}`);
  t.match(report, { names: 1, remaining: 1, problems: [{ kind: 'reference', names: ['a:latest'], text }] });
});

t.test('a name that was removed means nothing', async (t) => {
  const { place, a, ids } = await newStore(t);
  await (await place.store.writer()).removeReference('a');
  const report = await place.check();
  t.match(report, { ...WELL, names: 1, liveChunks: 2, orphans: { young: { chunks: 2, manifests: 1 } } });
  rmSync(place.manifest(a));
  rmSync(place.chunk(ids[0]!));
  t.match(await place.check(), WELL, 'nor is it missed');
});

t.test('orphans: young ones, and what the next sweep takes', async (t) => {
  const { place, a } = await newStore(t);
  const orphan = await place.put('c', ['five', 'six', 'seven']);
  await (await place.store.writer()).removeReference('c');
  const history = place.path('history/c%3Alatest');
  rmSync(history, { recursive: true });
  const longAgo = Date.now() / 1000 - 1000;
  const files = [
    ...idsOf(orphan)
      .slice(1)
      .map((id) => place.chunk(id)),
    place.manifest(orphan),
  ];
  for (const file of [...files, place.manifest(a)]) utimesSync(file, longAgo, longAgo);
  const { orphans } = await place.check();
  t.match(orphans, { young: { chunks: 1, manifests: 0 }, garbage: { chunks: 2, manifests: 1 } });
  const { sweptChunks, sweptManifests, sweptBytes } = await sweep(place.store.parts);
  t.same({ sweptChunks, sweptManifests }, { sweptChunks: 2, sweptManifests: 1 });
  t.equal(sweptBytes, orphans.garbage.bytes);
});

t.test(
  'an image that a host has attached and no name means is leased, until the lease is over',
  async (t) => {
    const { place, ids } = await newStore(t);
    const image = await place.put('c', ['two', 'five', 'six']);
    await (await place.store.writer()).removeReference('c');
    rmSync(place.path('history/c%3Alatest'), { recursive: true });
    const files = [...new Set([...ids, ...idsOf(image)])].map((id) => place.chunk(id));
    const longAgo = Date.now() / 1000 - 1000;
    for (const file of [...files, place.manifest(image)]) utimesSync(file, longAgo, longAgo);
    const lease = leaseKey(image.digest, 'host-1');
    await place.store.parts.objects.put(lease, Buffer.alloc(0));
    const report = await place.check();
    t.match(report, { ...WELL, names: 2, liveChunks: 4, foreign: { objects: 0 } });
    const [none, all] = [
      { chunks: 0, manifests: 0, bytes: 0 },
      { chunks: 2, manifests: 1, bytes: Number },
    ];
    t.match(report.orphans, { leased: all, young: none, garbage: none });
    t.match(describeFsck(report), /attached somewhere, so kept: 2 chunks and 1 manifests/);
    t.match(await sweep(place.store.parts), { sweptChunks: 0, sweptManifests: 0 });

    flipClear(place.manifest(image));
    const text = /^attached on host-1: .*corrupt manifest/;
    t.match(await place.check(), { problems: [{ kind: 'manifest', names: [image.digest], text }] });
    flipClear(place.manifest(image));
    // Writing it again has made it young.
    utimesSync(place.manifest(image), longAgo, longAgo);
    utimesSync(place.path(lease), longAgo, longAgo);
    t.match((await place.check()).orphans, { leased: none, young: none, garbage: all });
  },
);

t.test('objects of strangers, wherever they lie', async (t) => {
  const { place } = await newStore(t);
  const keys = [
    'README',
    'odd/deep/er',
    'state/roots/1/finished',
    'keys/x',
    'roots/1/stray',
    'roots/1/odd/x',
    'roots/1/chunks/zz/x',
    'roots/1/chunks/stray',
    'roots/1/chunks/ab/cd/short',
    'roots/1/manifests/sha256/x',
    'roots/1/references/x.json',
    `roots/7/chunks/ab/cd/${'abcd'.padEnd(64, '0')}`,
    'trash/1-gone/chunks/x',
  ];
  for (const key of keys) {
    mkdirSync(dirname(place.path(key)), { recursive: true });
    writeFileSync(place.path(key), '12345');
  }
  const { foreign, remaining } = await place.check();
  t.equal(remaining, 0);
  t.match(foreign, { objects: keys.length, bytes: 5 * keys.length });
  t.same(foreign.examples.toSorted(), keys.toSorted());
});

t.test('what a sweep put aside is no damage; what only a retired root has is', async (t) => {
  const { place, a, ids } = await newStore(t);
  await place.openArea('trash/1-x');
  const aside = place.chunk(ids[0]!, 'trash/1-x');
  copyTo(place.chunk(ids[0]!), aside);
  rmSync(place.chunk(ids[0]!));
  copyTo(place.manifest(a), place.path(manifestKey('trash/1-x', a.digest, place.key.id)));
  rmSync(place.manifest(a));
  t.match(await place.check(), { ...WELL, inTrash: 2, liveChunks: 4, readChunks: 4 });
  damage(aside, 'flipped', '');
  const bad = await place.check();
  t.match(bad, { damagedChunks: 1, damaged: [{ what: 'content', area: 'trash/1-x', copyIn: null }] });

  const moved = await newStore(t);
  await rotate(moved.place.store.parts);
  t.match(await moved.place.check(), { ...WELL, liveChunks: 4, readChunks: 4 });
  rmSync(moved.place.chunk(moved.ids[1]!, 'roots/2'));
  t.match(await moved.place.check(), {
    damagedChunks: 1,
    damaged: [{ what: 'misplaced', area: 'roots/1', copyIn: 'roots/1', hits: [{ indices: [1] }, {}] }],
  });
});

t.test('while images move, they are looked for where they are', async (t) => {
  const { place, ids } = await newStore(t);
  await place.openArea('roots/2');
  const c = await place.put('c', ['five']);
  t.match(await place.check(), { ...WELL, names: 3, liveChunks: 5, readChunks: 5 });
  rmSync(place.chunk(ids[0]!));
  rmSync(place.chunk(idsOf(c)[0]!, 'roots/2'));
  t.match(await place.check(), { damagedChunks: 2, remaining: 2 });
});

t.test('manifests that give a chunk two lengths', async (t) => {
  const { place, b, ids } = await newStore(t);
  const bytes = readFileSync(place.manifest(b));
  // The first length in b's table, which is that of ids[1].
  bytes.writeUInt32LE(bytes.readUInt32LE(200 + 4 * 2) + 1, 200 + 4 * 2);
  const { digest } = new ClearManifest(bytes);
  const writer = await place.store.writer();
  await writer.putManifest(digest, place.key.id, bytes);
  await writer.putReference('bent', digest);
  const { damaged } = await place.check();
  t.match(damaged, [{ id: ids[1], what: 'manifest', area: 'roots/1', copyIn: null }]);
});

t.test('a chunk that many images share hits all of them', async (t) => {
  const { place, ids } = await newStore(t);
  for (let n = 0; n < 12; n++) await place.put(`many:${n}`, ['two', `own ${n}`]);
  rmSync(place.chunk(ids[1]!));
  const { damaged, hitImages } = await place.check();
  t.match(damaged, [{ moreImages: 6 }]);
  t.equal(damaged[0]!.hits.length, 8);
  t.equal(hitImages.length, 14);
});

t.test('a rotation while the store is checked makes nothing look damaged', async (t) => {
  const { place, ids } = await newStore(t);
  rmSync(place.chunk(ids[0]!));
  const { objects } = place.store.parts;
  let isTurned = false;
  const list: typeof objects.list = async function* (prefix, options) {
    yield* objects.list(prefix, options);
    if (isTurned || !prefix.endsWith('chunks/80/')) return;
    isTurned = true;
    await place.openArea('roots/2');
  };
  const parts = { ...place.store.parts, objects: withCalls(objects, { list }) };
  damage(place.chunk(ids[1]!), 'flipped', '');
  const report = await fsck(parts, { sample: 1 });
  t.ok(isTurned);
  t.match(report, { damagedChunks: 2, remaining: 2 });
  t.same(new Set(report.damaged.map(({ what }) => what)), new Set(['missing', 'content']));
});
