import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import t from 'tap';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { Placement } from '../../src/image/placement.ts';
import { StreamInput } from '../../src/image/tar/input.ts';
import { readTar } from '../../src/image/tar/reader.ts';
import {
  contentOf,
  type Flattened,
  flattenAll,
  flattenLayers,
  sourceOf,
  streamOf,
} from '../support/image.ts';
import { packTar, type TarEntrySpec } from '../support/tar.ts';

/** Bytes that do not repeat. */
function noise(lengthBytes: number, seed: string): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0, total = 0; total < lengthBytes; at++, total += 64) {
    parts.push(createHash('sha512').update(`${seed} ${at}`).digest());
  }
  return Buffer.concat(parts).subarray(0, lengthBytes);
}

/** A small file whose content starts, or does not start, a chunk by the rules. */
function small(name: string, lengthBytes: number, startsChunk: boolean): TarEntrySpec {
  for (let seed = 0; ; seed++) {
    const body = noise(lengthBytes, `${name} ${seed}`);
    if (crc32(body) % 48 < Math.ceil(lengthBytes / 4096) === startsChunk) return { name, body };
  }
}

const extentsAt = (flat: Flattened, path: string) => flat.at(path)!.extents;

t.test('small files are packed at multiples of 4096, with zeroes between them', async (t) => {
  const a = small('a', 5000, false);
  const b = small('b', 100, false);
  const flat = await flattenLayers([[a, b]]);
  t.same(extentsAt(flat, 'a'), [{ fileOffset: 0, dataOffset: 0, lengthBytes: 5000 }]);
  t.same(extentsAt(flat, 'b'), [{ fileOffset: 0, dataOffset: 8192, lengthBytes: 100 }]);
  t.equal(flat.chunks.length, 1);
  const expected = Buffer.alloc(CHUNK_BYTES);
  (a.body as Buffer).copy(expected, 0);
  (b.body as Buffer).copy(expected, 8192);
  t.ok(flat.chunks[0]!.equals(expected));
});

t.test('a small file starts a chunk if its content decides so', async (t) => {
  const flat = await flattenLayers([
    [small('a', 5000, false), small('b', 100, true), small('c', 100, false)],
  ]);
  t.equal(extentsAt(flat, 'b')[0]!.dataOffset, CHUNK_BYTES);
  t.equal(extentsAt(flat, 'c')[0]!.dataOffset, CHUNK_BYTES + 4096);
});

t.test('a small file that does not fit starts a chunk, and one that fits exactly does not', async (t) => {
  const sizes = [150_000, 150_000, 150_000, CHUNK_BYTES - 3 * 151_552];
  const files = sizes.map((size, at) => small(`f${at}`, size, false));
  const flat = await flattenLayers([files]);
  t.equal(flat.chunks.length, 1);
  const over = await flattenLayers([[...files.slice(0, 3), small('f3', sizes[3]! + 1, false)]]);
  t.equal(extentsAt(over, 'f3')[0]!.dataOffset, CHUNK_BYTES);
});

t.test('a file of a chunk or more starts a chunk, and nothing follows its tail', async (t) => {
  const big = { name: 'big', body: noise(CHUNK_BYTES * 2 + 10, 'big') };
  const flat = await flattenLayers([[small('a', 100, false), big, small('b', 100, false)]]);
  t.same(extentsAt(flat, 'big'), [
    { fileOffset: 0, dataOffset: CHUNK_BYTES, lengthBytes: CHUNK_BYTES * 2 + 10 },
  ]);
  t.equal(extentsAt(flat, 'b')[0]!.dataOffset, 4 * CHUNK_BYTES);
  t.ok(flat.content('big').equals(big.body));
  t.ok(flat.chunks[3]!.subarray(10).every((byte) => byte === 0));
});

t.test('an empty file takes no space', async (t) => {
  const flat = await flattenLayers([[{ name: 'e' }]]);
  t.same(extentsAt(flat, 'e'), []);
  t.equal(flat.chunks.length, 0);
  t.equal(flat.image.liveChunks.length, 0);
});

t.test('chunks of zeroes in big files are holes and take no data chunk', async (t) => {
  const zero = Buffer.alloc(CHUNK_BYTES);
  const data = noise(CHUNK_BYTES, 'data');
  for (const [name, pieces, tailBytes, extents] of [
    ['first', [zero, data], 0, 1],
    ['middle', [data, zero, zero, data], 100, 2],
    ['last', [data, zero], 0, 1],
    ['tail', [data], 5000, 1],
    ['all', [zero, zero], 5000, 0],
  ] as const) {
    const body = Buffer.concat([...pieces, Buffer.alloc(tailBytes)]);
    const flat = await flattenLayers([[{ name: 'f', body }, small('next', 100, false)]]);
    t.equal(extentsAt(flat, 'f').length, extents, name);
    t.ok(flat.content('f').equals(body), name);
    const dataChunks = pieces.filter((piece) => piece === data).length;
    t.equal(flat.chunks.length, dataChunks + 1, name);
    t.equal(extentsAt(flat, 'next')[0]!.dataOffset, dataChunks * CHUNK_BYTES, name);
  }
});

t.test('a sparse file is placed exactly like the same file stored in full', async (t) => {
  const sizeBytes = 6 * CHUNK_BYTES + 1000;
  const map = [100, 50, CHUNK_BYTES - 10, 20, 3 * CHUNK_BYTES + 5, 5, 6 * CHUNK_BYTES + 990, 10];
  const stored: Buffer[] = [];
  const full = Buffer.alloc(sizeBytes);
  for (let at = 0; at < map.length; at += 2) {
    const piece = noise(map[at + 1]!, `piece ${at}`);
    piece.copy(full, map[at]!);
    stored.push(piece);
  }
  const sparse: TarEntrySpec = {
    name: 'f',
    body: Buffer.concat(stored),
    pax: [
      ['GNU.sparse.size', String(sizeBytes)],
      ['GNU.sparse.map', map.join(',')],
    ],
  };
  const one = await flattenLayers([[sparse]], 7);
  const other = await flattenLayers([[{ name: 'f', body: full }]]);
  t.ok(one.content('f').equals(full));
  t.same(extentsAt(one, 'f'), extentsAt(other, 'f'));
  t.equal(one.chunks.length, 4);
  t.ok(Buffer.concat(one.chunks).equals(Buffer.concat(other.chunks)));
});

t.test('the holes of a small sparse file are filled with zeroes', async (t) => {
  const sparse: TarEntrySpec = {
    name: 'f',
    body: 'ab',
    pax: [
      ['GNU.sparse.size', '9000'],
      ['GNU.sparse.map', '10,1,8999,1'],
    ],
  };
  const flat = await flattenLayers([[sparse]]);
  const expected = Buffer.alloc(9000);
  expected.write('a', 10);
  expected.write('b', 8999);
  t.ok(flat.content('f').equals(expected));
});

t.test('a sparse file of 1 TiB with two pieces takes two chunks', async (t) => {
  const sizeBytes = 2 ** 40;
  const sparse: TarEntrySpec = {
    name: 'f',
    body: 'ab',
    pax: [
      ['GNU.sparse.size', String(sizeBytes)],
      ['GNU.sparse.map', `0,1,${sizeBytes - 1},1`],
    ],
  };
  const flat = await flattenLayers([[sparse]]);
  t.equal(flat.at('f')?.sizeBytes, sizeBytes);
  t.same(extentsAt(flat, 'f'), [
    { fileOffset: 0, dataOffset: 0, lengthBytes: CHUNK_BYTES },
    { fileOffset: sizeBytes - CHUNK_BYTES, dataOffset: CHUNK_BYTES, lengthBytes: CHUNK_BYTES },
  ]);
});

t.test('each layer’s data starts a chunk, so a layer has the same chunks in every image', async (t) => {
  const shared = [
    small('s1', 3000, false),
    small('s2', 9000, false),
    { name: 's3', body: noise(700_000, 's') },
  ];
  const one = await flattenLayers([[small('a', 100, false)], shared]);
  const other = await flattenLayers([
    [small('b', 60_000, false), { name: 'c', body: noise(600_000, 'c') }],
    shared,
  ]);
  const last = (flat: Flattened) => {
    const { firstChunk, chunks } = flat.image.layerMap[1]!;
    return flat.chunks.slice(firstChunk, firstChunk + chunks);
  };
  t.equal(last(one).length, 3);
  t.same(last(one), last(other));
});

t.test('two trees that differ in one file share their chunks soon after it', async (t) => {
  const files = Array.from({ length: 300 }, (_, at) => ({
    name: `f${at}`,
    body: noise(1000 + at * 137, `${at}`),
  }));
  const one = await flattenLayers([files]);
  const other = await flattenLayers([
    [...files.slice(0, 10), { name: 'new', body: noise(9999, 'new') }, ...files.slice(10)],
  ]);
  const ids = new Set(one.chunks.map((chunk) => createHash('sha256').update(chunk).digest('hex')));
  const shared = other.chunks.filter((chunk) => ids.has(createHash('sha256').update(chunk).digest('hex')));
  t.ok(other.chunks.length - shared.length <= 4, `${shared.length} of ${other.chunks.length}`);
});

t.test('data of hidden files keeps its place, and only chunks with live data are live', async (t) => {
  const big = (name: string) => ({ name, body: noise(CHUNK_BYTES, name) });
  const flat = await flattenLayers([
    [big('a'), big('b'), big('c'), small('x', 10, false), small('y', 10, false), big('d')],
    [
      { name: '.wh.b' },
      { name: 'd', body: 'new' },
      { name: '.wh.x' },
      { name: 'k', type: 'link', target: 'c' },
    ],
    [{ name: '.wh.c' }],
  ]);
  const live = (chunk: number) => ((flat.image.liveChunks[chunk >> 3]! >> (chunk & 7)) & 1) === 1;
  t.equal(flat.image.dataChunks, 6);
  // a, b (hidden), c (another name remains), x and y (y remains), d (replaced), the new d.
  t.same([0, 1, 2, 3, 4, 5].map(live), [true, false, true, true, false, true]);
  t.same(
    flat.image.layerMap.map(({ firstChunk, chunks }) => [firstChunk, chunks]),
    [
      [0, 5],
      [5, 1],
      [6, 0],
    ],
  );
});

t.test('the old content of a reused buffer never reaches a chunk', async (t) => {
  const layers = [
    [small('a', 5000, false), small('b', 100, true), { name: 'big', body: noise(600_000, 'big') }],
    [
      {
        name: 'sparse',
        body: 'ab',
        pax: [
          ['GNU.sparse.size', '2000000'],
          ['GNU.sparse.map', '1000,1,1999999,1'],
        ] as [string, string][],
      },
      { name: 'holes', body: Buffer.concat([noise(CHUNK_BYTES, 'h'), Buffer.alloc(CHUNK_BYTES + 5)]) },
      small('c', 100, false),
    ],
  ];
  const clean = await flattenAll(sourceOf(layers), { takeBuffer: () => Buffer.alloc(CHUNK_BYTES) });
  const dirty = await flattenAll(sourceOf(layers), { takeBuffer: () => Buffer.alloc(CHUNK_BYTES, 0xaa) });
  t.ok(Buffer.concat(clean.chunks).equals(Buffer.concat(dirty.chunks)));
});

t.test('any files are read back unchanged, and are placed by the rules', async (t) => {
  const size = fc.oneof(
    fc.nat(20_000),
    fc.constantFrom(0, 1, 4095, 4096, 4097, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES),
    fc.nat(1_200_000),
  );
  const file = fc.record({ sizeBytes: size, zeroFrom: fc.nat(1_500_000), zeroBytes: fc.nat(1_200_000) });
  await fc.assert(
    fc.asyncProperty(
      fc.array(file, { maxLength: 8 }),
      fc.integer({ min: 1000, max: 300_000 }),
      async (files, pieceBytes) => {
        const bodies = files.map(({ sizeBytes, zeroFrom, zeroBytes }, at) =>
          Buffer.from(noise(sizeBytes, `${at}`)).fill(
            0,
            Math.min(zeroFrom, sizeBytes),
            Math.min(zeroFrom + zeroBytes, sizeBytes),
          ),
        );
        const tar = packTar(bodies.map((body, at) => ({ name: `f${at}`, body })));
        const flat = await flattenLayers([tar], pieceBytes);
        let end = 0;
        for (const [at, body] of bodies.entries()) {
          const inode = flat.at(`f${at}`)!;
          assert.ok(contentOf(inode, flat.chunks).equals(body));
          for (const { fileOffset, dataOffset, lengthBytes } of inode.extents) {
            assert.equal(fileOffset % 4096, 0);
            assert.equal(dataOffset % 4096, 0);
            assert.ok(dataOffset >= end && lengthBytes > 0, 'in order, nothing shared');
            end = dataOffset + lengthBytes;
            if (body.length >= CHUNK_BYTES) assert.equal(dataOffset % CHUNK_BYTES, 0);
            else assert.ok((dataOffset % CHUNK_BYTES) + lengthBytes <= CHUNK_BYTES);
          }
        }
        assert.ok(end <= flat.chunks.length * CHUNK_BYTES && end > (flat.chunks.length - 1) * CHUNK_BYTES);
      },
    ),
    { numRuns: 60 },
  );
  t.pass('for all files');
});

t.test('more chunks than the limit are refused', async (t) => {
  const tar = packTar([{ name: 'f', body: noise(4 * CHUNK_BYTES, 'f') }]);
  let chunks = 0;
  const placement = new Placement(
    async () => void chunks++,
    () => Buffer.alloc(CHUNK_BYTES),
    3 * CHUNK_BYTES,
  );
  for await (const entry of readTar(new StreamInput(streamOf(tar), tar.length))) {
    await t.rejects(placement.place(entry), {
      code: 'NO_SPACE',
      message: /the image has more than 1572864 bytes/,
    });
  }
  t.equal(chunks, 3);
});
