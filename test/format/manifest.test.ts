/**
 * Manifests: parts survive sealing and opening, the digest is that of the content, and corrupt or forged ones are
 * refused.
 */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { inspect } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { type ErrorCode, LazydiskError } from '../../src/errors.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { Manifest } from '../../src/format/manifest.ts';
import { CLEAR, clearBytesOf, DISK_CHUNKS_MAX } from '../../src/format/manifest-layout.ts';
import type { RunConfig } from '../../src/format/manifest-metadata.ts';
import { resealManifest, rewrapManifest } from '../../src/format/manifest-rewrap.ts';
import { sealManifest } from '../../src/format/manifest-seal.ts';
import {
  forgeMetadata,
  sampleEntries,
  sampleManifest,
  sampleMetadata,
  sampleParts,
  secretsOf,
} from './samples.ts';

/** Returns the code that opening fails with, or undefined if it succeeds. Any other kind of error fails the test. */
function failureOf(bytes: Buffer, key: TenantKey): ErrorCode | undefined {
  try {
    Manifest.open(bytes, key);
    return undefined;
  } catch (error) {
    if (error instanceof LazydiskError) return error.code;
    throw error;
  }
}

t.test('a manifest returns any set of chunks that was sealed', (t) => {
  const key = TenantKey.generate();
  fc.assert(
    fc.property(fc.uniqueArray(fc.nat(2047), { maxLength: 300 }), (indices) => {
      const entries = sampleEntries(indices.sort((a, b) => a - b));
      const { digest, bytes } = sealManifest(sampleParts(key, { entries }));
      const manifest = Manifest.open(bytes, key);
      assert.equal(manifest.digest, digest);
      assert.equal(manifest.chunkCount, 2048);
      assert.equal(manifest.storedChunks, entries.length);
      const byIndex = new Map(entries.map(({ index, ref }) => [index, ref]));
      for (let index = 0; index < 2050; index++) {
        const entry = manifest.entryOf(index);
        const ref = byIndex.get(index);
        if (!ref) assert.equal(entry, -1);
        else {
          assert.equal(manifest.indexOf(entry), index);
          assert.deepEqual(manifest.ref(entry), ref);
          assert.equal(manifest.ref(entry), manifest.ref(entry), 'created once');
        }
      }
    }),
    { numRuns: 20 },
  );
  t.pass('for all sets');
  t.end();
});

t.test('a large manifest is opened in slices, and the event loop runs between them', async (t) => {
  const key = TenantKey.generate();
  const [entry] = sampleEntries([0]);
  const entries = Array.from({ length: 300_000 }, (_, index) => ({ ...entry!, index }));
  const { digest, bytes } = sealManifest(sampleParts(key, { entries, diskBytes: 300_000 * CHUNK_BYTES }));
  let turns = 0;
  let opening = true;
  const turn = () => {
    turns++;
    if (opening) setImmediate(turn);
  };
  setImmediate(turn);
  const manifest = await Manifest.openInSlices(bytes, key);
  opening = false;
  t.equal(manifest.digest, digest);
  t.same(manifest.ref(299_999), entry!.ref);
  t.equal(manifest.entryOf(299_999), 299_999);
  // It is 22 MB, which no machine verifies and decrypts in four milliseconds.
  t.ok(turns > 4, `${turns} turns`);
  const torn = Buffer.from(bytes);
  torn[torn.length - 20]! ^= 1;
  await t.rejects(Manifest.openInSlices(torn, key), { code: 'CORRUPT' });
});

t.test('opening returns the header fields and the metadata that were sealed', (t) => {
  const key = TenantKey.generate({ domain: 'team-a' });
  const { digest, bytes } = sealManifest(sampleParts(key, { saltEpoch: 7 }));
  const manifest = Manifest.open(bytes, key);
  t.same(manifest.metadata, sampleMetadata);
  t.equal(manifest.diskBytes, 2048 * CHUNK_BYTES);
  const clear = Manifest.readClear(bytes.subarray(0, clearBytesOf(4)));
  t.match(clear, { writerVersion: 'test/1', encoderVersion: 'zstd-1.5.7/3', domain: 'team-a', saltEpoch: 7 });
  t.equal(clear.sealedBytes(), 1000 + 1001 + 1007 + 1047);
  t.equal(
    digest,
    `sha256:${createHash('sha256')
      .update(bytes.subarray(0, clearBytesOf(4)))
      .digest('hex')}`,
  );
  t.throws(() => manifest.ref(4), { code: 'INTERNAL' });
  t.throws(() => manifest.indexOf(-1), { code: 'INTERNAL' });
  t.end();
});

t.test('a manifest opens at any alignment of its bytes in memory', (t) => {
  const { key, bytes, digest } = sampleManifest();
  const shifted = Buffer.concat([Buffer.alloc(3), bytes]).subarray(3);
  t.equal(Manifest.open(shifted, key).digest, digest);
  t.end();
});

t.test('the digest depends on the content and the domain, not on the key or the run', (t) => {
  const a = TenantKey.generate();
  const b = TenantKey.generate({ sharing: a });
  const first = sealManifest(sampleParts(a));
  t.equal(sealManifest(sampleParts(a)).digest, first.digest);
  t.notOk(sealManifest(sampleParts(a)).bytes.equals(first.bytes), 'data keys are fresh');
  t.equal(sealManifest(sampleParts(b)).digest, first.digest, 'another tenant of the domain');
  const labels = { a: '1', b: '2' };
  const config = { ...sampleMetadata.config, labels };
  t.equal(
    sealManifest(sampleParts(a, { metadata: { ...sampleMetadata, config } })).digest,
    first.digest,
    'order of labels',
  );

  const digests = [
    first,
    sealManifest(sampleParts(TenantKey.generate())),
    sealManifest(sampleParts(a, { metadata: { ...sampleMetadata, os: 'plan9' } })),
    sealManifest(sampleParts(a, { entries: sampleEntries([0, 1, 8, 2047]) })),
    sealManifest(sampleParts(a, { diskBytes: 4096 * CHUNK_BYTES })),
    sealManifest(sampleParts(a, { writerVersion: 'test/2' })),
  ].map(({ digest }) => digest);
  t.equal(new Set(digests).size, digests.length);
  t.end();
});

t.test('no secret is in the clear', (t) => {
  const { bytes, key } = sampleManifest();
  t.equal(bytes.indexOf('hunter2'), -1);
  t.equal(bytes.indexOf('/bin/sh'), -1);
  for (const { ref } of sampleEntries([0, 1, 7, 2047])) t.equal(bytes.indexOf(ref.key.subarray(0, 8)), -1);
  t.notMatch(inspect(Manifest.open(bytes, key), { depth: 1, showHidden: true }), /6b 65 79 20/);
  t.end();
});

t.test('every flipped bit is detected', (t) => {
  const { bytes, key } = sampleManifest();
  const codes = new Set<ErrorCode | undefined>();
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    const code = failureOf(bytes, key);
    if (code === undefined) t.fail(`bit ${bit} of byte ${bit >> 3}`);
    codes.add(code);
    bytes[bit >> 3]! ^= 1 << (bit & 7);
  }
  t.same([...codes].sort(), ['CORRUPT', 'KEY', 'UNSUPPORTED']);
  t.equal(failureOf(bytes, key), undefined, 'without a flip it opens');
  t.end();
});

t.test('every truncation and every extension is detected', (t) => {
  const { bytes, key } = sampleManifest();
  for (let length = 0; length < bytes.length; length++)
    assert.equal(failureOf(bytes.subarray(0, length), key), 'CORRUPT');
  t.equal(failureOf(Buffer.concat([bytes, Buffer.of(0)]), key), 'CORRUPT');
  t.end();
});

t.test('a key does not open the manifest of another key', (t) => {
  const { bytes, key, digest } = sampleManifest();
  const stranger = TenantKey.generate({ sharing: key });
  t.throws(() => Manifest.open(bytes, stranger), {
    code: 'KEY',
    message: new RegExp(`${key.id}.*${stranger.id}`),
  });
  t.equal(Manifest.readClear(bytes).digest, digest, 'its clear part needs no key');
  t.end();
});

t.test(
  'metadata that the digest does not bind is CORRUPT, even if it is sealed with the right data key',
  (t) => {
    const former = TenantKey.generate();
    const { bytes } = sealManifest(sampleParts(former));
    const { dataKey, keys } = secretsOf(bytes, former);
    const owner = TenantKey.generate({ sharing: former });
    const rewrapped = rewrapManifest(bytes, former, owner);
    const forged = (config: Partial<RunConfig>) =>
      forgeMetadata(
        rewrapped,
        dataKey,
        { ...sampleMetadata, config: { ...sampleMetadata.config, ...config } },
        keys,
      );
    t.equal(failureOf(forged({}), owner), undefined, 'a forgery of the same metadata opens');
    for (const config of [{ user: '0' }, { cmd: ['-c', 'evil'] }, { entrypoint: [] }, { labels: { c: '3' } }])
      t.equal(failureOf(forged(config), owner), 'CORRUPT', JSON.stringify(config));
    const resealed = resealManifest(rewrapped, owner, owner);
    const { clearBytes } = Manifest.readClear(bytes);
    const mixed = Buffer.concat([
      resealed.subarray(0, clearBytes + 80),
      forged({}).subarray(clearBytes + 80),
    ]);
    t.equal(
      failureOf(mixed, owner),
      'CORRUPT',
      'a former data key cannot forge the body of a resealed manifest',
    );
    t.end();
  },
);

t.test(
  'a key of another domain does not open an image, even if its data key is wrapped for that key',
  (t) => {
    const { bytes, key } = sampleManifest({ domain: 'team-a' });
    const { dataKey } = secretsOf(bytes, key);
    const { digest, clearBytes } = Manifest.readClear(bytes);
    const wrappedFor = (to: TenantKey) => {
      const wrapped = Buffer.from(bytes);
      wrapped.write(to.id, clearBytes, 'latin1');
      to.wrap(dataKey, Buffer.from(digest.slice('sha256:'.length), 'hex')).copy(wrapped, clearBytes + 16);
      return wrapped;
    };
    const sibling = TenantKey.generate({ sharing: key });
    t.equal(failureOf(wrappedFor(sibling), sibling), undefined);
    const named = TenantKey.generate({ domain: 'team-b' });
    t.equal(failureOf(wrappedFor(named), named), 'KEY');
    const namesake = TenantKey.generate({ domain: 'team-a' });
    t.equal(failureOf(wrappedFor(namesake), namesake), 'CORRUPT', 'of the same name with another secret');
    t.end();
  },
);

t.test('parts of two manifests do not open when combined', (t) => {
  const key = TenantKey.generate();
  const a = sealManifest(sampleParts(key)).bytes;
  const b = sealManifest(sampleParts(key, { writerVersion: 'test/2' })).bytes;
  const clearBytes = clearBytesOf(4);
  t.equal(failureOf(Buffer.concat([a.subarray(0, clearBytes), b.subarray(clearBytes)]), key), 'KEY');
  const again = sealManifest(sampleParts(key)).bytes;
  const header = clearBytes + 80;
  const mixed = Buffer.concat([a.subarray(0, header), again.subarray(header)]);
  t.equal(failureOf(mixed, key), 'CORRUPT', 'one image, two data keys');
  t.end();
});

t.test(
  'a manifest that only a broken or hostile writer produces is refused before memory is allocated for it',
  (t) => {
    const { bytes, key } = sampleManifest();
    const altered = (change: (bytes: Buffer) => void) => {
      const copy = Buffer.from(bytes);
      change(copy);
      return copy;
    };
    const table = 200;
    const cases: [string, ErrorCode, (bytes: Buffer) => void][] = [
      ['another magic', 'CORRUPT', (b) => b.write('NOTADISK', 0)],
      ['version 0', 'UNSUPPORTED', (b) => b.writeUInt32LE(0, CLEAR.version)],
      ['version 2', 'UNSUPPORTED', (b) => b.writeUInt32LE(2, CLEAR.version)],
      ['another chunk size', 'UNSUPPORTED', (b) => b.writeUInt32LE(1 << 20, CLEAR.chunkBytes)],
      ['a flag', 'UNSUPPORTED', (b) => b.writeUInt32LE(1, CLEAR.flags)],
      ['reserved bits', 'UNSUPPORTED', (b) => b.writeUInt32LE(0x80000000, CLEAR.reserved)],
      ['no disk', 'CORRUPT', (b) => b.writeBigUInt64LE(0n, CLEAR.diskBytes)],
      ['a disk with half a chunk', 'CORRUPT', (b) => b.writeBigUInt64LE(4096n, CLEAR.diskBytes)],
      [
        'a disk of 16 EiB',
        'CORRUPT',
        (b) => b.writeBigUInt64LE(2n ** 64n - BigInt(CHUNK_BYTES), CLEAR.diskBytes),
      ],
      [
        'a disk over the bound',
        'CORRUPT',
        (b) => b.writeBigUInt64LE(BigInt(DISK_CHUNKS_MAX + 1) * BigInt(CHUNK_BYTES), CLEAR.diskBytes),
      ],
      ['4 Gi entries', 'CORRUPT', (b) => b.writeUInt32LE(0xffffffff, CLEAR.storedChunks)],
      ['one entry more', 'CORRUPT', (b) => b.writeUInt32LE(5, CLEAR.storedChunks)],
      ['a chunk past the end of the disk', 'CORRUPT', (b) => b.writeUInt32LE(2048, table + 12)],
      ['chunks out of order', 'CORRUPT', (b) => b.writeUInt32LE(9, table + 4)],
      ['a chunk twice', 'CORRUPT', (b) => b.writeUInt32LE(0, table + 4)],
      ['a sealed length of 0', 'CORRUPT', (b) => b.writeUInt32LE(0, table + 16)],
      ['a sealed length of 4 GiB', 'CORRUPT', (b) => b.writeUInt32LE(0xffffffff, table + 16)],
      ['no domain', 'CORRUPT', (b) => b.fill(0, CLEAR.domain, CLEAR.metadataMac)],
      ['a domain without a terminator', 'CORRUPT', (b) => b.fill('x', CLEAR.domain, CLEAR.metadataMac)],
      ['a domain with a tail', 'CORRUPT', (b) => b.write('x', CLEAR.metadataMac - 1)],
      ['a domain that is not text', 'CORRUPT', (b) => b.write('\x1b', CLEAR.domain, 'latin1')],
      ['a body of 4 GiB', 'CORRUPT', (b) => b.writeUInt32LE(0xffffffff, clearBytesOf(4) + 76)],
      ['an empty body', 'CORRUPT', (b) => b.writeUInt32LE(0, clearBytesOf(4) + 76)],
    ];
    for (const [name, code, change] of cases) t.equal(failureOf(altered(change), key), code, name);
    t.end();
  },
);

t.test('noise, and manifests with noise in them, fail to open with a LazydiskError', (t) => {
  const { bytes, key } = sampleManifest();
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 2000 }), (noise) => {
      assert.notEqual(failureOf(Buffer.from(noise), key), undefined);
    }),
  );
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.uint8Array({ minLength: 1, maxLength: 64 }), (at, noise) => {
      const altered = Buffer.from(bytes);
      altered.set(noise.subarray(0, bytes.length - at), at);
      if (!altered.equals(bytes)) assert.notEqual(failureOf(altered, key), undefined);
    }),
    { numRuns: 500 },
  );
  t.pass('for all noise');
  t.end();
});

t.test('parts that no reader would accept are not sealed', (t) => {
  const key = TenantKey.generate();
  const refuses = (overrides: Parameters<typeof sampleParts>[1], code: string, name: string) =>
    t.throws(() => sealManifest(sampleParts(key, overrides)), { code }, name);
  refuses({ entries: sampleEntries([1, 0]) }, 'CORRUPT', 'out of order');
  refuses({ entries: sampleEntries([2048]) }, 'CORRUPT', 'past the end of the disk');
  refuses({ diskBytes: CHUNK_BYTES + 1 }, 'INTERNAL', 'half a chunk');
  refuses({ diskBytes: 0 }, 'INTERNAL', 'no disk');
  refuses({ writerVersion: 'x'.repeat(32) }, 'INTERNAL', 'a long version');
  const env = ['X='.padEnd(9 << 20, 'x')];
  const metadata = { ...sampleMetadata, config: { ...sampleMetadata.config, env } };
  refuses({ metadata }, 'USAGE', 'a huge environment');
  t.end();
});

t.test('the manifest of a full 64 GiB disk opens and finds its chunks', (t) => {
  const count = 131072;
  const id = randomBytes(32).toString('hex') as ReturnType<typeof sampleEntries>[0]['ref']['id'];
  const ref = { id, key: randomBytes(32), sealedBytes: 5000 };
  const entries = Array.from({ length: count }, (_, index) => ({ index, ref }));
  const key = TenantKey.generate();
  const { bytes } = sealManifest(sampleParts(key, { diskBytes: count * CHUNK_BYTES, entries }));
  const manifest = Manifest.open(bytes, key);
  for (const index of [0, 1, 65535, 65536, count - 1]) t.equal(manifest.entryOf(index), index);
  t.equal(manifest.entryOf(count), -1);
  t.end();
});
