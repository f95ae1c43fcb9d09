/**
 * The NBD export from memory, against nbdkit's memory plugin and qemu-nbd with the same bytes, through fio's nbd engine
 * over Unix sockets. Every server is a separate process. Each round measures all of them in turn, and the best round of
 * each counts, so that a busy moment of the machine affects them alike.
 */
import { execFile, spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { startServer } from '../export/nbd/server-child.ts';
import { hasTool } from '../support/tools.ts';
import { formatRows, type Row } from './row.ts';

const SIZE_BYTES = 256 * 1024 * 1024;
const RUN_S = 3;
const ROUNDS = 3;

const run = promisify(execFile);

interface Load {
  readonly name: string;
  readonly unit: 'IOPS' | 'GB/s';
  readonly fio: readonly string[];
  /** The smallest acceptable ratio to nbdkit's figure. */
  readonly goal: number;
}

const LOADS: readonly Load[] = [
  {
    name: '4 KiB random, depth 16',
    unit: 'IOPS',
    fio: ['--rw=randread', '--bs=4k', '--iodepth=16'],
    goal: 1.6,
  },
  {
    name: '4 KiB random, depth 16, 4 connections',
    unit: 'IOPS',
    fio: ['--rw=randread', '--bs=4k', '--iodepth=16', '--numjobs=4', '--thread', '--group_reporting'],
    goal: 1.6,
  },
  { name: '4 KiB random, depth 1', unit: 'IOPS', fio: ['--rw=randread', '--bs=4k', '--iodepth=1'], goal: 1 },
  {
    name: '256 KiB sequential, depth 4',
    unit: 'GB/s',
    fio: ['--rw=read', '--bs=256k', '--iodepth=4'],
    goal: 1,
  },
];

interface Server {
  readonly name: string;
  readonly uri: string;
  stop(): Promise<unknown>;
}

/** How long the event loop of two of our servers is blocked. */
const BUSY_MS = 20;
/**
 * At a steady rate, so that each stall meets 16 of some 80 reads and the 99th percentile shows it. At full speed there
 * are thousands of reads between two stalls, and reads wait for the processor rather than for JavaScript.
 */
const BUSY_LOAD = ['--rw=randread', '--bs=4k', '--iodepth=16', '--rate_iops=2000'];

/** All rows; needs fio, and for the peers nbdkit, nbdcopy and qemu-nbd. */
export async function benchNbd(): Promise<Row[]> {
  const dir = await mkdtemp(join(tmpdir(), 'lazydisk-bench-nbd-'));
  const shared = await mkdtemp(join('/dev/shm', 'lazydisk-bench-nbd-'));
  const servers: Server[] = [];
  try {
    const content = join(shared, 'content');
    // No zeroes, which we would send as holes: all servers must move the same bytes.
    const bytes = Buffer.alloc(SIZE_BYTES, randomFillSync(Buffer.alloc(1024 * 1024)));
    await writeFile(content, bytes);
    // One chunk in eight is all zero, as in the image of a disk.
    const sparse = join(shared, 'sparse');
    for (let at = 0; at < SIZE_BYTES; at += 8 * CHUNK_BYTES) bytes.fill(0, at, at + CHUNK_BYTES);
    await writeFile(sparse, bytes);
    servers.push(await startOurs(join(dir, 'ours.sock'), content));
    if (hasTool('nbdkit') && hasTool('nbdcopy'))
      servers.push(await startNbdkit(join(dir, 'kit.sock'), content));
    if (hasTool('qemu-nbd')) servers.push(await startQemuNbd(join(dir, 'qemu.sock'), content));
    const rows: Row[] = [];
    for (const load of LOADS) rows.push(...(await benchLoad(load, servers)));
    rows.push(await benchBusy(dir, sparse));
    return rows;
  } finally {
    for (const server of servers) await server.stop();
    await rm(dir, { recursive: true });
    await rm(shared, { recursive: true });
  }
}

/** One load on every server in turn; one row per peer. */
async function benchLoad(load: Load, servers: readonly Server[]): Promise<Row[]> {
  const best = servers.map(() => 0);
  for (let round = 0; round < ROUNDS; round++) {
    for (const [n, server] of servers.entries()) {
      best[n] = Math.max(best[n]!, await measure(load, server));
    }
  }
  const ours = best[0]!;
  const row = { name: `NBD ${load.name}`, ours, unit: load.unit };
  if (servers.length === 1) return [row];
  return servers.slice(1).map((server, n) => {
    const peerValue = best[n + 1]!;
    const goal = server.name === 'nbdkit' ? { goal: load.goal } : {};
    return { ...row, peer: server.name, peerValue, ratio: ours / peerValue, ...goal };
  });
}

/**
 * How long reads of memory wait while JavaScript is busy half of the time: with the native thread, and without it.
 */
async function benchBusy(dir: string, content: string): Promise<Row> {
  const [ours, without] = await Promise.all(
    [true, false].map(async (hits) => {
      const path = join(dir, `busy-${hits}.sock`);
      const { stop } = await startServer({ path, name: 'drive', file: content, busyMs: BUSY_MS, hits });
      return { uri: `nbd+unix:///drive?socket=${path}`, stop };
    }),
  );
  const best = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  for (let round = 0; round < ROUNDS; round++) {
    for (const [n, { uri }] of [ours!, without!].entries()) {
      const read = await runFio(uri, BUSY_LOAD);
      best[n] = Math.min(best[n]!, read.clat_ns.percentile['99.000000'] / 1e6);
    }
  }
  await Promise.all([ours!.stop(), without!.stop()]);
  const [p99Ms, withoutMs] = best as [number, number];
  const name = `NBD 4 KiB, 2,000 a second, p99 while JavaScript is busy for ${BUSY_MS} of 40 ms`;
  const row = { name, ours: p99Ms, unit: 'ms', peer: 'answered by JavaScript', peerValue: withoutMs };
  // The largest acceptable value is one millisecond.
  return { ...row, ratio: p99Ms / withoutMs, goal: Number((1 / withoutMs).toPrecision(2)), goalIsMost: true };
}

async function measure(load: Load, server: Server): Promise<number> {
  const read = await runFio(server.uri, load.fio);
  return load.unit === 'IOPS' ? read.iops : read.bw_bytes / 1e9;
}

/** fio's measurements of its reads. */
interface FioReads {
  readonly iops: number;
  readonly bw_bytes: number;
  readonly clat_ns: { readonly percentile: Readonly<Record<'99.000000', number>> };
}

async function runFio(uri: string, load: readonly string[]): Promise<FioReads> {
  const { stdout } = await run('fio', [
    ...['--name=bench', '--ioengine=nbd', `--uri=${uri}`, '--output-format=json'],
    ...[`--size=${SIZE_BYTES}`, `--runtime=${RUN_S}`, '--time_based', ...load],
  ]);
  // fio reports that it connected, and then prints its JSON.
  return JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0].read;
}

async function startOurs(path: string, file: string): Promise<Server> {
  const { stop } = await startServer({ path, name: 'drive', file });
  return { name: 'lazydisk', uri: `nbd+unix:///drive?socket=${path}`, stop };
}

async function startNbdkit(path: string, file: string): Promise<Server> {
  const uri = `nbd+unix:///?socket=${path}`;
  const stop = await startPeer(path, 'nbdkit', ['-f', '-U', path, 'memory', String(SIZE_BYTES)]);
  await run('nbdcopy', [file, uri]);
  return { name: 'nbdkit', uri, stop };
}

async function startQemuNbd(path: string, file: string): Promise<Server> {
  const args = ['--read-only', '--format=raw', '--persistent', '--shared=4', `--socket=${path}`, file];
  return {
    name: 'qemu-nbd',
    uri: `nbd+unix:///?socket=${path}`,
    stop: await startPeer(path, 'qemu-nbd', args),
  };
}

/** Starts a program that creates a socket at `path`; returns a function that ends it. */
async function startPeer(
  path: string,
  program: string,
  args: readonly string[],
): Promise<() => Promise<void>> {
  const child = spawn(program, args, { stdio: 'ignore' });
  const ended = once(child, 'exit');
  while (child.exitCode === null && !(await isThere(path))) await new Promise((done) => setTimeout(done, 20));
  if (child.exitCode !== null) throw new Error(`${program} exited at once (${child.exitCode})`);
  return async () => {
    child.kill('SIGTERM');
    await ended;
  };
}

function isThere(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

if (import.meta.main) process.stdout.write(formatRows(await benchNbd()));
