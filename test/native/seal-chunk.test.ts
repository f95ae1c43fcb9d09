/**
 * sealChunk compared with encodeChunk, the reference: the same bytes for any chunk, many at once; invalid arguments
 * throw.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import { OPEN_OK, openChunk, sealChunk } from '../../native/index.ts';
import { encodeChunk } from '../../src/format/chunk-codec.ts';
import { CHUNK_BYTES, chunkIdOf, ID_BYTES, KEY_BYTES, SEALED_BYTES_MAX } from '../../src/format/chunk-id.ts';

const salt = Buffer.alloc(32, 'salt');

interface Sealed {
  readonly id: Buffer;
  readonly key: Buffer;
  readonly sealed: Buffer;
}

function seal(plain: Uint8Array, room = Buffer.alloc(SEALED_BYTES_MAX), under = salt): Promise<Sealed> {
  return new Promise((resolve) => {
    const id = Buffer.alloc(ID_BYTES);
    const key = Buffer.alloc(KEY_BYTES);
    sealChunk(plain, under, room, id, key, (length) =>
      resolve({ id, key, sealed: room.subarray(0, length) }),
    );
  });
}

function check(made: Sealed, plain: Buffer, under = salt): void {
  const { id, key, sealed } = encodeChunk(plain, under);
  assert.equal(chunkIdOf(made.id), id);
  assert.ok(made.key.equals(key) && made.sealed.equals(sealed), 'byte for byte');
}

t.test('patterns and noise, with any salt, are sealed as by the reference', async (t) => {
  const chunk = fc
    .tuple(fc.uint8Array({ minLength: 1, maxLength: 200 }), fc.nat(CHUNK_BYTES), fc.nat(CHUNK_BYTES))
    .map(([pattern, from, bytes]) => {
      const plain = Buffer.alloc(CHUNK_BYTES, pattern);
      randomBytes(CHUNK_BYTES).copy(plain, from, 0, bytes);
      return plain;
    });
  const anySalt = fc.uint8Array({ minLength: 1, maxLength: 200 }).map((bytes) => Buffer.from(bytes));
  await fc.assert(
    fc.asyncProperty(chunk, anySalt, async (plain, under) => {
      const copy = Buffer.from(plain);
      check(await seal(plain, undefined, under), plain, under);
      assert.ok(plain.equals(copy), 'the chunk is not changed');
    }),
    { numRuns: 60 },
  );
  t.pass('holds');
});

t.test('many chunks of a real program are sealed at once, in reused buffers', async (t) => {
  const program = readFileSync(process.execPath).subarray(0, 48 * CHUNK_BYTES);
  const chunks = Array.from({ length: 48 }, (_, n) =>
    program.subarray(n * CHUNK_BYTES, (n + 1) * CHUNK_BYTES),
  );
  const rooms = chunks.slice(0, 24).map(() => Buffer.alloc(SEALED_BYTES_MAX, 0xee));
  for (const half of [chunks.slice(0, 24), chunks.slice(24)]) {
    const made = await Promise.all(half.map((plain, n) => seal(plain, rooms[n])));
    for (const [n, one] of made.entries()) check(one, half[n]!);
  }
  t.pass('all of them');
});

t.test('one byte to a whole chunk is sealed into just enough room, and openChunk opens it', async (t) => {
  for (const length of [1, 2, 15, 16, 17, 1000, 131_072, CHUNK_BYTES - 1, CHUNK_BYTES]) {
    for (const plain of [Buffer.alloc(length, 'a'), randomBytes(length)]) {
      const around = Buffer.alloc(length + 17 + 64, 0xee);
      const { sealed, id, key } = await seal(plain, around.subarray(32, 32 + length + 17));
      t.ok(sealed.length >= 18 && sealed.length <= length + 17);
      t.ok(
        around.subarray(0, 32).every((byte) => byte === 0xee) &&
          around.subarray(-32).every((b) => b === 0xee),
      );
      const target = Buffer.alloc(length);
      t.equal(await new Promise((resolve) => openChunk(sealed, id, key, target, resolve)), OPEN_OK);
      t.ok(target.equals(plain), `${length} bytes`);
    }
  }
});

t.test('invalid arguments throw, and no callback is called', async (t) => {
  const call = sealChunk as (...values: unknown[]) => void;
  const never = () => t.fail('called back');
  const good: unknown[] = [
    Buffer.alloc(100),
    salt,
    Buffer.alloc(117),
    Buffer.alloc(32),
    Buffer.alloc(32),
    never,
  ];
  const withArgument = (at: number, value: unknown) => good.map((old, n) => (n === at ? value : old));
  const bad: unknown[][] = [
    [],
    good.slice(0, 5),
    ...good.map((_, at) => withArgument(at, undefined)),
    ...good.map((_, at) => withArgument(at, 'text')),
    withArgument(0, Buffer.alloc(0)),
    withArgument(0, Buffer.alloc(CHUNK_BYTES + 1)),
    withArgument(0, new Uint16Array(50)),
    withArgument(1, Buffer.alloc(0)),
    withArgument(2, Buffer.alloc(116)),
    withArgument(3, Buffer.alloc(31)),
    withArgument(4, Buffer.alloc(33)),
  ];
  for (const [n, values] of bad.entries()) t.throws(() => call(...values), TypeError, `case ${n}`);
});
