/**
 * Building images of this machine's own files into a store, a small and a large one, because memory must not grow with
 * an image's size. The peer is the usual way to a disk: unpacking with umoci and making the file system from the tree
 * with mke2fs. Ours ends with every chunk compressed, sealed and fsynced; theirs with a plain disk in the page cache.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  createWriteStream,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { newKeyFile } from '../../src/keys/key-file.ts';
import { putIndex, putJson } from '../support/oci.ts';
import { hasTool } from '../support/tools.ts';
import { formatRows, type Row } from './row.ts';

const LAZYDISK = join(import.meta.dirname, '../../src/lazydisk');
/** Bytes of files; a machine with a smaller /usr uses what it has. */
const SIZES_BYTES = [500e6, 2000e6];
const RUNS = 2;
const PEER = 'umoci unpack + mke2fs -d';

interface Cost {
  readonly seconds: number;
  /** The largest resident set of any of its processes. */
  readonly peakBytes: number;
}

/** For each size, MB/s of layer tar and peak memory; each is the best of the runs, which alternate with the peer's. */
export async function benchBuild(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const sizeBytes of SIZES_BYTES) {
    const dir = mkdtempSync(join(tmpdir(), 'lazydisk-bench-build-'));
    try {
      rows.push(...(await benchSize(dir, sizeBytes)));
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  }
  return rows;
}

async function benchSize(dir: string, sizeBytes: number): Promise<Row[]> {
  const tarBytes = await makeImage(join(dir, 'oci'), sizeBytes);
  await newKeyFile(join(dir, 'key'));
  const ours: Cost[] = [];
  const peers: Cost[] = [];
  const withPeer = hasTool('umoci') && hasTool('mke2fs') && process.getuid?.() === 0;
  for (let run = 0; run < RUNS; run++) {
    ours.push(await buildOurs(dir));
    if (withPeer) peers.push(await buildPeer(dir, tarBytes));
  }
  const speed = (costs: Cost[]) => Math.max(...costs.map(({ seconds }) => tarBytes / seconds / 1e6));
  const peak = (costs: Cost[]) => Math.min(...costs.map(({ peakBytes }) => peakBytes / 2 ** 20));
  const row = (name: string, unit: string, value: (costs: Cost[]) => number): Row => {
    const mine = value(ours);
    if (!withPeer) return { name, unit, ours: mine };
    const theirs = value(peers);
    return { name, unit, ours: mine, peer: PEER, peerValue: theirs, ratio: mine / theirs };
  };
  const what = `build, ${Math.round(tarBytes / 1e6)} MB of tar`;
  return [row(what, 'MB/s', speed), row(`${what}, peak memory`, 'MiB', peak)];
}

/**
 * Writes an OCI layout with one gzip layer of the first files under /usr, `sizeBytes` of them; resolves to its tar
 * size.
 */
async function makeImage(dir: string, sizeBytes: number): Promise<number> {
  const blobs = join(dir, 'blobs/sha256');
  mkdirSync(blobs, { recursive: true });
  const tar = spawn('tar', ['-C', '/', '-cf', '-', '--null', '-T', '-'], {
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  const ended = once(tar, 'exit');
  tar.stdin.end(firstFiles(sizeBytes).join('\0'));
  const made = { tar: createHash('sha256'), tarBytes: 0, layer: createHash('sha256'), layerBytes: 0 };
  const counted = (hash: 'tar' | 'layer', bytes: 'tarBytes' | 'layerBytes') =>
    async function* (stream: AsyncIterable<Buffer>) {
      for await (const part of stream) {
        made[hash].update(part);
        made[bytes] += part.length;
        yield part;
      }
    };
  const layerFile = join(dir, 'layer');
  await pipeline(
    tar.stdout as Readable,
    counted('tar', 'tarBytes'),
    createGzip({ level: 1 }),
    counted('layer', 'layerBytes'),
    createWriteStream(layerFile),
  );
  if ((await ended)[0] !== 0) throw new Error('tar failed');
  const hex = made.layer.digest('hex');
  renameSync(layerFile, join(blobs, hex));
  const rootfs = { type: 'layers', diff_ids: [`sha256:${made.tar.digest('hex')}`] };
  const type = 'application/vnd.oci.image';
  const architecture = process.arch === 'x64' ? 'amd64' : process.arch;
  const config = await putJson(
    dir,
    { architecture, os: 'linux', config: {}, rootfs },
    `${type}.config.v1+json`,
  );
  const layer = { mediaType: `${type}.layer.v1.tar+gzip`, digest: `sha256:${hex}`, size: made.layerBytes };
  const mediaType = `${type}.manifest.v1+json`;
  const manifest = await putJson(dir, { schemaVersion: 2, mediaType, config, layers: [layer] }, mediaType);
  await putIndex(dir, [{ ...manifest, annotations: { 'org.opencontainers.image.ref.name': 'latest' } }]);
  writeFileSync(join(dir, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  return made.tarBytes;
}

/** Paths under /usr in order, until their sizes add up to `sizeBytes`. */
function firstFiles(sizeBytes: number): string[] {
  // Not readdirSync: its recursive mode takes gigabytes over a tree of this size.
  const found = execFileSync('find', ['/usr', '-xdev', '-type', 'f', '-printf', '%s %p\\0'], {
    encoding: 'utf8',
    maxBuffer: 256 * 2 ** 20,
  });
  const pathOf = (line: string) => line.slice(line.indexOf(' ') + 1);
  const lines = found.split('\0').filter((line) => line !== '');
  const files: string[] = [];
  let total = 0;
  for (const line of lines.sort((a, b) => (pathOf(a) < pathOf(b) ? -1 : 1))) {
    if (total >= sizeBytes) break;
    files.push(pathOf(line));
    total += Number.parseInt(line, 10);
  }
  return files;
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

/** Waits for the child. Its peak is the kernel's high-water mark, read often enough to be close at the end. */
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
      else reject(new Error(`${child.spawnargs.join(' ')} exited with ${code}`));
    });
  });
}

function peakOf(pid: number | undefined): number {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    return Number(/VmHWM:\s*(\d+) kB/.exec(status)?.[1] ?? 0) * 1024;
  } catch {
    return 0; // It has just exited.
  }
}

if (import.meta.main) process.stdout.write(formatRows(await benchBuild()));
