import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { DiskCache } from '../../../src/chunk/disk/disk-cache.ts';
import {
  CAP_BYTES_MIN,
  geometryFor,
  readRecordHeader,
  readSuperblock,
} from '../../../src/chunk/disk/layout.ts';
import { Segments } from '../../../src/chunk/disk/segments.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../../../src/format/chunk-id.ts';
import { skipWithout, skipWithoutRoot } from '../../support/tools.ts';

const MIB = 1024 * 1024;
const CAP = 16 * MIB;

function chunk(seed: number, sizeBytes = 200_000): { id: ChunkId; bytes: Buffer } {
  const bytes = Buffer.alloc(sizeBytes, createHash('sha256').update(`chunk ${seed}`).digest());
  return { id: createHash('sha256').update(bytes).digest('hex') as ChunkId, bytes };
}

async function bytesOf(cache: DiskCache, id: ChunkId, sizeBytes: number): Promise<Buffer | undefined> {
  const loan = await cache.get(id, sizeBytes);
  if (!loan) return undefined;
  const copy = Buffer.from(loan.bytes);
  loan.release();
  return copy;
}

async function temporary(t: Test): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'lazydisk-cache-'));
  t.teardown(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

/** The allocated bytes of everything below `dir`. */
function allocatedBytes(dir: string): number {
  return Number(execFileSync('du', ['-s', '--block-size=1', dir], { encoding: 'utf8' }).split('\t')[0]);
}

t.test('files planted in a directory that others can write are refused', async (t) => {
  const dir = await temporary(t);
  const victim = join(await temporary(t), 'victim');
  writeFileSync(victim, 'precious');
  chmodSync(dir, 0o777);
  await t.rejects(DiskCache.open({ dir, capBytes: CAP }), { code: 'USAGE', message: /writable by others/ });
  chmodSync(dir, 0o700);
  for (const name of ['chunks', 'cache.lock', 'index.tmp']) {
    symlinkSync(victim, join(dir, name));
    if (name === 'index.tmp') await (await DiskCache.open({ dir, capBytes: CAP })).close();
    else await t.rejects(DiskCache.open({ dir, capBytes: CAP }), { code: 'EXISTS' }, name);
    rmSync(join(dir, name), { force: true });
  }
  const link = `${dir}-link`;
  symlinkSync(dir, link);
  t.teardown(() => rmSync(link));
  await t.rejects(DiskCache.open({ dir: link, capBytes: CAP }), { code: 'USAGE', message: /symbolic link/ });
  t.equal(readFileSync(victim, 'utf8'), 'precious');
});

t.test('stored chunks are there, even after a clean shutdown', async (t) => {
  const dir = await temporary(t);
  const chunks = Array.from({ length: 20 }, (_, n) => chunk(n, 1000 + n * 9973));
  const cache = await DiskCache.open({ dir, capBytes: CAP });
  await cache.recovered();
  for (const { id, bytes } of chunks) await cache.put(id, bytes);
  for (const { id, bytes } of chunks) t.same(await bytesOf(cache, id, bytes.length), bytes);
  t.equal(await bytesOf(cache, chunk(99).id, 200_000), undefined, 'a miss is undefined');
  await cache.close();
  const again = await DiskCache.open({ dir, capBytes: CAP });
  t.equal(again.stats().recovering, false, 'the saved index makes a scan unnecessary');
  for (const { id, bytes } of chunks) t.same(await bytesOf(again, id, bytes.length), bytes);
  await again.close();
});

t.test('after a kill -9 during writes, the next start finds the records by scanning', async (t) => {
  const dir = await temporary(t);
  const program = `
    import { DiskCache } from ${JSON.stringify(new URL('../../../src/chunk/disk/disk-cache.ts', import.meta.url).href)};
    import { createHash } from 'node:crypto';
    const cache = await DiskCache.open({ dir: ${JSON.stringify(dir)}, capBytes: ${CAP} });
    await cache.recovered();
    for (let n = 0; ; n++) {
      const bytes = Buffer.alloc(200000, createHash('sha256').update('chunk ' + n).digest());
      await cache.put(createHash('sha256').update(bytes).digest('hex'), bytes);
      process.stdout.write(n + '\\n');
    }`;
  const child: ChildProcess = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let last = -1;
  await new Promise<void>((resolve) => {
    child.stdout?.on('data', (text: Buffer) => {
      last = Math.max(last, ...text.toString().trim().split('\n').map(Number));
      if (last >= 120) child.kill('SIGKILL');
    });
    child.once('close', () => resolve());
  });
  const cache = await DiskCache.open({ dir, capBytes: CAP });
  t.equal(cache.stats().recovering, true);
  await cache.recovered();
  const { entries } = cache.stats();
  t.ok(entries > 30, `${entries} entries survived`);
  let right = 0;
  for (let n = 0; n <= last; n++) {
    const { id, bytes } = chunk(n);
    const found = await bytesOf(cache, id, bytes.length);
    if (found) {
      t.ok(found.equals(bytes), `chunk ${n} is intact`);
      right++;
    }
  }
  t.ok(right > 30);
  t.ok(allocatedBytes(dir) <= CAP, 'within the cap');
  const fresh = chunk(1_000_000);
  for (let n = 0; n < 3 && !(await bytesOf(cache, fresh.id, fresh.bytes.length)); n++) {
    await cache.put(fresh.id, fresh.bytes);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  t.same(await bytesOf(cache, fresh.id, fresh.bytes.length), fresh.bytes, 'and it takes new chunks');
  await cache.close();
});

t.test('a discarded copy never comes back: not now, not after a restart, not after a scan', async (t) => {
  const dir = await temporary(t);
  const { id, bytes } = chunk(1);
  const cache = await DiskCache.open({ dir, capBytes: CAP });
  await cache.recovered();
  await cache.put(id, bytes);
  cache.discard(id);
  t.equal(await bytesOf(cache, id, bytes.length), undefined);
  t.equal(cache.stats().quarantined, 1);
  await cache.close();
  await rm(join(dir, 'index'));
  const scanned = await DiskCache.open({ dir, capBytes: CAP });
  await scanned.recovered();
  t.equal(await bytesOf(scanned, id, bytes.length), undefined);
  await scanned.put(id, bytes);
  await scanned.put(id, bytes);
  t.same(await bytesOf(scanned, id, bytes.length), bytes, 'a new copy heals it');
  await scanned.close();
});

t.test('a manifest with a wrong length gets nothing, and the copy stays for others', async (t) => {
  const dir = await temporary(t);
  const { id, bytes } = chunk(1);
  const cache = await DiskCache.open({ dir, capBytes: CAP });
  await cache.recovered();
  await cache.put(id, bytes);
  t.equal(await bytesOf(cache, id, bytes.length - 1), undefined);
  t.same(await bytesOf(cache, id, bytes.length), bytes);
  await cache.close();
});

t.test('the oldest is evicted first, what was read twice stays, and a scan evicts none of it', async (t) => {
  const dir = await temporary(t);
  const cache = await DiskCache.open({ dir, capBytes: CAP });
  await cache.recovered();
  const hot = Array.from({ length: 4 }, (_, n) => chunk(n));
  for (const { id, bytes } of hot) await cache.put(id, bytes);
  let evicted = 0;
  for (let n = 100; n < 400; n++) {
    const { id, bytes } = chunk(n);
    await cache.put(id, bytes);
    for (const { id, bytes } of hot) await bytesOf(cache, id, bytes.length);
    evicted = cache.stats().evictions;
  }
  t.ok(evicted > 100, `${evicted} evicted`);
  for (const { id, bytes } of hot) t.same(await bytesOf(cache, id, bytes.length), bytes, 'still there');
  t.equal(await bytesOf(cache, chunk(100).id, 200_000), undefined, 'the scan is gone');
  t.ok(allocatedBytes(dir) <= CAP);
  await cache.close();
  t.ok(allocatedBytes(dir) <= CAP, 'with its index too');
});

t.test('damaged state files never prevent a start', async (t) => {
  const dir = await temporary(t);
  const make = async () => {
    const cache = await DiskCache.open({ dir, capBytes: CAP });
    await cache.recovered();
    for (let n = 0; n < 10; n++) await cache.put(chunk(n).id, chunk(n).bytes);
    await cache.close();
  };
  const damages: [string, () => void][] = [
    ['index cut', () => truncateSync(join(dir, 'index'), 100)],
    ['index empty', () => truncateSync(join(dir, 'index'), 0)],
    ['index garbled', () => writeFileSync(join(dir, 'index'), Buffer.alloc(5000, 'x'))],
    ['index of a flipped bit', () => flip(join(dir, 'index'), 300)],
    ['data cut', () => truncateSync(join(dir, 'chunks'), 2 * MIB)],
    ['superblock garbled', () => flip(join(dir, 'chunks'), 3)],
    ['record header garbled', () => flip(join(dir, 'chunks'), 4096 + 30)],
  ];
  for (const [name, damage] of damages) {
    await make();
    damage();
    const cache = await DiskCache.open({ dir, capBytes: CAP });
    await cache.recovered();
    let kept = 0;
    for (let n = 0; n < 10; n++) {
      const found = await bytesOf(cache, chunk(n).id, 200_000);
      t.ok(!found || found.equals(chunk(n).bytes) || name === 'data cut', `${name}: correct or absent`);
      if (found?.equals(chunk(n).bytes)) kept++;
    }
    // The records are the truth: only another superblock makes them nobody's.
    t.equal(kept, name === 'superblock garbled' ? 0 : 10, `${name}: chunks kept`);
    await cache.close();
  }
});

function flip(path: string, at: number): void {
  const bytes = readFileSync(path);
  bytes[at] = bytes[at]! ^ 0x40;
  writeFileSync(path, bytes);
}

t.test('only one process can use a directory', async (t) => {
  const dir = await temporary(t);
  const cache = await DiskCache.open({ dir, capBytes: CAP });
  await t.rejects(DiskCache.open({ dir, capBytes: CAP }), { code: 'BUSY' });
  await cache.close();
  const next = await DiskCache.open({ dir, capBytes: CAP });
  await next.close();
});

t.test('a smaller cap shrinks the cache at start, and a larger one grows it', async (t) => {
  const dir = await temporary(t);
  for (const capBytes of [64 * MIB, CAP_BYTES_MIN, 32 * MIB]) {
    const cache = await DiskCache.open({ dir, capBytes });
    await cache.recovered();
    for (let n = 0; n < 40; n++) await cache.put(chunk(n).id, chunk(n).bytes);
    const found = await bytesOf(cache, chunk(39).id, 200_000);
    t.ok(!found || found.equals(chunk(39).bytes));
    await cache.close();
    t.ok(allocatedBytes(dir) <= capBytes, `${allocatedBytes(dir)} of ${capBytes}`);
  }
  await t.rejects(DiskCache.open({ dir, capBytes: CAP_BYTES_MIN - 1 }), { code: 'USAGE' });
});

t.test(
  'on a small tmpfs the cache never exceeds its cap, and a full disk turns puts into no-ops',
  async (t) => {
    if (skipWithoutRoot(t, 'mount a tmpfs') || skipWithout(t, 'mount')) return;
    const dir = await mkdtemp(join(tmpdir(), 'lazydisk-tmpfs-'));
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', dir]);
    t.teardown(async () => {
      execFileSync('umount', [dir]);
      await rm(dir, { recursive: true, force: true });
    });
    const inside = join(dir, 'cache');
    const cache = await DiskCache.open({ dir: inside, capBytes: CAP });
    await cache.recovered();
    writeFileSync(join(dir, 'filler'), Buffer.alloc(20 * MIB));
    t.throws(
      () => writeFileSync(join(dir, 'more'), Buffer.alloc(10 * MIB)),
      { code: 'ENOSPC' },
      'the disk is full',
    );
    for (let n = 0; n < 300; n++) {
      const { id, bytes } = chunk(n);
      await cache.put(id, bytes);
      if (n % 10 === 0) t.ok(allocatedBytes(inside) <= CAP);
    }
    t.equal(cache.stats().writeErrors, 0, 'its space was allocated at start');
    t.ok(cache.stats().entries > 40);
    await cache.close();

    await rm(inside, { recursive: true });
    writeFileSync(join(dir, 'filler2'), Buffer.alloc(5 * MIB));
    const warnings: string[] = [];
    const crowded = await DiskCache.open({
      dir: inside,
      capBytes: 36 * MIB,
      onWarning: (text) => warnings.push(text),
    });
    await crowded.recovered();
    t.ok(warnings.length > 0, 'a warning is reported');
    const { bavail, bsize } = statfsSync(dir);
    t.ok(bavail * bsize >= 4 * MIB, 'and a tenth of the disk is left free');
    for (let n = 0; n < 200; n++) await crowded.put(chunk(n).id, chunk(n).bytes);
    for (let n = 0; n < 200; n++) {
      const found = await bytesOf(crowded, chunk(n).id, 200_000);
      if (found) t.ok(found.equals(chunk(n).bytes));
    }
    await crowded.close();
  },
);

t.test('a copy of another length is replaced by the verified bytes', async (t) => {
  const dir = await temporary(t);
  const cache = await DiskCache.open({ dir, capBytes: CAP });
  await cache.recovered();
  const { id, bytes } = chunk(1);
  t.equal(await cache.put(id, bytes.subarray(1)), true);
  t.equal(await bytesOf(cache, id, bytes.length), undefined, 'an id has one length');
  t.equal(await cache.put(id, bytes), true);
  t.same(await bytesOf(cache, id, bytes.length), bytes);
  await cache.close();
});

t.test('a write that finishes while its segment is being evicted leaves no entry behind', (t) => {
  const segments = new Segments(4, 100);
  const { id } = chunk(1);
  const late = segments.reserve(60)!;
  const entry = { id, segment: late.segment.number, offset: late.offset, sealedBytes: 60, hits: 0 };
  for (let n = 0; n < 3; n++) segments.unpin(segments.reserve(60)!.segment);
  const evicted = segments.beginEviction()!;
  t.equal(evicted, late.segment, 'the oldest one, although a write to it is in progress');
  segments.condemn(evicted, 50);
  const finished = segments.finishEviction(evicted);
  t.equal(segments.add(entry), false);
  segments.unpin(late.segment);
  return finished.then(() => {
    t.equal(late.segment.state, 'free');
    t.equal(segments.get(id), undefined, 'otherwise the id would point at whatever is written there next');
  });
});

t.test('a small cache under constant writes and evictions returns no wrong bytes', async (t) => {
  const dir = await temporary(t);
  const cache = await DiskCache.open({ dir, capBytes: 10 * MIB });
  await cache.recovered();
  let wrong = 0;
  let next = 0;
  const worker = async () => {
    while (next < 600) {
      const mine = chunk(next++, 100_000 + (next % 7) * 50_000);
      await cache.put(mine.id, mine.bytes);
      for (let back = 0; back < 12; back++) {
        const seed = Math.max(0, next - 1 - back * 2);
        const { id, bytes } = chunk(seed, 100_000 + ((seed + 1) % 7) * 50_000);
        const found = await bytesOf(cache, id, bytes.length);
        if (found && !found.equals(bytes)) wrong++;
      }
    }
  };
  await Promise.all(Array.from({ length: 8 }, worker));
  t.equal(wrong, 0);
  t.ok(cache.stats().evictions > 100);
  await cache.close();
});

t.test('property: as in a model, every returned chunk is the last one put under its id', async (t) => {
  let grown = 0;
  const operation = fc.oneof(
    fc.record({
      kind: fc.constant('put' as const),
      n: fc.nat(80),
      sizeBytes: fc.integer({ min: 1, max: 9 }),
    }),
    fc.record({ kind: fc.constant('get' as const), n: fc.nat(80), sizeBytes: fc.constant(0) }),
    fc.record({ kind: fc.constant('discard' as const), n: fc.nat(80), sizeBytes: fc.constant(0) }),
    fc.record({ kind: fc.constant('restart' as const), n: fc.constant(0), sizeBytes: fc.constant(0) }),
    fc.record({ kind: fc.constant('crash' as const), n: fc.constant(0), sizeBytes: fc.constant(0) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { maxLength: 150 }), async (operations) => {
      const dir = await mkdtemp(join(tmpdir(), 'lazydisk-cache-'));
      let cache = await DiskCache.open({ dir, capBytes: CAP_BYTES_MIN });
      await cache.recovered();
      const size = (n: number) => 1 + ((n * 104_729) % SEALED_BYTES_MAX);
      const discarded = new Set<number>();
      try {
        for (const { kind, n } of operations) {
          const { id, bytes } = chunk(n, size(n));
          if (kind === 'put') {
            await cache.put(id, bytes);
            discarded.delete(n);
          } else if (kind === 'get') {
            const found = await bytesOf(cache, id, bytes.length);
            if (found && !found.equals(bytes)) throw new Error(`chunk ${n} came back wrong`);
            if (found && discarded.has(n)) throw new Error(`chunk ${n} was discarded`);
          } else if (kind === 'discard') {
            cache.discard(id);
            discarded.add(n);
          } else {
            await cache.close();
            if (kind === 'crash') await rm(join(dir, 'index'), { force: true });
            cache = await DiskCache.open({ dir, capBytes: CAP_BYTES_MIN });
            await cache.recovered();
          }
        }
      } finally {
        await cache.close();
        grown = Math.max(grown, statSync(join(dir, 'chunks')).size);
        await rm(dir, { recursive: true, force: true });
      }
    }),
    { numRuns: 60 },
  );
  t.ok(grown <= CAP_BYTES_MIN, `the data file never grew beyond ${grown}`);
});

t.test('property: header parsers survive any bytes, and every geometry stays within its cap', async (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
      readRecordHeader(Buffer.from(bytes));
      readSuperblock(Buffer.from(bytes));
    }),
  );
  fc.assert(
    fc.property(fc.integer({ min: CAP_BYTES_MIN, max: 2 ** 45 }), (capBytes) => {
      const { segmentBytes, segments } = geometryFor(capBytes);
      const entriesMax = (segmentBytes / 4096) * segments;
      return segments >= 4 && 4096 + segments * segmentBytes + entriesMax * 48 + 4096 <= capBytes;
    }),
  );
  t.pass();
});
