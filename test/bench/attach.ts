/**
 * The cost of a drive before anything is read: attach latency of a 10 GiB image through the control socket, with its
 * manifest known to the daemon and not, and the daemon's resident memory with 1, 100 and 1000 drives. The image is only
 * a manifest, of as many chunks as such an image stores; its chunks do not exist, because nothing reads them.
 */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ControlClient } from '../../src/daemon/client.ts';
import { CHUNK_BYTES, type ChunkId, KEY_BYTES } from '../../src/format/chunk-id.ts';
import type { TenantKey } from '../../src/format/keys.ts';
import { newKeyFile } from '../../src/keys/key-file.ts';
import { openStore } from '../../src/store/open.ts';
import type { Store } from '../../src/store/store.ts';
import { putEntries } from '../support/stored-disk.ts';
import { formatRows, type Row } from './row.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;
const DISK_CHUNKS = (10 * 1024 ** 3) / CHUNK_BYTES;
/** A disk that is nearly full: every chunk except a few. */
const STORED_CHUNKS = 20_000;
const IMAGES = 40;
const ATTACHES = 400;

export async function benchAttach(): Promise<Row[]> {
  const dir = await mkdtemp(join(tmpdir(), 'lzd-'));
  const runDir = join(dir, 'run');
  try {
    const key = await newKeyFile(join(dir, 'key'));
    const store = await openStore(join(dir, 'store'), { create: true });
    for (let image = 0; image < IMAGES; image++) await putManifest(store, key, `image${image}`);
    await store.close();
    const words = ['serve', '--store', join(dir, 'store'), '--key', join(dir, 'key'), '--run-dir', runDir];
    const sizes = [
      '--cache',
      join(dir, 'cache'),
      '--cache-size',
      '64M',
      '--memory',
      '64M',
      '--log-level',
      'error',
    ];
    const daemon = spawn(process.execPath, [MAIN, ...words, ...sizes], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    const ended = once(daemon, 'exit');
    try {
      const client = new ControlClient(runDir);
      while (daemon.exitCode === null && !(await client.status().catch(() => undefined))) await sleep(20);
      return await measure(client, daemon.pid!);
    } finally {
      daemon.kill('SIGTERM');
      await ended;
    }
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

async function measure(client: ControlClient, pid: number): Promise<Row[]> {
  const rows: Row[] = [];
  const attached: string[] = [];
  for (const drives of [1, 100, 1000]) {
    while (attached.length < drives) {
      const { name } = await client.attach({ image: 'image0', name: `vm${attached.length}` });
      attached.push(name);
    }
    rows.push({
      name: `resident memory, drives attached: ${drives}`,
      ours: await residentMib(pid),
      unit: 'MiB',
    });
  }
  for (const name of attached) await client.detach(name);

  const cold: number[] = [];
  for (let image = 1; image < IMAGES; image++) cold.push(await timeAttach(client, `image${image}`, 'drive'));
  const warm: number[] = [];
  for (let n = 0; n < ATTACHES; n++) warm.push(await timeAttach(client, `image${IMAGES - 1}`, 'drive'));
  for (const [what, times] of [
    ['first drive of its image', cold],
    ['image known', warm],
  ] as const) {
    rows.push({ name: `10 GiB attach, ${what}, p50`, ours: percentile(times, 0.5), unit: 'ms' });
    rows.push({ name: `10 GiB attach, ${what}, p99`, ours: percentile(times, 0.99), unit: 'ms' });
  }
  return rows;
}

/** Milliseconds from the request to the answer; the drive has been detached again when this resolves. */
async function timeAttach(client: ControlClient, image: string, name: string): Promise<number> {
  const startMs = performance.now();
  await client.attach({ image, name });
  const tookMs = performance.now() - startMs;
  await client.detach(name);
  return tookMs;
}

async function residentMib(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) / 1024;
}

async function putManifest(store: Store, key: TenantKey, name: string): Promise<void> {
  const writer = await store.writer();
  const entries = Array.from({ length: STORED_CHUNKS }, (_, index) => ({
    index,
    ref: {
      id: randomBytes(32).toString('hex') as ChunkId,
      key: randomBytes(KEY_BYTES),
      sealedBytes: 200_000,
    },
  }));
  await putEntries(writer, key, { name: `${name}:latest`, diskBytes: DISK_CHUNKS * CHUNK_BYTES, entries });
}

function percentile(values: number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!;
}

if (import.meta.main) process.stdout.write(formatRows(await benchAttach()));
