/**
 * Common NBD programs with our server, over a Unix socket and over TCP: each must see the same disk, byte for byte, and
 * must be refused unsupported operations.
 */
import { execFile } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';
import { DriveRegistry } from '../../src/drive/registry.ts';
import { NbdServer } from '../../src/export/nbd/server.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { BufferDevice } from '../support/buffer-device.ts';
import { skipWithout } from '../support/tools.ts';

const CHUNKS = 48;
const ZERO_CHUNKS = [1, 4, 5, 6, 20, 47];
/** Chunk 2 consists of this byte only, for qemu-io's patterns. */
const PATTERN = 0xab;

const bytes = randomFillSync(Buffer.alloc(CHUNKS * CHUNK_BYTES));
for (const n of ZERO_CHUNKS) bytes.fill(0, n * CHUNK_BYTES, (n + 1) * CHUNK_BYTES);
bytes.fill(PATTERN, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES);

/** Runs of the same kind over the whole disk, as [offset, length, is zero]. */
const RUNS: [number, number, boolean][] = [];
for (let n = 0; n < CHUNKS; n++) {
  const zero = ZERO_CHUNKS.includes(n);
  const last = RUNS.at(-1);
  if (last && last[2] === zero) last[1] += CHUNK_BYTES;
  else RUNS.push([n * CHUNK_BYTES, CHUNK_BYTES, zero]);
}

const dir = mkdtempSync(join(tmpdir(), 'nbd-programs-'));
const golden = join(dir, 'golden');
writeFileSync(golden, bytes);
writeFileSync(join(dir, 'reversed'), Buffer.from(bytes).reverse());

const registry = new DriveRegistry();
// Cold, so that the first program waits for its reads and later ones do not.
const device = new BufferDevice(bytes, { name: 'disk', cold: true });
registry.add(device);
registry.add(new BufferDevice(Buffer.alloc(CHUNK_BYTES), { name: 'empty' }));
const server = new NbdServer({ registry });
const socket = join(dir, 's');
await server.listen({ path: socket });
await server.listen({ host: '127.0.0.1', port: 0 });
const { port } = server.addresses[1] as AddressInfo;

t.teardown(async () => {
  await server.close();
  rmSync(dir, { recursive: true });
});

/** Runs a program in the temporary directory; rejects if it fails. */
const exec = promisify(execFile);
async function run(program: string, ...args: string[]): Promise<string> {
  return (await exec(program, args, { cwd: dir, timeout: 120_000, maxBuffer: 16 * 1024 * 1024 })).stdout;
}

const TRANSPORTS = [
  ['Unix socket', `nbd+unix:///disk?socket=${socket}`, `nbd+unix:///?socket=${socket}`],
  ['TCP', `nbd://127.0.0.1:${port}/disk`, `nbd://127.0.0.1:${port}/`],
] as const;

for (const [transport, uri, base] of TRANSPORTS) {
  t.test(`nbdinfo --json tells the export as it is: ${transport}`, async (t) => {
    if (skipWithout(t, 'nbdinfo')) return;
    const info = JSON.parse(await run('nbdinfo', '--json', uri));
    t.equal(info.protocol, 'newstyle-fixed');
    t.equal(info.structured, true);
    t.match(info.exports, [
      {
        'export-name': 'disk',
        description: 'lazydisk sha256:disk',
        'export-size': bytes.length,
        contexts: ['base:allocation'],
        is_read_only: true,
        can_cache: true,
        can_df: true,
        can_flush: true,
        can_fua: false,
        can_multi_conn: true,
        can_trim: false,
        can_zero: false,
        block_size_minimum: 1,
        block_size_preferred: 4096,
        block_size_maximum: 32 * 1024 * 1024,
      },
    ]);
  });

  t.test(`nbdinfo --list names all exports: ${transport}`, async (t) => {
    if (skipWithout(t, 'nbdinfo')) return;
    const { exports } = JSON.parse(await run('nbdinfo', '--list', '--json', base));
    t.same(exports.map((one: Record<string, unknown>) => one['export-name']).sort(), ['disk', 'empty']);
  });

  // Over TCP, nbdinfo pauses 200 ms between options, so more of them would exceed the time limit of one negotiation.
  const manyCount = transport === 'TCP' ? 60 : 520;
  t.test(`nbdinfo --list names ${manyCount} exports: ${transport}`, async (t) => {
    if (skipWithout(t, 'nbdinfo')) return;
    const many = Array.from(
      { length: manyCount - 2 },
      (_, n) => new BufferDevice(bytes, { name: `many-${n}` }),
    );
    for (const one of many) registry.add(one);
    t.teardown(() => {
      for (const { name } of many) registry.remove(name);
    });
    t.equal(JSON.parse(await run('nbdinfo', '--list', '--json', base)).exports.length, manyCount);
  });

  t.test(`nbdinfo --can agrees with the flags: ${transport}`, async (t) => {
    if (skipWithout(t, 'nbdinfo')) return;
    for (const can of ['flush', 'df', 'cache', 'multi-conn', 'read']) await run('nbdinfo', '--can', can, uri);
    await run('nbdinfo', '--is', 'read-only', uri);
    // 2 is nbdinfo's "no"; 1 would be an error.
    for (const cannot of ['write', 'fua', 'trim', 'zero', 'fast-zero'])
      await t.rejects(run('nbdinfo', '--can', cannot, uri), { code: 2 }, cannot);
  });

  t.test(`nbdinfo --map finds data and holes: ${transport}`, async (t) => {
    if (skipWithout(t, 'nbdinfo')) return;
    const map = JSON.parse(await run('nbdinfo', '--map', '--json', uri));
    t.same(
      map.map(({ offset, length, type }: Record<string, number>) => [offset, length, type]),
      RUNS.map(([offset, length, zero]) => [offset, length, zero ? 3 : 0]),
    );
    const totals = JSON.parse(await run('nbdinfo', '--map', '--totals', '--json', uri));
    const sizes = new Map(totals.map(({ type, size }: Record<string, number>) => [type, size]));
    t.equal(sizes.get(3), ZERO_CHUNKS.length * CHUNK_BYTES);
    t.equal(sizes.get(0), (CHUNKS - ZERO_CHUNKS.length) * CHUNK_BYTES);
  });

  t.test(`nbdcopy copies every byte, over one connection and many: ${transport}`, async (t) => {
    if (skipWithout(t, 'nbdcopy')) return;
    const ways = [
      ['--connections=1', '--requests=1'],
      ['--connections=8', '--requests=64'],
      ['--synchronous'],
      ['--request-size=33554432'],
      ['--no-extents'],
    ];
    for (const way of ways) {
      const copy = join(dir, 'copy');
      await run('nbdcopy', ...way, uri, copy);
      t.ok(readFileSync(copy).equals(bytes), way.join(' '));
      rmSync(copy);
    }
  });

  t.test(`nbdcopy cannot write: ${transport}`, async (t) => {
    if (skipWithout(t, 'nbdcopy')) return;
    await t.rejects(run('nbdcopy', golden, uri));
  });

  t.test(`qemu-img finds the disk identical, and its map the holes: ${transport}`, async (t) => {
    if (skipWithout(t, 'qemu-img')) return;
    t.match(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', uri, golden), 'Images are identical');
    const map = JSON.parse(await run('qemu-img', 'map', '-f', 'raw', '--output=json', uri));
    t.same(
      map.map(({ start, length, zero, data }: Record<string, unknown>) => [start, length, zero, data]),
      RUNS.map(([offset, length, zero]) => [offset, length, zero, !zero]),
    );
  });

  t.test(`qemu-img sees a single other byte: ${transport}`, async (t) => {
    if (skipWithout(t, 'qemu-img')) return;
    const other = join(dir, 'other');
    const changed = Buffer.from(bytes);
    changed[changed.length - CHUNK_BYTES - 1]! ^= 1;
    writeFileSync(other, changed);
    await t.rejects(run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', uri, other), { code: 1 });
  });

  t.test(`qemu-io reads patterns at odd places, and may not write: ${transport}`, async (t) => {
    if (skipWithout(t, 'qemu-io')) return;
    const at = 2 * CHUNK_BYTES;
    const good = [`read -P ${PATTERN} ${at} ${CHUNK_BYTES}`, `read -P ${PATTERN} ${at + 513} 1023`];
    good.push(`read -P 0 ${4 * CHUNK_BYTES} ${3 * CHUNK_BYTES}`, 'flush');
    const commands = good.flatMap((command) => ['-c', command]);
    const text = await run('qemu-io', '-r', '-f', 'raw', ...commands, uri);
    t.notMatch(text, /verification failed|error/i);
    const wrong = await run('qemu-io', '-r', '-f', 'raw', '-c', `read -P 0 ${at} 512`, uri).catch(
      (e) => e.stdout,
    );
    t.match(wrong, 'Pattern verification failed', 'it does look');
    await t.rejects(run('qemu-io', '-f', 'raw', '-c', 'write 0 512', uri));
  });

  t.test(`nbdkit's checkwrite filter agrees with every byte: ${transport}`, async (t) => {
    if (skipWithout(t, 'nbdkit', 'nbdcopy')) return;
    const args = ['-U', '-', '--filter=checkwrite', 'nbd', `uri=${uri}`, '--run'];
    await run('nbdkit', ...args, `nbdcopy ${golden} "$uri"`);
    await t.rejects(
      run('nbdkit', ...args, `nbdcopy ${join(dir, 'reversed')} "$uri"`),
      'other bytes are seen',
    );
  });

  t.test(`fio verifies what it reads: ${transport}`, async (t) => {
    if (skipWithout(t, 'fio', 'nbdkit')) return;
    const args = [
      '--name=v',
      '--ioengine=nbd',
      '--rw=randread',
      '--bssplit=512/20:4k/60:128k/20',
      '--iodepth=32',
    ];
    const part = ['--verify=pattern', `--verify_pattern=0x${PATTERN.toString(16)}`, '--verify_fatal=1'];
    const range = (from: number) => [`--offset=${from * CHUNK_BYTES}`, `--size=${CHUNK_BYTES}`];
    await run('fio', ...args, ...part, ...range(2), `--uri=${uri}`);
    await t.rejects(run('fio', ...args, ...part, ...range(3), `--uri=${uri}`), 'it does look');
  });
}

t.test('after all of them nothing is pinned', async (t) => {
  while (server.stats().connections > 0) await new Promise((resolve) => setTimeout(resolve, 10));
  t.equal(device.pinned, 0);
  t.equal(server.stats().inflight, 0);
});
