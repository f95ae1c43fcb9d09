/** openChunk compared with node:crypto and node:zlib: it opens what they seal, and every other input has its status. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createCipheriv, createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, constants, openSync } from 'node:fs';
import { open as openFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import t from 'tap';
import { ADDON_PATH } from '../../native/build.ts';
import { OPEN_BAD_PAYLOAD, OPEN_OK, OPEN_WRONG_ID, OPEN_WRONG_TAG, openChunk } from '../../native/index.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';

interface Sealed {
  readonly sealed: Buffer;
  readonly id: Buffer;
  readonly key: Buffer;
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest();
}

/** Seals any payload, including ones that no encoder would produce. */
function seal(payload: Uint8Array, key = randomBytes(32)): Sealed {
  const cipher = createCipheriv('aes-256-gcm', key, Buffer.alloc(12));
  const sealed = Buffer.concat([cipher.update(payload), cipher.final(), cipher.getAuthTag()]);
  return { sealed, id: sha256(sealed), key };
}

function encode(plain: Uint8Array, codec: 'raw' | 'zstd'): Buffer {
  const body = codec === 'raw' ? plain : zstdCompressSync(plain);
  return Buffer.concat([Buffer.of(codec === 'raw' ? 0 : 1), body]);
}

function open({ sealed, id, key }: Sealed, target: Uint8Array): Promise<number> {
  return new Promise((resolve) => openChunk(sealed, id, key, target, resolve));
}

const anyPlain = fc
  .tuple(fc.uint8Array({ minLength: 1, maxLength: 300 }), fc.integer({ min: 1, max: 1500 }))
  .map(([unit, times]) => Buffer.concat(Array.from({ length: times }, () => unit)));
const anyCodec = fc.constantFrom('raw' as const, 'zstd' as const);

t.test('opens what the reference seals, whatever the content and length', async (t) => {
  await fc.assert(
    fc.asyncProperty(anyPlain, anyCodec, async (plain, codec) => {
      const target = Buffer.alloc(plain.length, 0xee);
      assert.equal(await open(seal(encode(plain, codec)), target), OPEN_OK);
      assert.ok(target.equals(plain), 'the same bytes');
    }),
    { numRuns: 60 },
  );
  t.pass('holds');
});

t.test('opens whole chunks of both codecs, many at once, each into its own slot', async (t) => {
  const slab = Buffer.alloc(24 * CHUNK_BYTES);
  const chunks = Array.from({ length: 24 }, (_, at) => {
    const plain = at % 2 ? randomBytes(CHUNK_BYTES) : Buffer.alloc(CHUNK_BYTES, `chunk ${at} `);
    return { plain, sealed: seal(encode(plain, at % 2 ? 'raw' : 'zstd')) };
  });
  const slot = (at: number) => slab.subarray(at * CHUNK_BYTES, (at + 1) * CHUNK_BYTES);
  const statuses = await Promise.all(chunks.map(({ sealed }, at) => open(sealed, slot(at))));
  t.ok(statuses.every((status) => status === OPEN_OK));
  for (const [at, { plain }] of chunks.entries()) t.ok(slot(at).equals(plain), `chunk ${at}`);
});

t.test('any changed byte, and any truncation, is a wrong id', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      anyPlain,
      anyCodec,
      fc.nat(),
      fc.integer({ min: 1, max: 255 }),
      async (plain, codec, at, flip) => {
        const good = seal(encode(plain, codec));
        const bad = Buffer.from(good.sealed);
        bad[at % bad.length]! ^= flip;
        const target = Buffer.alloc(plain.length);
        assert.equal(await open({ ...good, sealed: bad }, target), OPEN_WRONG_ID);
        const cut = good.sealed.subarray(0, at % good.sealed.length);
        assert.equal(await open({ ...good, sealed: cut }, target), OPEN_WRONG_ID);
      },
    ),
    { numRuns: 40 },
  );
  t.pass('holds');
});

t.test('changed bytes with a matching id, or another key, are a wrong tag', async (t) => {
  await fc.assert(
    fc.asyncProperty(anyPlain, anyCodec, fc.nat(), async (plain, codec, at) => {
      const good = seal(encode(plain, codec));
      const bad = Buffer.from(good.sealed);
      bad[at % bad.length]! ^= 0x40;
      const target = Buffer.alloc(plain.length);
      assert.equal(await open({ ...good, sealed: bad, id: sha256(bad) }, target), OPEN_WRONG_TAG);
      assert.equal(await open({ ...good, key: randomBytes(32) }, target), OPEN_WRONG_TAG);
      assert.equal(await open(good, target), OPEN_OK, 'and the thread still opens a good chunk');
    }),
    { numRuns: 40 },
  );
  t.pass('holds');
});

t.test('an authentic payload that is not a chunk of this length is refused', async (t) => {
  const plain = Buffer.alloc(4096, 'x');
  const frame = zstdCompressSync(plain);
  const cases: [string, Uint8Array][] = [
    ['no payload', Buffer.alloc(0)],
    ['a codec byte alone', Buffer.of(0)],
    ['a zstd codec byte alone', Buffer.of(1)],
    ['an unknown codec', Buffer.concat([Buffer.of(2), plain])],
    ['raw, a byte short', encode(plain.subarray(1), 'raw')],
    ['raw, a byte long', encode(Buffer.alloc(4097), 'raw')],
    ['zstd of a byte less', encode(plain.subarray(1), 'zstd')],
    ['zstd of a byte more', encode(Buffer.alloc(4097), 'zstd')],
    ['zstd of far more', encode(Buffer.alloc(64 * 1024 * 1024), 'zstd')],
    ['a cut frame', Buffer.concat([Buffer.of(1), frame.subarray(0, -1)])],
    ['a frame and a byte', Buffer.concat([Buffer.of(1), frame, Buffer.of(0)])],
    ['no frame', Buffer.concat([Buffer.of(1), randomBytes(100)])],
    ['longer than any chunk', Buffer.alloc(1 + CHUNK_BYTES + 1)],
  ];
  for (const [name, payload] of cases) {
    t.equal(await open(seal(payload), Buffer.alloc(4096)), OPEN_BAD_PAYLOAD, name);
  }
  for (const length of [0, 1, 15]) {
    const sealed = randomBytes(length);
    const status = await open({ sealed, id: sha256(sealed), key: randomBytes(32) }, Buffer.alloc(4096));
    t.equal(status, OPEN_BAD_PAYLOAD, `${length} bytes, too short for a tag`);
  }
});

t.test('a decoder never writes outside its target', async (t) => {
  const guard = 64;
  await fc.assert(
    fc.asyncProperty(
      fc.uint8Array({ maxLength: 2000 }),
      fc.integer({ min: 0, max: 3000 }),
      async (noise, length) => {
        const whole = Buffer.alloc(length + 2 * guard, 0xaa);
        const frame = zstdCompressSync(Buffer.alloc(2500, 'z'));
        // Damage in the middle of a frame passes the check of its header.
        noise.subarray(0, 4).forEach((byte, at) => {
          frame[(byte + at * 7) % frame.length]! ^= byte | 1;
        });
        await open(seal(Buffer.concat([Buffer.of(1), frame])), whole.subarray(guard, guard + length));
        const outside = Buffer.concat([whole.subarray(0, guard), whole.subarray(guard + length)]);
        assert.ok(outside.equals(Buffer.alloc(2 * guard, 0xaa)));
      },
    ),
    { numRuns: 200 },
  );
  t.pass('holds');
});

t.test('buffers are kept alive while a job uses them, even without other references', async (t) => {
  const statuses: Promise<number>[] = [];
  for (let round = 0; round < 50; round++) {
    statuses.push(open(seal(encode(Buffer.alloc(CHUNK_BYTES, round), 'zstd')), Buffer.alloc(CHUNK_BYTES)));
    // Runs the garbage collector while jobs are in progress.
    Array.from({ length: 50 }, () => new ArrayBuffer(256 * 1024));
  }
  t.ok((await Promise.all(statuses)).every((status) => status === OPEN_OK));
});

t.test('invalid arguments throw, and nothing is queued', async (t) => {
  const bytes = Buffer.alloc(32);
  const call = (...args: unknown[]) => Reflect.apply(openChunk, undefined, args);
  const nobody = () => t.fail('called back');
  t.throws(() => call(), TypeError);
  t.throws(() => call('a', bytes, bytes, bytes, nobody), TypeError);
  t.throws(() => call(bytes, bytes, bytes, bytes), TypeError);
  t.throws(() => call(bytes, bytes, bytes, bytes, {}), TypeError);
  t.throws(() => call(bytes, bytes.subarray(1), bytes, bytes, nobody), TypeError);
  t.throws(() => call(bytes, bytes, Buffer.alloc(33), bytes, nobody), TypeError);
  t.throws(() => call(new Uint16Array(16), bytes, bytes, bytes, nobody), TypeError);
});

t.test('it works while all threads of the libuv pool hang in a file system', async (t) => {
  const dir = t.testdir();
  const fifo = join(dir, 'fifo');
  execFileSync('mkfifo', [fifo]);
  // Opening a FIFO waits for the other end. There are more of these than threads in the pool.
  const hung = Array.from({ length: 64 }, () => openFile(fifo, constants.O_RDONLY));
  let ended = 0;
  for (const each of hung) each.finally(() => ended++);
  const plain = randomBytes(1000);
  const target = Buffer.alloc(plain.length);
  t.equal(await open(seal(encode(plain, 'raw')), target), OPEN_OK);
  t.ok(target.equals(plain));
  t.equal(ended, 0, 'the pool still hangs');
  const writer = openSync(fifo, constants.O_RDWR);
  for (const file of await Promise.all(hung)) await file.close();
  closeSync(writer);
});

t.test('a worker that exits with unfinished jobs does not crash the process', async (t) => {
  const source = `
    const { openChunk } = require(${JSON.stringify(ADDON_PATH)});
    const { parentPort } = require('node:worker_threads');
    for (let n = 0; n < 200; n++)
      openChunk(Buffer.alloc(400_000), Buffer.alloc(32), Buffer.alloc(32), Buffer.alloc(${CHUNK_BYTES}), () => {});
    parentPort.postMessage('queued');
    setInterval(() => {}, 1000);`;
  for (let round = 0; round < 5; round++) {
    const worker = new Worker(source, { eval: true });
    await once(worker, 'message');
    await worker.terminate();
  }
  const plain = randomBytes(1000);
  t.equal(await open(seal(encode(plain, 'raw')), Buffer.alloc(plain.length)), OPEN_OK);
});

t.test('an exception in a callback is uncaught, and the other callbacks are still called', async (t) => {
  const source = `
    const { openChunk } = require(${JSON.stringify(ADDON_PATH)});
    let calls = 0;
    process.on('uncaughtException', (error) => console.log(error.message));
    for (let n = 0; n < 3; n++)
      openChunk(Buffer.alloc(9), Buffer.alloc(32), Buffer.alloc(32), Buffer.alloc(9), () => {
        if (++calls === 3) console.log('all three');
        throw new Error('thrown');
      });`;
  const output = execFileSync(process.execPath, ['-e', source], { encoding: 'utf8' });
  t.equal(output.match(/thrown/g)?.length, 3);
  t.match(output, /all three/, 'and the process exits when no jobs are left');
});
