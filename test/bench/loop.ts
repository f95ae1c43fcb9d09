/**
 * How long the daemon's event loop is blocked while everything happens at once: guests that read data in memory and not
 * in memory, over NBD and FUSE; thousands of drives that are attached, listed and detached; scrapes; and first attaches
 * of an image of 1 TiB. A probe in the daemon's process measures the loop once per millisecond. Exits with 1 if the
 * delay's 99th percentile or maximum exceeds its goal.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ControlClient } from '../../src/daemon/client.ts';
import { CHUNK_BYTES, type ChunkId, KEY_BYTES } from '../../src/format/chunk-id.ts';
import { loadKeyFile } from '../../src/keys/key-file.ts';
import { openStore } from '../../src/store/open.ts';
import { diskWorkplace, type Workplace } from '../support/daemon.ts';
import { NbdClient } from '../support/nbd-client.ts';
import { putEntries } from '../support/stored-disk.ts';
import { formatRows, type Row } from './row.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;
const PROBE = new URL('./loop-probe.ts', import.meta.url).pathname;
const SOAK_MS = 20_000;
const DRIVES = 4_000;
const DISK_CHUNKS = 512;
/** A full disk of 1 TiB, whose manifest is 150 MB. */
const LARGE_CHUNKS = 2 ** 21;
const P99_MS_MAX = 5;
const MAX_MS_MAX = 20;

/** What test helpers need from a test: to be called when everything is over. */
class Teardowns {
  readonly #steps: (() => unknown)[] = [];

  teardown(step: () => unknown): void {
    this.#steps.push(step);
  }

  async end(): Promise<void> {
    for (const step of this.#steps.reverse()) await step();
  }
}

interface Probed {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

class Probe {
  readonly #daemon: ChildProcess;

  constructor(daemon: ChildProcess) {
    this.#daemon = daemon;
  }

  /** The measurements since the last call. */
  async read(): Promise<Probed> {
    const answer = once(this.#daemon, 'message');
    this.#daemon.send('read');
    return (await answer)[0] as Probed;
  }
}

export async function benchLoop(): Promise<Row[]> {
  const t = new Teardowns();
  try {
    const place = await diskWorkplace(t as never, DISK_CHUNKS);
    await putLarge(place);
    const words = ['serve', '--store', place.store, '--key', place.key, '--run-dir', place.runDir];
    const sizes = [
      '--cache',
      place.cache,
      '--cache-size',
      '512M',
      '--memory',
      '64M',
      '--starts-max',
      '10000',
    ];
    const daemon = spawn(
      process.execPath,
      ['--import', PROBE, MAIN, ...words, ...sizes, '--log-level', 'error'],
      {
        stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      },
    );
    const ended = once(daemon, 'exit');
    t.teardown(async () => {
      daemon.kill('SIGTERM');
      await ended;
    });
    const client = new ControlClient(place.runDir);
    while (daemon.exitCode === null && !(await client.status().catch(() => undefined))) await sleep(20);
    for (let n = 0; n < DRIVES; n++) await client.attach({ image: place.image.digest, name: `vm${n}` });
    const probe = new Probe(daemon);
    await probe.read();
    await sleep(2_000);
    const idle = await probe.read();
    const done = await soak(client, place);
    const busy = await probe.read();
    process.stdout.write(`${done}\n${blockedLines(await client.metrics())}`);
    return [
      { name: 'event-loop delay, idle, p99', ours: idle.p99Ms, unit: 'ms' },
      { name: 'event-loop delay, soak, p50', ours: busy.p50Ms, unit: 'ms' },
      goalRow('event-loop delay, soak, p99', busy.p99Ms, P99_MS_MAX),
      goalRow('event-loop delay, soak, max', busy.maxMs, MAX_MS_MAX),
    ];
  } finally {
    await t.end();
  }
}

function goalRow(name: string, ours: number, most: number): Row {
  const against = { peer: 'bound, ms', peerValue: most, ratio: ours / most };
  return { name, ours, unit: 'ms', ...against, goal: 1, goalIsMost: true };
}

/** Runs everything at once for a time; returns how often each operation was done. */
async function soak(client: ControlClient, place: Workplace): Promise<string> {
  const until = performance.now() + SOAK_MS;
  const counts = new Map<string, number>();
  const forever = async (name: string, work: (n: number) => Promise<unknown>) => {
    for (let n = 0; performance.now() < until; n++) {
      await work(n);
      counts.set(name, (counts.get(name) ?? 0) + 1);
    }
  };
  const guests = await Promise.all(
    Array.from({ length: 8 }, (_, n) => NbdClient.open({ path: join(place.runDir, 'nbd.sock') }, `vm${n}`)),
  );
  const { fuse } = await client.stat('vm0');
  const file = fuse === null ? undefined : await open(fuse);
  const offset = (chunks: number) => Math.floor(Math.random() * chunks * 128) * 4096;
  await Promise.all([
    // The first 32 chunks fit into memory; all chunks do not.
    ...guests.map((guest, n) =>
      forever(n < 4 ? 'NBD reads of memory' : 'NBD reads', () =>
        guest.request({ type: 0, offset: offset(n < 4 ? 32 : DISK_CHUNKS), lengthBytes: 4096 }),
      ),
    ),
    file && forever('FUSE reads', () => file.read(Buffer.alloc(65_536), 0, 65_536, offset(DISK_CHUNKS - 1))),
    forever('attaches', async (n) => {
      await client.attach({ image: 'app:1', name: `new${n}` });
      await client.detach(`new${n}`);
      await sleep(10);
    }),
    forever('lists of all drives', () => client.drives().then(() => sleep(500))),
    forever('scrapes', () => client.metrics().then(() => sleep(500))),
    forever('first attaches of 1 TiB', async (n) => {
      await client.attach({ image: `large${n % 2}:1`, name: 'large' });
      await client.detach('large');
      await sleep(1_000);
    }),
  ]);
  await file?.close();
  for (const guest of guests) guest.close();
  return [...counts].map(([name, count]) => `${count} ${name}`).join(', ');
}

/** What blocked the event loop, according to the daemon's metrics. */
function blockedLines(metrics: string): string {
  const lines = metrics
    .split('\n')
    .filter((line) => /^lazydisk_event_loop_blocked_\w+\{.* (?!0$)/.test(line));
  return lines.map((line) => `${line}\n`).join('');
}

/** Two images of 1 TiB, too large for the daemon to keep one while it is unused. */
async function putLarge(place: Workplace): Promise<void> {
  const key = await loadKeyFile(place.key);
  const store = await openStore(place.store);
  const writer = await store.writer();
  const ref = {
    id: randomBytes(32).toString('hex') as ChunkId,
    key: randomBytes(KEY_BYTES),
    sealedBytes: 200_000,
  };
  for (const name of ['large0:1', 'large1:1']) {
    await putEntries(writer, key, {
      name,
      diskBytes: LARGE_CHUNKS * CHUNK_BYTES,
      entries: Array.from({ length: LARGE_CHUNKS }, (_, index) => ({ index, ref })),
      writerVersion: `bench/${name.at(-3)}`,
    });
  }
  await store.close();
}

if (import.meta.main) {
  const rows = await benchLoop();
  process.stdout.write(formatRows(rows));
  process.exit(rows.some(({ ratio = 0 }) => ratio > 1) ? 1 : 0);
}
