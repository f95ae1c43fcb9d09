/**
 * The FUSE export from memory: direct reads against qemu-storage-daemon's FUSE export of the same bytes, warm page
 * cache against a plain file, and the gain from pushing chunks into a cold page cache. Servers are separate processes;
 * our runs and the peer's alternate, and the best of each counts.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { contentOf, startDaemon } from '../export/fuse/daemon-child.ts';
import { hasTool } from '../support/tools.ts';
import { formatRows, type Row } from './row.ts';

const SIZE_BYTES = 256 * 1024 * 1024;
const RUN_S = 2;
const ROUNDS = 3;
const DIRECT = ['--rw=randread', '--bs=4k', '--direct=1', '--ioengine=libaio', '--iodepth=16'];
const BUFFERED = ['--rw=randread', '--bs=4k', '--ioengine=psync', '--invalidate=0'];
const TIMED = [`--runtime=${RUN_S}`, '--time_based'];

interface ColdReads {
  readonly name: string;
  readonly readers: number;
  /**
   * The share of the drive's pages that is read, each page once. Pushing a chunk costs the same however much of it is
   * read.
   */
  readonly share: number;
}

const COLD_READS: readonly ColdReads[] = [
  { name: '4 KiB buffered random, cold page cache, every fourth page', readers: 1, share: 1 / 4 },
  { name: 'the same, every page', readers: 1, share: 1 },
  { name: 'the same, every fourth page, 8 readers', readers: 8, share: 1 / 4 },
];

const run = promisify(execFile);

/** I/O operations per second that fio reaches on `file`. */
async function fioIops(file: string, args: readonly string[]): Promise<number> {
  const { stdout } = await run('fio', [
    '--name=bench',
    `--filename=${file}`,
    '--readonly',
    '--output-format=json',
    ...args,
  ]);
  return JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0].read.iops;
}

function withRatio(row: Omit<Row, 'ratio'>): Row {
  return row.peerValue ? { ...row, ratio: row.ours / row.peerValue } : row;
}

/** All rows; needs root or fusermount3, fio, and for its row qemu-storage-daemon. */
export async function benchFuse(): Promise<Row[]> {
  const dir = await mkdtemp(join(tmpdir(), 'lazydisk-bench-fuse-'));
  const shared = await mkdtemp(join('/dev/shm', 'lazydisk-bench-fuse-'));
  try {
    const content = join(shared, 'content');
    await writeFile(content, contentOf(SIZE_BYTES, 1));
    const rows = [await benchDirect(dir, content), await benchReread(dir, content)];
    for (const reads of COLD_READS) rows.push(await benchCold(dir, content, reads));
    return rows;
  } finally {
    await rm(dir, { recursive: true });
    await rm(shared, { recursive: true });
  }
}

async function benchDirect(dir: string, content: string): Promise<Row> {
  const name = 'FUSE 4 KiB random direct, depth 16';
  const mountDir = join(dir, 'direct');
  const daemon = await startDaemon({ dir: mountDir, content: { file: content }, pushChunks: true });
  let peer: Awaited<ReturnType<typeof startPeer>> | undefined;
  try {
    peer = hasTool('qemu-storage-daemon') ? await startPeer(join(dir, 'peer'), content) : undefined;
    let ours = 0;
    let peerValue = 0;
    for (let round = 0; round < ROUNDS; round++) {
      ours = Math.max(ours, await fioIops(join(mountDir, 'drive'), [...DIRECT, ...TIMED]));
      if (peer) peerValue = Math.max(peerValue, await fioIops(peer.file, [...DIRECT, ...TIMED]));
    }
    if (!peer) return { name, ours, unit: 'IOPS', goal: 3 };
    return withRatio({ name, ours, peer: 'qemu-storage-daemon', peerValue, unit: 'IOPS', goal: 3 });
  } finally {
    await peer?.stop();
    await daemon.stop();
  }
}

async function benchReread(dir: string, content: string): Promise<Row> {
  const mountDir = join(dir, 'reread');
  const plain = join(dir, 'plain');
  await run('cp', [content, plain]);
  const daemon = await startDaemon({ dir: mountDir, content: { file: content }, pushChunks: true });
  try {
    const drive = join(mountDir, 'drive');
    for (const file of [drive, plain]) await run('cmp', [file, content]);
    let ours = 0;
    let peerValue = 0;
    for (let round = 0; round < ROUNDS; round++) {
      ours = Math.max(ours, await fioIops(drive, [...BUFFERED, ...TIMED]));
      peerValue = Math.max(peerValue, await fioIops(plain, [...BUFFERED, ...TIMED]));
    }
    const name = 'FUSE 4 KiB buffered random re-read';
    return withRatio({ name, ours, peer: 'plain file', peerValue, unit: 'IOPS', goal: 0.9 });
  } finally {
    await daemon.stop();
  }
}

/** A new mount for each run: nothing is in the page cache, everything is in the daemon's memory. */
async function benchCold(dir: string, content: string, { name, readers, share }: ColdReads): Promise<Row> {
  const mountDir = join(dir, 'cold');
  const measure = async (pushChunks: boolean) => {
    const daemon = await startDaemon({ dir: mountDir, content: { file: content }, pushChunks });
    try {
      const reads = [
        `--io_size=${SIZE_BYTES * share}`,
        `--numjobs=${readers}`,
        '--group_reporting',
        '--thread',
      ];
      return await fioIops(join(mountDir, 'drive'), [...BUFFERED, '--norandommap=0', ...reads]);
    } finally {
      await daemon.stop();
    }
  };
  let ours = 0;
  let peerValue = 0;
  for (let round = 0; round < ROUNDS; round++) {
    ours = Math.max(ours, await measure(true));
    peerValue = Math.max(peerValue, await measure(false));
  }
  return withRatio({
    name: `FUSE ${name}, chunks pushed`,
    ours,
    peer: 'not pushed',
    peerValue,
    unit: 'IOPS',
  });
}

/** qemu-storage-daemon's FUSE export, which mounts on a regular file. */
async function startPeer(file: string, content: string) {
  await writeFile(file, '');
  const ready = `${file}.pid`;
  const child = spawn(
    'qemu-storage-daemon',
    [
      ...['--blockdev', `driver=file,filename=${content},node-name=content,read-only=on`],
      ...['--export', `type=fuse,id=export,node-name=content,mountpoint=${file},writable=off`],
      ...['--pidfile', ready],
    ],
    { stdio: 'ignore' },
  );
  const ended = once(child, 'exit');
  // The pid file is written when the exports are up.
  while (child.exitCode === null && !(await exists(ready))) await new Promise((done) => setTimeout(done, 20));
  const stop = async () => {
    child.kill('SIGTERM');
    await ended;
  };
  return { file, stop };
}

async function exists(file: string): Promise<boolean> {
  return run('test', ['-s', file]).then(
    () => true,
    () => false,
  );
}

if (import.meta.main) process.stdout.write(formatRows(await benchFuse()));
