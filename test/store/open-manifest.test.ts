/**
 * Which key opens an image: the right one wherever it is in the ring, and a refusal that names keys and reveals no
 * secret.
 */
import t, { type Test } from 'tap';
import { TenantKey } from '../../src/format/keys.ts';
import { rewrapManifest } from '../../src/format/manifest-rewrap.ts';
import { sealManifest } from '../../src/format/manifest-seal.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { AwsKms } from '../../src/keys/kms.ts';
import { newWrappedKey } from '../../src/keys/wrapped-keys.ts';
import { openManifest } from '../../src/store/open-manifest.ts';
import { sampleParts } from '../format/samples.ts';
import { KEY_A, KEY_B, KmsStandIn } from '../support/kms-stand-in.ts';
import { MemoryStore } from '../support/memory-store.ts';

function sealedFor(key: TenantKey, store = new MemoryStore()) {
  const { digest, bytes } = sealManifest(sampleParts(key));
  store.manifests.set(`${digest}/${key.id}`, bytes);
  return { store, digest, bytes };
}

/** A store with a KMS key and an image sealed for it. */
async function withKms(t: Test, arn = KEY_A) {
  const kms = await KmsStandIn.start(t);
  const store = new MemoryStore();
  const maker = new AwsKms();
  t.teardown(() => maker.close());
  const { id } = await newWrappedKey(store, maker, arn);
  const ring = async (...specs: string[]) => {
    const ring = await KeyRing.open(specs, { wrappedKeys: store, ttlMs: 50, kms: { tries: 1 } });
    t.teardown(() => ring.close());
    return ring;
  };
  const key = (await (await ring(`awskms:${arn}`)).get(id))!;
  kms.calls.length = 0;
  return { kms, ring, key, maker, ...sealedFor(key, store) };
}

t.test('the key that fits is found, wherever it is in the ring', async (t) => {
  const keys = Array.from({ length: 5 }, () => TenantKey.generate());
  for (const key of keys) {
    const { store, digest } = sealedFor(key);
    t.equal((await openManifest(store, 'app:1', digest, KeyRing.of(...keys))).digest, digest);
    t.same(store.calls, [`manifestKeys ${digest}`, `getManifest ${digest} ${key.id}`], 'two questions');
  }
  const { store, digest } = sealedFor(keys[0]!);
  await openManifest(store, 'app:1', digest, KeyRing.of(keys[0]!));
  t.same(store.calls, [`getManifest ${digest} ${keys[0]!.id}`], 'of a ring of one, one');
});

t.test('a store that cannot be listed, or whose list lags, is asked key by key', async (t) => {
  const [a, b] = [TenantKey.generate(), TenantKey.generate()];
  const { store, digest } = sealedFor(b);
  store.isListable = false;
  t.equal((await openManifest(store, 'app:1', digest, KeyRing.of(a, b))).digest, digest);
  store.isListable = true;
  store.manifestKeys = async () => [];
  t.equal((await openManifest(store, 'app:1', digest, KeyRing.of(a, b))).digest, digest);
});

t.test('without the key, the refusal names whose the image is and what this host has', async (t) => {
  const [mine, theirs] = [TenantKey.generate(), TenantKey.generate()];
  const { store, digest, bytes } = sealedFor(theirs);
  const third = TenantKey.generate({ sharing: theirs });
  store.manifests.set(`${digest}/${third.id}`, rewrapManifest(bytes, theirs, third));
  const error = await openManifest(store, 'app:1', digest, KeyRing.of(mine)).catch((error) => error);
  t.equal(error.code, 'KEY');
  t.equal(
    error.message,
    `image app:1 in memory:test is sealed for key ${theirs.id} or key ${third.id}, and this host has key ${mine.id} (in memory)`,
  );
  store.isListable = false;
  await t.rejects(openManifest(store, 'app:1', digest, KeyRing.of(mine)), {
    code: 'KEY',
    message: `image app:1 in memory:test: no manifest for key ${mine.id} (in memory) (it was built with another key, or deleted)`,
  });
  await t.rejects(openManifest(store, digest, digest, KeyRing.of(mine)), { code: 'NOT_FOUND' });
});

t.test('an image that is nowhere is NOT_FOUND', async (t) => {
  const digest = `sha256:${'0'.repeat(64)}` as const;
  const ring = KeyRing.of(TenantKey.generate());
  for (const name of ['gone:latest', digest])
    await t.rejects(openManifest(new MemoryStore(), name, digest, ring), {
      code: 'NOT_FOUND',
      message: new RegExp(`^image ${name} in memory:test: no manifest`),
    });
});

t.test(
  "a manifest that is bent, or another image's, is named; a sound one of another key helps",
  async (t) => {
    const key = TenantKey.generate();
    const { store, digest, bytes } = sealedFor(key);
    const bend = () => {
      const bent = Buffer.from(bytes);
      bent[bent.length - 1]! ^= 1;
      store.manifests.set(`${digest}/${key.id}`, bent);
    };
    bend();
    const broken = { code: 'CORRUPT', message: /^image app:1 in memory:test: corrupt manifest/ };
    await t.rejects(openManifest(store, 'app:1', digest, KeyRing.of(key)), broken);
    const second = TenantKey.generate({ sharing: key });
    await t.rejects(openManifest(store, 'app:1', digest, KeyRing.of(key, second)), broken);
    store.manifests.set(`${digest}/${second.id}`, rewrapManifest(bytes, key, second));
    t.equal((await openManifest(store, 'app:1', digest, KeyRing.of(key, second))).digest, digest);
    const other = sealManifest(sampleParts(key, { writerVersion: 'other/1' })).bytes;
    store.manifests.set(`${digest}/${key.id}`, other);
    await t.rejects(openManifest(store, 'app:1', digest, KeyRing.of(key)), {
      code: 'CORRUPT',
      message: /is that of/,
    });
  },
);

t.test('KMS is asked for the one key that is needed, and for none in vain', async (t) => {
  const { kms, store, ring, key, maker, digest } = await withKms(t);
  for (let n = 0; n < 3; n++) await newWrappedKey(store, maker, KEY_A);
  await newWrappedKey(store, maker, KEY_B);
  kms.calls.length = 0;
  const keys = await ring(`awskms:${KEY_A}`, `awskms:${KEY_B}`);
  t.equal((await openManifest(store, 'app:1', digest, keys)).digest, digest);
  t.equal(kms.calls.length, 1);
  t.equal(kms.calls[0]!.context['lazydisk:key'], key.id);

  const elsewhere = await ring(`awskms:${KEY_B}`);
  kms.calls.length = 0;
  await t.rejects(openManifest(store, 'app:1', digest, elsewhere), {
    code: 'KEY',
    message: new RegExp(`is sealed for key ${key.id}, and this host has key [0-9a-f]{16} .awskms:${KEY_B}`),
  });
  t.equal(kms.calls.length, 0);
});

t.test('what KMS or the object says is passed on, with the names of image and key', async (t) => {
  const { kms, store, ring, key, digest } = await withKms(t);
  const keys = await ring(`awskms:${KEY_A}`);
  kms.states.set(KEY_A, 'denied');
  const named = `^image app:1 in memory:test: key ${key.id}: KMS key ${KEY_A}: `;
  await t.rejects(openManifest(store, 'app:1', digest, keys), {
    code: 'KEY',
    message: new RegExp(`${named}AccessDenied`),
  });
  kms.states.delete(KEY_A);
  kms.fail('throttling');
  await t.rejects(openManifest(store, 'app:1', digest, keys), {
    code: 'UNAVAILABLE',
    message: new RegExp(`${named}Throttling`),
  });
  store.keys.set(key.id, Buffer.from('{}'));
  await t.rejects(openManifest(store, 'app:1', digest, keys), {
    code: 'CORRUPT',
    message: new RegExp(`wrapped key ${key.id}`),
  });
  store.onCall = (call) => {
    if (call.startsWith('getKey')) store.keys.delete(key.id);
  };
  await t.rejects(openManifest(store, 'app:1', digest, keys), { code: 'KEY', message: /is gone/ });
});
