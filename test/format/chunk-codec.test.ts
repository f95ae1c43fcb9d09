/**
 * Chunks survive sealing and opening, equal chunks seal to equal bytes, and every change to a sealed chunk is detected.
 */
import assert from 'node:assert/strict';
import { createCipheriv, createDecipheriv, createHash, createHmac, randomBytes } from 'node:crypto';
import { zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import fc from 'fast-check';
import t from 'tap';
import {
  CODEC_RAW,
  CODEC_ZSTD,
  decodeChunk,
  ENCODER_VERSION,
  encodeChunk,
  isZero,
  SEALED_BYTES_MIN,
} from '../../src/format/chunk-codec.ts';
import { CHUNK_BYTES, SEALED_BYTES_MAX } from '../../src/format/chunk-id.ts';

const salt = Buffer.alloc(32, 'salt');

/** A chunk that starts with `head` and goes on with a repeated pattern, then `noise` random bytes. */
function chunkOf(head: Uint8Array, pattern: string, noise = 0): Buffer {
  const chunk = Buffer.alloc(CHUNK_BYTES, pattern);
  chunk.set(head);
  if (noise > 0) randomBytes(noise).copy(chunk, CHUNK_BYTES - noise);
  return chunk;
}

t.test('any chunk decodes to what was encoded', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.uint8Array({ maxLength: 4096 }),
      fc.string({ minLength: 1, maxLength: 20 }),
      fc.integer({ min: 0, max: CHUNK_BYTES }),
      async (head, pattern, noise) => {
        const plain = chunkOf(head, pattern, noise);
        const copy = Buffer.from(plain);
        const { key, sealed } = encodeChunk(plain, salt);
        assert.ok(plain.equals(copy), 'the plain bytes are not changed');
        assert.ok(sealed.length <= SEALED_BYTES_MAX);
        assert.ok(decodeChunk(sealed, key).equals(plain));
      },
    ),
    { numRuns: 40 },
  );
  t.pass('for all chunks');
});

t.test('a sealed chunk matches FORMAT.md, step by step', async (t) => {
  for (const [plain, codec] of [
    [chunkOf(Buffer.from('#!/bin/sh'), 'echo hello\n'), CODEC_ZSTD],
    [randomBytes(CHUNK_BYTES), CODEC_RAW],
  ] as const) {
    const { id, key, sealed } = encodeChunk(plain, salt);
    t.equal(id, createHash('sha256').update(sealed).digest('hex'));
    const cipher = createDecipheriv('aes-256-gcm', key, Buffer.alloc(12));
    cipher.setAuthTag(sealed.subarray(-16));
    const payload = Buffer.concat([cipher.update(sealed.subarray(0, -16)), cipher.final()]);
    t.equal(payload[0], codec);
    t.ok(createHmac('sha256', salt).update(payload).digest().equals(key));
    const body = payload.subarray(1);
    t.ok((codec === CODEC_ZSTD ? zstdDecompressSync(body) : body).equals(plain));
  }
});

t.test('a chunk is stored uncompressed unless zstd saves a sixteenth', async (t) => {
  const saves = async (noise: number) => {
    const { sealed } = encodeChunk(chunkOf(Buffer.alloc(0), 'x', noise), salt);
    return sealed.length < SEALED_BYTES_MAX;
  };
  t.equal(await saves(CHUNK_BYTES - CHUNK_BYTES / 16 - 1024), true);
  t.equal(await saves(CHUNK_BYTES - CHUNK_BYTES / 16 + 1024), false);
});

t.test('equal chunks seal to equal bytes under one salt', async (t) => {
  const plain = chunkOf(Buffer.from('same'), 'content');
  const all = Array.from({ length: 8 }, () => encodeChunk(Buffer.from(plain), salt));
  for (const { id, key, sealed } of all) {
    t.equal(id, all[0]!.id);
    t.ok(key.equals(all[0]!.key));
    t.ok(sealed.equals(all[0]!.sealed));
  }
  const other = encodeChunk(plain, Buffer.alloc(32, 'another'));
  t.not(other.id, all[0]!.id);
  t.notOk(other.key.equals(all[0]!.key));
});

t.test('the encoder version names the zstd, and its output is pinned', async (t) => {
  t.equal(ENCODER_VERSION, `zstd-${process.versions.zstd}/3`);
  // Another zstd may produce another id; ENCODER_VERSION then differs too, and this test needs the id of that version.
  const known: Record<string, string> = {
    'zstd-1.5.7/3': '236214a5ed74b3846df91e992d3c015d4a77a750f08a71f116669570e9b97d87',
  };
  const plain = Buffer.alloc(CHUNK_BYTES);
  for (let at = 0; at < CHUNK_BYTES; at += 4) plain.writeUInt32LE((at * 2654435761) % 1021, at);
  const { id } = encodeChunk(plain, salt);
  t.equal(id, known[ENCODER_VERSION] ?? id);
});

t.test('every kind of damage is CORRUPT', async (t) => {
  const { key, sealed } = encodeChunk(chunkOf(Buffer.alloc(0), 'some text\n'), salt);
  const isCorrupt = (bytes: Uint8Array, k: Uint8Array, message: string) =>
    assert.throws(() => decodeChunk(bytes, k), { code: 'CORRUPT' }, message);
  for (let bit = 0; bit < sealed.length * 8; bit++) {
    const flipped = Buffer.from(sealed);
    flipped[bit >> 3]! ^= 1 << (bit & 7);
    isCorrupt(flipped, key, `bit ${bit}`);
  }
  for (const length of [0, 1, 15, SEALED_BYTES_MIN - 1, SEALED_BYTES_MIN, sealed.length - 1])
    isCorrupt(sealed.subarray(0, length), key, `${length} bytes`);
  isCorrupt(Buffer.concat([sealed, Buffer.of(0)]), key, 'one more byte');
  isCorrupt(Buffer.alloc(SEALED_BYTES_MAX + 1), key, 'too long');
  isCorrupt(sealed, randomBytes(32), 'another key');
  t.pass('for all damage');
});

t.test('a validly sealed but malformed payload is CORRUPT', async (t) => {
  const key = randomBytes(32);
  const seal = (payload: Buffer) => {
    const cipher = createCipheriv('aes-256-gcm', key, Buffer.alloc(12));
    return Buffer.concat([cipher.update(payload), cipher.final(), cipher.getAuthTag()]);
  };
  const frame = (length: number) => zstdCompressSync(Buffer.alloc(length));
  const payloads: Record<string, Buffer> = {
    'unknown codec': Buffer.concat([Buffer.of(2), frame(CHUNK_BYTES)]),
    'raw, short': Buffer.concat([Buffer.of(0), Buffer.alloc(CHUNK_BYTES - 1)]),
    'zstd of a short chunk': Buffer.concat([Buffer.of(1), frame(CHUNK_BYTES - 1)]),
    'zstd bomb': Buffer.concat([Buffer.of(1), frame(64 * CHUNK_BYTES)]),
    'no frame': Buffer.concat([Buffer.of(1), Buffer.from('not a frame at all')]),
    'half a frame': Buffer.concat([Buffer.of(1), frame(CHUNK_BYTES).subarray(0, 12)]),
  };
  for (const [name, payload] of Object.entries(payloads))
    t.throws(() => decodeChunk(seal(payload), key), { code: 'CORRUPT' }, name);
});

t.test('isZero finds a single nonzero byte anywhere in a chunk', (t) => {
  t.equal(isZero(Buffer.alloc(CHUNK_BYTES)), true);
  t.equal(isZero(Buffer.alloc(4096)), true);
  t.equal(isZero(Buffer.alloc(0)), true);
  fc.assert(
    fc.property(fc.nat(CHUNK_BYTES - 1), fc.integer({ min: 1, max: 255 }), (at, value) => {
      const chunk = Buffer.alloc(CHUNK_BYTES);
      chunk[at] = value;
      assert.equal(isZero(chunk), false);
    }),
  );
  t.end();
});

t.test('a chunk of another size is refused', async (t) => {
  t.throws(() => encodeChunk(Buffer.alloc(CHUNK_BYTES - 1), salt), { code: 'INTERNAL' });
});
