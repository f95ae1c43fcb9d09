/**
 * Build: one image of this machine's own files into a store, against the usual way to a disk, which is to unpack
 * with umoci and make the file system from the tree with mke2fs. Ours ends with every chunk compressed, sealed and
 * fsynced; theirs with a plain disk in the page cache.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { newKeyFile } from '../../src/store/key-file.ts';
import { makeOciLayout } from '../support/oci.ts';
import { hasTool } from '../support/tools.ts';
import { formatRows, type Row } from './row.ts';

const LAZYDISK = join(import.meta.dirname, '../../src/lazydisk');
const LAYER_BYTES = 250 * 2 ** 20;
const RUNS = 3;
const PEER = 'umoci unpack + mke2fs -d';

interface Cost {
  readonly seconds: number;
  /** Largest resident set of any process of it. */
  readonly peakBytes: number;
}

/** MB/s of layer tar and peak memory, each the best of three runs that take turns. */
export async function benchBuild(): Promise<Row[]> {
  const dir = mkdtempSync(join(tmpdir(), 'lazydisk-bench-build-'));
  try {
    const tarBytes = await makeImage(dir);
    await newKeyFile(join(dir, 'key'));
    const ours: Cost[] = [];
    const peers: Cost[] = [];
    const withPeer = hasTool('umoci') && hasTool('mke2fs') && process.getuid?.() === 0;
    for (let run = 0; run < RUNS; run++) {
      ours.push(await buildOurs(dir));
      if (withPeer) peers.push(await buildPeer(dir, tarBytes));
    }
    const speed = (costs: Cost[]) => Math.max(...costs.map(({ seconds }) => tarBytes / seconds / 1e6));
    const peak = (costs: Cost[]) => Math.min(...costs.map(({ peakBytes }) => peakBytes / 1e6));
    const row = (name: string, unit: string, value: (costs: Cost[]) => number): Row => {
      const mine = value(ours);
      if (!withPeer) return { name, unit, ours: mine };
      const theirs = value(peers);
      return { name, unit, ours: mine, peer: PEER, peerValue: theirs, ratio: mine / theirs };
    };
    return [row('build, layer tar read', 'MB/s', speed), row('build, peak memory', 'MB', peak)];
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** An OCI layout in `dir`/oci with one gzip layer of the first files under /usr/lib; resolves to its tar's bytes. */
async function makeImage(dir: string): Promise<number> {
  // Not readdirSync: its recursive mode takes gigabytes over a tree of this size.
  const found = execFileSync('find', ['/usr/lib', '-xdev', '-type', 'f', '-printf', '%s %p\\0'], {
    encoding: 'utf8',
    maxBuffer: 64 * 2 ** 20,
  });
  const files: string[] = [];
  let sizeBytes = 0;
  for (const line of found
    .split('\0')
    .sort((a, b) => (a.slice(a.indexOf('/')) < b.slice(b.indexOf('/')) ? -1 : 1))) {
    const path = line.slice(line.indexOf('/') + 1);
    if (path === '') continue;
    if (sizeBytes >= LAYER_BYTES) break;
    files.push(path);
    sizeBytes += Number.parseInt(line, 10);
  }
  const tarFile = join(dir, 'layer.tar');
  execFileSync('tar', ['-C', '/', '-cf', tarFile, '--null', '-T', '-'], { input: files.join('\0') });
  const layer = readFileSync(tarFile);
  rmSync(tarFile);
  await makeOciLayout(join(dir, 'oci'), { layers: [layer] });
  return layer.length;
}

async function buildOurs(dir: string): Promise<Cost> {
  const store = join(dir, 'store');
  rmSync(store, { recursive: true, force: true });
  const key = join(dir, 'key');
  return run(LAZYDISK, 'build', `oci:${join(dir, 'oci')}`, '--name', 'bench', '--store', store, '--key', key);
}

async function buildPeer(dir: string, tarBytes: number): Promise<Cost> {
  const bundle = join(dir, 'bundle');
  const disk = join(dir, 'disk.img');
  for (const path of [bundle, disk]) rmSync(path, { recursive: true, force: true });
  const unpack = await run('umoci', 'unpack', '--image', `${join(dir, 'oci')}:latest`, bundle);
  const blocks = `${Math.ceil((tarBytes * 1.5) / 2 ** 20)}M`;
  const make = await run('mke2fs', '-q', '-t', 'ext4', '-d', join(bundle, 'rootfs'), disk, blocks);
  return { seconds: unpack.seconds + make.seconds, peakBytes: Math.max(unpack.peakBytes, make.peakBytes) };
}

function run(program: string, ...words: string[]): Promise<Cost> {
  const startMs = performance.now();
  return costOf(spawn(program, words, { stdio: ['ignore', 'ignore', 'inherit'] }), startMs);
}

/** Waits for the child. Its peak is the kernel's high-water mark, read often enough to have it near the end. */
function costOf(child: ChildProcess, startMs: number): Promise<Cost> {
  return new Promise((resolve, reject) => {
    let peakBytes = 0;
    const timer = setInterval(() => {
      peakBytes = Math.max(peakBytes, peakOf(child.pid));
    }, 10);
    child.on('error', reject);
    child.on('exit', (code) => {
      clearInterval(timer);
      if (code === 0) resolve({ seconds: (performance.now() - startMs) / 1000, peakBytes });
      else reject(new Error(`${child.spawnargs.join(' ')} ended with ${code}`));
    });
  });
}

function peakOf(pid: number | undefined): number {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    return Number(/VmHWM:\s*(\d+) kB/.exec(status)?.[1] ?? 0) * 1024;
  } catch {
    return 0; // It has just ended.
  }
}

if (import.meta.main) process.stdout.write(formatRows(await benchBuild()));
