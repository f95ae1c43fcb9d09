/** Finding an image by name or digest: absent, sealed for another key and broken each have their own error codes. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { TenantKey } from '../../src/format/keys.ts';
import { sealManifest } from '../../src/format/manifest-seal.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { loadImage } from '../../src/store/image.ts';
import { listImages } from '../../src/store/image-list.ts';
import { forgeMetadata, sampleMetadata, sampleParts, secretsOf } from '../format/samples.ts';
import { openDirStore, rootDir } from '../support/dir-store.ts';

async function storeWithImage(t: Test) {
  const dir = join(t.testdir(), 'store');
  const store = await openDirStore(dir);
  const writer = await store.writer();
  t.teardown(() => store.close());
  const key = TenantKey.generate();
  const { digest, bytes } = sealManifest(sampleParts(key));
  await writer.putManifest(digest, key.id, bytes);
  await writer.putReference('app', digest);
  return { dir, store, writer, key, digest, bytes };
}

t.test('an image is found by name, by name and tag, and by digest', async (t) => {
  const { store, key, digest } = await storeWithImage(t);
  for (const name of ['app', 'app:latest']) {
    const image = await loadImage(store, name, KeyRing.of(key));
    t.match(image, { name: 'app:latest', digest, reference: { name: 'app:latest' } });
    t.equal(image.manifest.digest, digest);
  }
  const byDigest = await loadImage(store, digest, KeyRing.of(key));
  t.match(byDigest, { name: digest, digest });
  t.equal(byDigest.reference, undefined);
});

t.test('what is not there is NOT_FOUND, what is no name is USAGE', async (t) => {
  const { store, key } = await storeWithImage(t);
  await t.rejects(loadImage(store, 'app:other', KeyRing.of(key)), {
    code: 'NOT_FOUND',
    message: /app:other/,
  });
  await t.rejects(loadImage(store, `sha256:${'0'.repeat(64)}`, KeyRing.of(key)), { code: 'NOT_FOUND' });
  await t.rejects(loadImage(store, '../app', KeyRing.of(key)), { code: 'USAGE' });
});

t.test('an image of another key is KEY, by both ways of not having it', async (t) => {
  const { store, writer, key, digest, bytes } = await storeWithImage(t);
  const stranger = TenantKey.generate({ sharing: key });
  await t.rejects(loadImage(store, 'app', KeyRing.of(stranger)), {
    code: 'KEY',
    message: new RegExp(stranger.id),
  });
  await writer.putManifest(digest, stranger.id, bytes);
  await t.rejects(loadImage(store, 'app', KeyRing.of(stranger)), { code: 'KEY', message: /app:latest/ });
});

t.test('metadata that was forged with the data key is CORRUPT', async (t) => {
  const { dir, store, key, digest, bytes } = await storeWithImage(t);
  const { dataKey, keys } = secretsOf(bytes, key);
  const config = { ...sampleMetadata.config, user: '0' };
  const forged = forgeMetadata(bytes, dataKey, { ...sampleMetadata, config }, keys);
  writeFileSync(join(rootDir(dir), 'manifests/sha256', digest.slice('sha256:'.length), key.id), forged);
  await t.rejects(loadImage(store, 'app', KeyRing.of(key)), {
    code: 'CORRUPT',
    message: /app:latest.*metadata/,
  });
  const [listed] = await listImages(store, KeyRing.of(key));
  t.match(listed, { problem: /metadata/ });
});

t.test('two tenants of a domain hold one image side by side', async (t) => {
  const { store, writer, key, digest } = await storeWithImage(t);
  const other = TenantKey.generate({ sharing: key });
  const again = sealManifest(sampleParts(other));
  t.equal(again.digest, digest);
  await writer.putManifest(again.digest, other.id, again.bytes);
  for (const tenant of [key, other])
    t.equal((await loadImage(store, 'app', KeyRing.of(tenant))).digest, digest);
});

t.test("a manifest that is bent, or another image's, is CORRUPT and named", async (t) => {
  const { store, dir, key, digest, bytes } = await storeWithImage(t);
  const path = join(rootDir(dir), 'manifests/sha256', digest.slice(7), key.id);
  const bent = Buffer.from(bytes);
  bent[300]! ^= 1;
  writeFileSync(path, bent);
  await t.rejects(loadImage(store, 'app', KeyRing.of(key)), { message: /app:latest/ });
  const { bytes: otherImage } = sealManifest(sampleParts(key, { writerVersion: 'other/1' }));
  writeFileSync(path, otherImage);
  await t.rejects(loadImage(store, 'app', KeyRing.of(key)), { code: 'CORRUPT', message: /is that of/ });
  writeFileSync(path, '');
  await t.rejects(loadImage(store, 'app', KeyRing.of(key)), { code: 'CORRUPT' });
});
