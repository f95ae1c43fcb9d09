/**
 * The layer decoder compared with zlib's own functions: the same bytes and digests however input and output are split,
 * with consecutive members and frames, padding, and truncated or changed data.
 */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { deflateSync, gzipSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import t from 'tap';
import {
  DECODE_CORRUPT,
  DECODED,
  DECODER_COMPRESSIONS,
  decoderEnd,
  decoderOpen,
  decoderRun,
} from '../../native/index.ts';

type Compression = keyof typeof DECODER_COMPRESSIONS;

const COMPRESS = {
  none: (bytes: Buffer) => bytes,
  gzip: (bytes: Buffer) => gzipSync(bytes),
  zstd: (bytes: Buffer) => zstdCompressSync(bytes),
};

interface Decoded {
  readonly status: number;
  readonly tar: Buffer;
  readonly end: [boolean, string, string];
}

/** Decodes `blob` in pieces of `inputBytes` into an output of `outputBytes`, up to the first failure. */
async function decode(
  compression: Compression,
  blob: Buffer,
  { inputBytes = 65_536, outputBytes = 65_536, hash = 'sha256' } = {},
): Promise<Decoded> {
  const decoder = decoderOpen(DECODER_COMPRESSIONS[compression], hash, hash);
  const output = Buffer.alloc(outputBytes);
  const counts = Buffer.alloc(8);
  const parts: Buffer[] = [];
  let status = DECODED;
  for (let at = 0; at < blob.length && status === DECODED; at += inputBytes) {
    const input = blob.subarray(at, at + inputBytes);
    for (let used = 0, more = true; more && status === DECODED; ) {
      status = await new Promise<number>((resolve) =>
        decoderRun(decoder, input.subarray(used), output, counts, resolve),
      );
      if (status !== DECODED) break;
      used += counts.readUInt32LE(0);
      const made = counts.readUInt32LE(4);
      parts.push(Buffer.from(output.subarray(0, made)));
      more = used < input.length || made === output.length;
    }
  }
  return { status, tar: Buffer.concat(parts), end: decoderEnd(decoder) };
}

const hexOf = (bytes: Buffer, hash = 'sha256') => createHash(hash).update(bytes).digest('hex');

t.test('any number of members and frames, split anywhere, with or without padding, is decoded', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom<Compression>('gzip', 'zstd'),
      fc.array(fc.uint8Array({ maxLength: 3000 }), { minLength: 1, maxLength: 4 }),
      fc.integer({ min: 1, max: 5000 }),
      fc.integer({ min: 1, max: 5000 }),
      fc.constantFrom(0, 1, 700),
      async (compression, members, inputBytes, outputBytes, padding) => {
        const plain = members.map((bytes) => Buffer.from(bytes));
        const blob = Buffer.concat([...plain.map(COMPRESS[compression]), Buffer.alloc(padding)]);
        const { status, tar, end } = await decode(compression, blob, { inputBytes, outputBytes });
        assert.equal(status, DECODED);
        assert.ok(tar.equals(Buffer.concat(plain)));
        assert.deepEqual(end, [true, hexOf(blob), hexOf(tar)]);
      },
    ),
    { numRuns: 300 },
  );
  t.pass('holds');
});

t.test('a megabyte of noise or zeroes is decoded and hashed with both hashes', async (t) => {
  const plain = Buffer.concat([randomBytes(2 ** 20), Buffer.alloc(2 ** 20)]);
  for (const compression of ['none', 'gzip', 'zstd'] as const) {
    for (const hash of ['sha256', 'sha512']) {
      const blob = COMPRESS[compression](plain);
      const { tar, end } = await decode(compression, blob, { hash });
      if (compression !== 'none') t.ok(tar.equals(plain));
      t.same(end, [true, hexOf(blob, hash), hexOf(plain, hash)], `${compression} ${hash}`);
    }
  }
});

t.test('truncated input is not complete', async (t) => {
  for (const compression of ['gzip', 'zstd'] as const) {
    const blob = COMPRESS[compression](randomBytes(5000));
    for (const lengthBytes of [0, 1, 5, 2000, blob.length - 1]) {
      const { status, end } = await decode(compression, blob.subarray(0, lengthBytes));
      t.equal(status, DECODED);
      t.equal(end[0], false, `${compression} of ${lengthBytes} bytes`);
    }
  }
});

t.test('changed input is corrupt or decodes to other bytes, and never crashes the process', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom<Compression>('gzip', 'zstd'),
      fc.nat(4999),
      fc.integer({ min: 1, max: 255 }),
      async (compression, at, change) => {
        const blob = COMPRESS[compression](Buffer.alloc(20_000, 'text that compresses, and some more'));
        blob[at % blob.length]! ^= change;
        const { status, tar } = await decode(compression, blob);
        assert.ok(status === DECODED || status === DECODE_CORRUPT);
        assert.ok(tar.length <= 10_000_000);
      },
    ),
    { numRuns: 500 },
  );
  const garbage = Buffer.concat([gzipSync(Buffer.from('x')), Buffer.from('garbage')]);
  t.equal((await decode('gzip', garbage)).status, DECODE_CORRUPT, 'garbage after a member');
  t.equal((await decode('gzip', deflateSync(Buffer.from('x')))).status, DECODE_CORRUPT, 'zlib is not gzip');
  t.equal((await decode('zstd', gzipSync(Buffer.from('x')))).status, DECODE_CORRUPT);
  const noise = randomBytes(1000);
  noise[0] = 1;
  t.equal((await decode('gzip', noise)).status, DECODE_CORRUPT);
  t.equal((await decode('zstd', noise)).status, DECODE_CORRUPT);
});

t.test('invalid arguments, and two simultaneous runs, throw', async (t) => {
  const usage = { code: 'ERR_INVALID_ARG_TYPE' };
  t.throws(() => decoderOpen(3, '', ''), usage);
  t.throws(() => decoderOpen(1, 'md5', ''), usage);
  t.throws(() => decoderOpen(1, 'sha256 and more', ''), usage);
  const decoder = decoderOpen(1, '', 'sha256');
  const bytes = Buffer.alloc(8);
  const nothing = () => undefined;
  const run = decoderRun as (...args: unknown[]) => void;
  t.throws(() => run(decoder, bytes, bytes, Buffer.alloc(7), nothing), usage);
  t.throws(() => run(decoder, bytes, Buffer.alloc(0), bytes, nothing), usage);
  t.throws(() => run(decoder, 'text', bytes, bytes, nothing), usage);
  t.throws(() => run({}, bytes, bytes, bytes, nothing), usage);
  await new Promise<number>((resolve) => {
    decoderRun(decoder, gzipSync(bytes), Buffer.alloc(100), Buffer.alloc(8), resolve);
    t.throws(() => decoderRun(decoder, bytes, Buffer.alloc(100), Buffer.alloc(8), nothing), usage);
    t.throws(() => decoderEnd(decoder), usage);
  });
  t.same(decoderEnd(decoder), [true, '', hexOf(bytes)]);
});
