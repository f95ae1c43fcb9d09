/**
 * Rotating the wrapping key: every image opens with the new key, none is lost on the way, and a second run is cheap.
 */
import t from 'tap';
import { LazydiskError } from '../../src/errors.ts';
import type { ImageDigest } from '../../src/format/image-digest.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { Manifest } from '../../src/format/manifest.ts';
import { resealManifest, rewrapManifest, shareDataKey } from '../../src/format/manifest-rewrap.ts';
import { sealManifest } from '../../src/format/manifest-seal.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { AwsKms } from '../../src/keys/kms.ts';
import { newWrappedKey } from '../../src/keys/wrapped-keys.ts';
import { openManifest } from '../../src/store/open-manifest.ts';
import { rewrapImages } from '../../src/store/rewrap.ts';
import { sampleParts } from '../format/samples.ts';
import { KEY_A, KEY_B, KmsStandIn } from '../support/kms-stand-in.ts';
import { MemoryStore } from '../support/memory-store.ts';

/** A store with the images `app:0` and up, sealed for `from`, and a key `to` of the same domain. */
function storeOf(images: number, from = TenantKey.generate({ domain: 'team-a' })) {
  const store = new MemoryStore();
  const to = TenantKey.generate({ sharing: from });
  const digests = Array.from({ length: images }, (_, n) => {
    const { digest, bytes } = sealManifest(sampleParts(from, { writerVersion: `test/${n}` }));
    store.manifests.set(`${digest}/${from.id}`, bytes);
    store.name(`app:${n}`, digest);
    return digest;
  });
  const opens = (digest: ImageDigest, key: TenantKey) => {
    const bytes = store.manifests.get(`${digest}/${key.id}`);
    return bytes !== undefined && Manifest.open(bytes, key).digest === digest;
  };
  const all = (key: TenantKey) => digests.every((digest) => opens(digest, key));
  return { store, from, to, digests, opens, all };
}

t.test('all images get the new key, the old one stays, and again does nothing', async (t) => {
  const { store, from, to, digests, all } = storeOf(9);
  store.name('app:latest', digests[0]!);
  const progress: string[] = [];
  const report = await rewrapImages(store, from, to, {
    onProgress: (done, of) => progress.push(`${done}/${of}`),
  });
  t.same(report, {
    images: 9,
    rewrapped: 9,
    skipped: 0,
    foreign: 0,
    removed: 0,
    sharingKeys: [],
    failures: [],
  });
  t.ok(all(to));
  t.ok(all(from));
  t.same(progress, ['0/9', '1/9', '2/9', '3/9', '4/9', '5/9', '6/9', '7/9', '8/9', '9/9']);
  store.calls.length = 0;
  t.match(await rewrapImages(store, from, to), { images: 9, rewrapped: 0, skipped: 9 });
  t.equal(store.count('addManifest'), 0);
});

t.test('the old manifests go when that is asked for, even in a later run', async (t) => {
  const { store, from, to, all } = storeOf(6);
  await rewrapImages(store, from, to, { images: ['app:0', 'app:1'] });
  const report = await rewrapImages(store, from, to, { removeOld: true });
  t.match(report, { images: 6, rewrapped: 4, skipped: 2, removed: 6, failures: [] });
  t.ok(all(to));
  t.equal(store.manifests.size, 6);
  t.match(await rewrapImages(store, from, to, { removeOld: true }), { rewrapped: 0, skipped: 6, removed: 0 });
});

t.test('a dry run counts the same and writes nothing', async (t) => {
  const { store, from, to } = storeOf(5);
  await rewrapImages(store, from, to, { images: ['app:0'] });
  const before = new Map(store.manifests);
  store.calls.length = 0;
  const planned = await rewrapImages(store, from, to, { removeOld: true, dryRun: true });
  t.same(store.manifests, before);
  t.equal(store.count('addManifest') + store.count('removeManifest'), 0);
  t.same(await rewrapImages(store, from, to, { removeOld: true }), planned);
});

t.test('images by name and by digest, each once; what is not there is told', async (t) => {
  const { store, from, to, digests, opens } = storeOf(4);
  const images = ['app:1', digests[2]!, digests[1]!, 'app:none', `sha256:${'0'.repeat(64)}`];
  const report = await rewrapImages(store, from, to, { images });
  t.match(report, { images: 4, rewrapped: 2, skipped: 0, foreign: 0 });
  t.same(
    report.failures.map(({ name, error }) => [name, error.code]),
    [
      ['app:none', 'NOT_FOUND'],
      [`sha256:${'0'.repeat(64)}`, 'KEY'],
    ],
  );
  t.same(
    digests.map((digest) => opens(digest, to)),
    [false, true, true, false],
  );
  await t.rejects(rewrapImages(store, from, to, { images: ['../x'] }), { code: 'USAGE' });
  t.match(await rewrapImages(store, from, to, { images: [] }), { images: 0 });
});

t.test("of all images, another tenant's are counted and left alone", async (t) => {
  const { store, from, to } = storeOf(2);
  const stranger = TenantKey.generate();
  const { digest, bytes } = sealManifest(sampleParts(stranger));
  store.manifests.set(`${digest}/${stranger.id}`, bytes);
  store.name('theirs', digest);
  store.name('dangling', `sha256:${'0'.repeat(64)}`);
  t.match(await rewrapImages(store, from, to, { removeOld: true }), {
    images: 4,
    rewrapped: 2,
    foreign: 2,
    removed: 2,
    failures: [],
  });
  t.ok(store.manifests.get(`${digest}/${stranger.id}`)!.equals(bytes));
});

t.test(
  'resealed, every image has a new data key, and other keys that share the old one are told',
  async (t) => {
    const { store, from, to, digests, all } = storeOf(3);
    const tenant = TenantKey.generate({ sharing: from });
    const before = digests.map((digest) => store.manifests.get(`${digest}/${from.id}`)!);
    store.manifests.set(`${digests[1]}/${tenant.id}`, rewrapManifest(before[1]!, from, tenant));
    const own = TenantKey.generate({ sharing: from });
    store.manifests.set(`${digests[2]}/${own.id}`, resealManifest(before[2]!, from, own));
    await rewrapImages(store, from, to, { images: ['app:0'] });
    const isNew = () =>
      digests.map((digest, n) => !shareDataKey(store.manifests.get(`${digest}/${to.id}`)!, before[n]!));
    t.notOk(shareDataKey(before[0]!, before[1]!));
    const planned = await rewrapImages(store, from, to, { reseal: true, dryRun: true });
    t.notOk(store.manifests.has(`${digests[1]}/${to.id}`));
    const report = await rewrapImages(store, from, to, { reseal: true });
    t.same(report, planned);
    t.match(report, { images: 3, rewrapped: 3, skipped: 0, sharingKeys: [tenant.id], failures: [] });
    t.ok(all(to));
    t.ok(all(from));
    t.same(isNew(), [true, true, true]);
    const resealed = new Map(store.manifests);
    t.match(await rewrapImages(store, from, to, { reseal: true }), {
      rewrapped: 0,
      skipped: 3,
      sharingKeys: [tenant.id],
    });
    t.same(store.manifests, resealed, 'what is done stays');
    t.match(await rewrapImages(store, from, to, { reseal: true, removeOld: true }), {
      skipped: 3,
      removed: 3,
    });
    t.ok(store.manifests.get(`${digests[0]}/${to.id}`)!.equals(resealed.get(`${digests[0]}/${to.id}`)!));
    t.match(await rewrapImages(store, tenant, tenant, { reseal: true }), {
      rewrapped: 1,
      foreign: 2,
      sharingKeys: [],
    });
    t.notOk(
      shareDataKey(store.manifests.get(`${digests[1]}/${tenant.id}`)!, before[1]!),
      'in place, for its own key',
    );
  },
);

t.test('a reseal that is stopped anywhere loses nothing, and is finished by the next', async (t) => {
  for (let step = 1; ; step++) {
    const { store, from, to, digests, opens } = storeOf(2);
    const before = digests.map((digest) => store.manifests.get(`${digest}/${from.id}`)!);
    let calls = 0;
    store.onCall = () => {
      if (++calls >= step) throw new LazydiskError('UNAVAILABLE', 'gone');
    };
    const options = { reseal: true, removeOld: true };
    const isStopped = await rewrapImages(store, from, to, options).then(
      () => false,
      () => true,
    );
    store.onCall = () => {};
    for (const digest of digests)
      if (!opens(digest, to) && !opens(digest, from)) t.fail(`${digest} at ${step}`);
    t.match(await rewrapImages(store, from, to, options), { images: 2, failures: [] });
    for (const [n, digest] of digests.entries()) {
      if (!opens(digest, to) || opens(digest, from)) t.fail(`${digest} after ${step}`);
      if (shareDataKey(store.manifests.get(`${digest}/${to.id}`)!, before[n]!)) t.fail(`old key, ${step}`);
    }
    if (!isStopped) break;
  }
  t.pass('at every call');
});

t.test('keys that do not go together are refused before anything is read', async (t) => {
  const { store, from } = storeOf(1);
  for (const to of [from, TenantKey.generate({ domain: 'team-b' }), TenantKey.generate({ domain: 'team-a' })])
    await t.rejects(rewrapImages(store, from, to), { code: 'USAGE' });
  await t.rejects(rewrapImages(store, from, from, { reseal: true, removeOld: true }), { code: 'USAGE' });
  t.same(store.calls, []);
});

t.test('a bent manifest is reported with its image, and the others are done', async (t) => {
  const { store, from, to, digests } = storeOf(4);
  store.manifests.get(`${digests[1]}/${from.id}`)!.fill(0, 300, 310);
  const swapped = store.manifests.get(`${digests[3]}/${from.id}`)!;
  store.manifests.set(`${digests[2]}/${from.id}`, Buffer.from(swapped));
  const report = await rewrapImages(store, from, to, { removeOld: true });
  t.match(report, { images: 4, rewrapped: 2, removed: 2 });
  t.same(report.failures.map(({ name }) => name).sort(), ['app:1', 'app:2']);
  for (const { name, error } of report.failures) t.match(error.message, `image ${name} in memory:test: `);
  t.ok(store.manifests.has(`${digests[1]}/${from.id}`), 'and stays for whoever looks into it');
});

t.test(
  'a bent manifest of the new key is written again, and the old one never goes without a sound successor',
  async (t) => {
    const { store, from, to, digests, opens, all } = storeOf(3);
    await rewrapImages(store, from, to);
    store.manifests.get(`${digests[0]}/${to.id}`)!.fill(0, 300, 310);
    t.match(await rewrapImages(store, from, to), { rewrapped: 1, skipped: 2 });
    t.ok(all(to));

    // A store that loses what was written.
    store.manifests.delete(`${digests[0]}/${to.id}`);
    store.addManifest = async (digest, keyId, bytes) => {
      store.manifests.set(`${digest}/${keyId}`, Buffer.from(bytes.subarray(0, 100)));
      return 'written';
    };
    const report = await rewrapImages(store, from, to, { removeOld: true, images: ['app:0'] });
    t.match(report, { rewrapped: 0, removed: 0, failures: [{ name: 'app:0', error: { code: 'CORRUPT' } }] });
    t.ok(opens(digests[0]!, from));

    store.manifests.delete(`${digests[0]}/${from.id}`);
    t.match(await rewrapImages(store, from, to), {
      foreign: 0,
      failures: [{ name: 'app:0', error: { code: 'CORRUPT', message: new RegExp(`${to.id} is broken`) } }],
    });
  },
);

t.test('stopped anywhere, no image is lost, and another run finishes', async (t) => {
  // One list, and for each of 8 images: look up the new manifest, read the old one, write, read back, remove.
  for (let call = 1; call <= 40; call += 3) {
    const { store, from, to, digests, opens, all } = storeOf(8);
    let calls = 0;
    // As if the process were killed here: this call may be done, and no call follows it.
    store.onCall = () => {
      if (++calls > call) throw new LazydiskError('UNAVAILABLE', 'gone');
    };
    await t.rejects(rewrapImages(store, from, to, { removeOld: true }), { code: 'UNAVAILABLE' });
    const isKept = digests.every((digest) => opens(digest, from) || opens(digest, to));
    store.onCall = () => {};
    const { failures, rewrapped, skipped } = await rewrapImages(store, from, to, { removeOld: true });
    t.ok(isKept && all(to) && store.manifests.size === 8, `after ${call} calls`);
    t.match({ failures, rewrapped, skipped }, { failures: [] });
    t.ok(rewrapped + skipped === 8);
  }
});

t.test(
  'an aborted run says ABORTED, a store that fails what it says; nothing is under way then',
  async (t) => {
    const { store, from, to } = storeOf(30);
    const controller = new AbortController();
    controller.abort(new LazydiskError('ABORTED', 'stopped by SIGINT'));
    await t.rejects(rewrapImages(store, from, to, { signal: controller.signal }), {
      code: 'ABORTED',
      message: 'stopped by SIGINT',
    });
    let puts = 0;
    store.onCall = (call) => {
      if (call.startsWith('addManifest') && ++puts === 5) throw new LazydiskError('NO_SPACE', 'full');
    };
    await t.rejects(rewrapImages(store, from, to), { code: 'NO_SPACE' });
    t.ok(puts <= 8, `${puts} writes, of which those of the other lanes were under way`);
    const after = store.calls.length;
    await new Promise((resolve) => setTimeout(resolve, 30));
    t.equal(store.calls.length, after);
  },
);

t.test(
  'from a key file to KMS and on to another master key: the images open, no chunk was read',
  async (t) => {
    await KmsStandIn.start(t);
    const { store, from, digests } = storeOf(3);
    const maker = new AwsKms();
    t.teardown(() => maker.close());
    await newWrappedKey(store, maker, KEY_A, { sharing: from });
    await newWrappedKey(store, maker, KEY_B, { sharing: from });
    const a = await KeyRing.open([`awskms:${KEY_A}`], { wrappedKeys: store });
    const b = await KeyRing.open([`awskms:${KEY_B}`], { wrappedKeys: store });
    t.teardown(() => [a, b].map((ring) => ring.close()));
    await rewrapImages(store, from, await a.primary(), { removeOld: true });
    for (const digest of digests) t.equal((await openManifest(store, 'app', digest, a)).digest, digest);
    await rewrapImages(store, await a.primary(), await b.primary(), { removeOld: true });
    for (const digest of digests) {
      t.equal((await openManifest(store, 'app', digest, b)).digest, digest);
      await t.rejects(openManifest(store, 'app', digest, a), { code: 'KEY', message: /is sealed for key/ });
    }
  },
);
