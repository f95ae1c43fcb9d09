/** A manifest for another tenant: 76 bytes change, the image does not, and a corrupt manifest is never passed on. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { LazydiskError } from '../../src/errors.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { Manifest } from '../../src/format/manifest.ts';
import { clearBytesOf } from '../../src/format/manifest-layout.ts';
import { resealManifest, rewrapManifest, shareDataKey } from '../../src/format/manifest-rewrap.ts';
import { sealManifest } from '../../src/format/manifest-seal.ts';
import { sampleEntries, sampleManifest, sampleParts, secretsOf } from './samples.ts';

t.test(
  'a rewrapped manifest opens with the new key, describes the same image, and differs in only 76 bytes',
  (t) => {
    const from = TenantKey.generate();
    const to = TenantKey.generate({ sharing: from });
    fc.assert(
      fc.property(fc.uniqueArray(fc.nat(2047), { maxLength: 100 }), (indices) => {
        const entries = sampleEntries(indices.sort((a, b) => a - b));
        const { digest, bytes } = sealManifest(sampleParts(from, { entries }));
        const before = Buffer.from(bytes);
        const rewrapped = rewrapManifest(bytes, from, to);
        assert.ok(bytes.equals(before), 'the input is not changed');
        const manifest = Manifest.open(rewrapped, to);
        const old = Manifest.open(bytes, from);
        assert.equal(manifest.digest, digest);
        assert.deepEqual(manifest.metadata, old.metadata);
        entries.forEach(({ ref }, entry) => {
          assert.deepEqual(manifest.ref(entry), ref);
        });
        const header = clearBytesOf(entries.length);
        assert.equal(rewrapped.length, bytes.length);
        assert.ok(rewrapped.subarray(0, header).equals(bytes.subarray(0, header)));
        assert.ok(rewrapped.subarray(header + 76).equals(bytes.subarray(header + 76)));
        assert.equal(rewrapped.toString('latin1', header, header + 16), to.id);
        assert.ok(
          !rewrapped.subarray(header + 16, header + 76).equals(bytes.subarray(header + 16, header + 76)),
        );
        assert.throws(() => Manifest.open(rewrapped, from), { code: 'KEY' });
      }),
      { numRuns: 30 },
    );
    t.pass('for all images');
    t.end();
  },
);

t.test('a manifest that is rewrapped for another key and back opens as before', (t) => {
  const { key, bytes, digest } = sampleManifest({ domain: 'team-a' });
  const other = TenantKey.generate({ sharing: key });
  const back = rewrapManifest(rewrapManifest(bytes, key, other), other, key);
  t.equal(Manifest.open(back, key).digest, digest);
  t.notOk(back.equals(bytes), 'under a fresh nonce');
  t.equal(Manifest.open(rewrapManifest(bytes, key, key), key).digest, digest, 'for the same key');
  t.end();
});

t.test('a resealed manifest describes the same image under a new data key', (t) => {
  const { key, bytes, digest } = sampleManifest();
  const to = TenantKey.generate({ sharing: key });
  const rewrapped = rewrapManifest(bytes, key, to);
  t.ok(shareDataKey(bytes, rewrapped));
  for (const owner of [key, to]) {
    const resealed = resealManifest(bytes, key, owner);
    const manifest = Manifest.open(resealed, owner);
    const old = Manifest.open(bytes, key);
    t.equal(manifest.digest, digest);
    t.same(manifest.metadata, old.metadata);
    for (let entry = 0; entry < old.storedChunks; entry++) t.same(manifest.ref(entry), old.ref(entry));
    t.notOk(shareDataKey(resealed, bytes));
    t.notOk(shareDataKey(resealed, resealManifest(bytes, key, owner)), 'a new data key each time');
    t.notOk(secretsOf(resealed, owner).dataKey.equals(secretsOf(bytes, key).dataKey));
    const header = clearBytesOf(old.storedChunks);
    const oldWrapping = Buffer.from(resealed);
    (owner === key ? bytes : rewrapped).copy(oldWrapping, header, header, header + 76);
    t.throws(
      () => Manifest.open(oldWrapping, owner),
      { code: 'CORRUPT' },
      'an old wrapped data key does not open the new body',
    );
  }
  t.throws(() => resealManifest(bytes, key, TenantKey.generate()), { code: 'USAGE' });
  const bad = Buffer.from(bytes);
  bad[bad.length - 30]! ^= 1;
  t.throws(() => resealManifest(bad, key, to), { code: 'CORRUPT' });
  t.end();
});

t.test('a key of another domain is refused with USAGE, even if only the secret differs', (t) => {
  const { key, bytes } = sampleManifest({ domain: 'team-a' });
  const refuses = (to: TenantKey, message: RegExp) =>
    t.throws(() => rewrapManifest(bytes, key, to), { code: 'USAGE', message });
  refuses(TenantKey.generate({ domain: 'team-b' }), /domain team-a.*of team-b/);
  refuses(TenantKey.generate({ domain: 'team-a' }), /same name but with another secret/);
  t.end();
});

t.test('a manifest that the old key does not open is not rewrapped', (t) => {
  const { key, bytes } = sampleManifest();
  const to = TenantKey.generate({ sharing: key });
  const stranger = TenantKey.generate({ sharing: key });
  t.throws(() => rewrapManifest(bytes, stranger, to), { code: 'KEY' });
  for (let bit = 0; bit < bytes.length * 8; bit += 3) {
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    try {
      rewrapManifest(bytes, key, to);
      t.fail(`bit ${bit} of byte ${bit >> 3}`);
    } catch (error) {
      if (!(error instanceof LazydiskError)) throw error;
      if (!['CORRUPT', 'KEY', 'UNSUPPORTED'].includes(error.code)) t.fail(`${bit}: ${error.code}`);
    }
    bytes[bit >> 3]! ^= 1 << (bit & 7);
  }
  for (let length = 0; length < bytes.length; length += 7)
    assert.throws(() => rewrapManifest(bytes.subarray(0, length), key, to), { code: 'CORRUPT' });
  t.ok(rewrapManifest(bytes, key, to), 'the unchanged manifest is rewrapped');
  t.end();
});
