import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { ADDON_PATH } from '../../../native/build.ts';
import { erasureEncode, erasureReconstruct, erasureRow } from '../../../native/index.ts';
import { proveShard, shardBytesOf, writeShardHeader } from '../../../src/chunk/fleet/shard.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import { skip, skipWithout } from '../../support/tools.ts';

const code = fc
  .tuple(fc.integer({ min: 1, max: 15 }), fc.integer({ min: 0, max: 15 }))
  .filter(([k, m]) => k + m <= 16);

t.test('property: any k shards restore the data', async (t) => {
  fc.assert(
    fc.property(code, fc.integer({ min: 1, max: 300 }), fc.nat(), ([k, m], shardBytes, seed) => {
      const shards = randomBytes((k + m) * shardBytes);
      erasureEncode(k, m, shards);
      const damaged = Buffer.from(shards);
      const order = Array.from({ length: k + m }, (_, n) => n).sort(
        (a, b) => ((a * 7 + seed) % 17) - ((b * 7 + seed) % 17),
      );
      let present = 0;
      for (const index of order.slice(0, k)) present |= 1 << index;
      for (const index of order.slice(k)) damaged.fill(0xee, index * shardBytes, (index + 1) * shardBytes);
      if (!erasureReconstruct(k, m, damaged, present)) return false;
      return damaged.subarray(0, k * shardBytes).equals(shards.subarray(0, k * shardBytes));
    }),
    { numRuns: 500 },
  );
  t.pass();
});

t.test('every 4 of 6 and 8 of 11 shards work: no square part of the matrix is singular', async (t) => {
  for (const [k, m] of [
    [4, 2],
    [8, 3],
    [12, 4],
  ] as const) {
    const shards = randomBytes((k + m) * 16);
    erasureEncode(k, m, shards);
    let wrong = 0;
    for (let present = 0; present < 1 << (k + m); present++) {
      let bits = 0;
      for (let n = 0; n < k + m; n++) bits += (present >> n) & 1;
      if (bits !== k) continue;
      const damaged = Buffer.from(shards);
      for (let n = 0; n < k + m; n++) if (!((present >> n) & 1)) damaged.fill(0x55, n * 16, (n + 1) * 16);
      erasureReconstruct(k, m, damaged, present);
      if (!damaged.subarray(0, k * 16).equals(shards.subarray(0, k * 16))) wrong++;
    }
    t.equal(wrong, 0, `${k}+${m}`);
  }
});

t.test('fewer than k shards are refused, and so are invalid codes and lengths', async (t) => {
  t.equal(erasureReconstruct(4, 1, Buffer.alloc(50), 0b00111), false);
  t.throws(() => erasureEncode(0, 1, Buffer.alloc(10)), TypeError);
  t.throws(() => erasureEncode(15, 2, Buffer.alloc(17)), TypeError);
  t.throws(() => erasureEncode(4, 1, Buffer.alloc(51)), TypeError);
  t.throws(() => erasureEncode(-1, 3, Buffer.alloc(10)), TypeError);
});

t.test('ISA-L computes the same parity from our matrix, and inverts our matrix as we do', async (t) => {
  if (skipWithout(t, 'g++')) return;
  const dir = mkdtempSync(join(tmpdir(), 'lazydisk-isal-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  // Reads k, m, the m parity rows, and k data shards of 1000 bytes; writes the m parity shards.
  writeFileSync(
    join(dir, 'check.cc'),
    `#include <isa-l/erasure_code.h>
     #include <cstdio>
     int main() {
       int k = getchar(), m = getchar();
       static unsigned char rows[256], tables[32 * 256], data[16][1000], parity[16][1000];
       unsigned char *in[16], *out[16];
       if (fread(rows, 1, k * m, stdin) != size_t(k * m)) return 1;
       for (int j = 0; j < k; j++) { in[j] = data[j]; if (fread(data[j], 1, 1000, stdin) != 1000) return 1; }
       for (int i = 0; i < m; i++) out[i] = parity[i];
       ec_init_tables(k, m, rows, tables);
       ec_encode_data(1000, k, m, tables, in, out);
       for (int i = 0; i < m; i++) fwrite(parity[i], 1, 1000, stdout);
     }`,
  );
  try {
    execFileSync('g++', ['-O1', '-o', join(dir, 'check'), join(dir, 'check.cc'), '-lisal'], {
      stdio: 'pipe',
    });
  } catch {
    return skip(t, 'libisal-dev');
  }
  for (const [k, m] of [
    [4, 1],
    [4, 2],
    [1, 3],
    [8, 8],
    [10, 4],
    [15, 1],
  ] as const) {
    const shards = randomBytes((k + m) * 1000);
    erasureEncode(k, m, shards);
    const rows = Buffer.concat(Array.from({ length: m }, (_, n) => erasureRow(k, m, k + n)));
    const input = Buffer.concat([Buffer.from([k, m]), rows, shards.subarray(0, k * 1000)]);
    const parity = execFileSync(join(dir, 'check'), { input, maxBuffer: 1 << 20 });
    t.ok(parity.equals(shards.subarray(k * 1000)), `${k}+${m}`);
  }
});

t.test('property: a shard verifies, and does not with any bit flipped', async (t) => {
  const id = 'ab'.repeat(32) as ChunkId;
  fc.assert(
    fc.property(code, fc.integer({ min: 1, max: 2000 }), fc.nat(), ([k, m], sealedBytes, flip) => {
      const index = flip % (k + m);
      const data = randomBytes(shardBytesOf(sealedBytes, { k, m }));
      const header = writeShardHeader(id, sealedBytes, { k, m }, index, data);
      const valueBytes = header.length + data.length;
      if (proveShard(header, data, valueBytes, { id, sealedBytes }, { k, m }) !== index) return false;
      const bit = flip % ((48 + 4 + data.length) * 8);
      const at = bit >> 3;
      if (at < 52) header[at]! ^= 1 << (bit & 7);
      else data[at - 52]! ^= 1 << (bit & 7);
      return proveShard(header, data, valueBytes, { id, sealedBytes }, { k, m }) === undefined;
    }),
    { numRuns: 1000 },
  );
  t.pass();
});

t.test('GFNI, AVX2 and byte-by-byte computation give the same result', async (t) => {
  const shards = Buffer.concat([Buffer.alloc(8 * 1001, 'some data'), Buffer.alloc(3 * 1001)]);
  erasureEncode(8, 3, shards);
  const script = `
    const { erasureEncode, erasureReconstruct } = require(process.argv[1]);
    const shards = Buffer.concat([Buffer.alloc(8 * 1001, 'some data'), Buffer.alloc(3 * 1001)]);
    erasureEncode(8, 3, shards);
    const whole = Buffer.from(shards);
    shards.fill(0, 0, 3 * 1001);
    if (!erasureReconstruct(8, 3, shards, 0b11111111000) || !shards.equals(whole)) process.exit(1);
    process.stdout.write(shards.toString('base64'));`;
  for (const simd of ['none', 'avx2', 'best']) {
    const env = { ...process.env, LAZYDISK_SIMD: simd };
    const output = execFileSync(process.execPath, ['-e', script, ADDON_PATH], { env, encoding: 'utf8' });
    t.equal(output, shards.toString('base64'), simd);
  }
});
