import fc from 'fast-check';
import t from 'tap';
import { type ChunkMap, entryFrom, extentsOf } from '../../src/drive/chunk-map.ts';
import { CHUNK_BYTES, type ChunkRef } from '../../src/format/chunk-id.ts';

/** The chunks of a disk, true where one is stored; `looks` counts the calls. */
function mapOf(stored: readonly boolean[]): ChunkMap & { looks: number } {
  const indices = stored.flatMap((is, index) => (is ? [index] : []));
  return {
    looks: 0,
    diskBytes: stored.length * CHUNK_BYTES,
    storedChunks: indices.length,
    entryOf: (index) => indices.indexOf(index),
    indexOf(entry) {
      this.looks++;
      return indices[entry]!;
    },
    ref: () => ({}) as ChunkRef,
  };
}

t.test('property: extents agree with the map for each byte, merged and within the limit', async () => {
  const property = fc.property(
    fc.array(fc.boolean(), { minLength: 1, maxLength: 40 }),
    fc.double({ min: 0, max: 1, noNaN: true }),
    fc.double({ min: 0, max: 1, noNaN: true }),
    fc.integer({ min: 1, max: 10 }),
    (stored, from, length, extentsMax) => {
      const map = mapOf(stored);
      const offset = Math.floor(from * (map.diskBytes - 1));
      const lengthBytes = Math.floor(length * (map.diskBytes - offset));
      const model: { lengthBytes: number; zero: boolean }[] = [];
      for (let at = offset; at < offset + lengthBytes; ) {
        const index = Math.floor(at / CHUNK_BYTES);
        const next = Math.min((index + 1) * CHUNK_BYTES, offset + lengthBytes);
        const last = model.at(-1);
        if (last && last.zero === !stored[index]) last.lengthBytes += next - at;
        else model.push({ lengthBytes: next - at, zero: !stored[index] });
        at = next;
      }
      const extents = extentsOf(map, offset, lengthBytes, extentsMax);
      return JSON.stringify(extents) === JSON.stringify(model.slice(0, extentsMax));
    },
  );
  fc.assert(property, { numRuns: 1000 });
});

t.test('entryFrom returns the first entry at or after a chunk', async (t) => {
  const map = mapOf([false, true, true, false, false, true, false]);
  t.same(
    [0, 1, 2, 3, 5, 6].map((index) => entryFrom(map, index)),
    [0, 0, 1, 2, 2, 3],
  );
});

t.test('a large map is searched, not walked', async (t) => {
  const map = mapOf(Array.from({ length: 100_000 }, (_, n) => n % 50_000 > 100));
  const extents = extentsOf(map, 0, map.diskBytes, 100);
  t.equal(extents.length, 4);
  t.ok(map.looks < 200, `${map.looks} calls`);
});
