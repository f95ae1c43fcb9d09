/**
 * `npm run bench:origin`: an S3 origin (a real RGW on loopback) against the tools that people move files with, on one file
 * of the same bytes; what our reads cost over a bare signed GET; and how fast garbage is found and stores are checked.
 */
import { spawn } from 'node:child_process';
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { Agent, get } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CHUNK_BYTES, type ChunkId } from '../../src/format/chunk-id.ts';
import { newKeyFile } from '../../src/store/key-file.ts';
import { openStore } from '../../src/store/open.ts';
import { type Key, Rgw } from '../support/rgw.ts';
import { putDisk } from '../support/stored-disk.ts';
import { benchFsckGc } from './fsck-gc.ts';
import { formatRows, type Row } from './row.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;
const CHUNKS = 1000;
const RUNS = 2;
const GETS = 400;

/** What the server gives to whoever moves objects as small as chunks are, which cost it the same work each as large ones. */
const SAME_OBJECTS = 'rclone, an object a chunk';
const LANES = ['--transfers', '16', '--checkers', '16'];

/** Half of each chunk is noise, so that a sealed one is as long as real ones are. */
function diskBytes(): Buffer {
  const disk = Buffer.alloc(CHUNKS * CHUNK_BYTES);
  for (let chunk = 0; chunk < CHUNKS; chunk++) randomBytes(CHUNK_BYTES / 2).copy(disk, chunk * CHUNK_BYTES);
  return disk;
}

export async function benchOrigin(): Promise<Row[]> {
  const dir = await mkdtemp(join(tmpdir(), 'lzd-'));
  const rgw = await Rgw.start();
  try {
    rgw.useInThisProcess();
    await rgw.createBucket('bench');
    const key = await newKeyFile(join(dir, 'key'));
    const local = await openStore(join(dir, 'store'), { create: true });
    const image = await putDisk(local, key, 'app:1', diskBytes());
    const ids = Array.from(
      { length: image.manifest.storedChunks },
      (_, entry) => image.manifest.ref(entry).id,
    );
    const sealed = await Promise.all(ids.map(async (id) => (await local.getChunk(id))!));
    await local.close();
    const file = join(dir, 'file');
    await writeFile(file, Buffer.concat(sealed));
    await mkdir(join(dir, 'chunks'));
    for (const [n, id] of ids.entries()) await writeFile(join(dir, 'chunks', id), sealed[n]!);
    const megabytes = sealed.reduce((sum, { length }) => sum + length, 0) / 1e6;
    return [
      ...(await transfers(rgw, dir, file, megabytes)),
      ...(await latencies(rgw, `s3://bench/image-0?endpoint=${rgw.endpoint}`, ids)),
    ];
  } finally {
    await rgw.close();
    await rm(dir, { recursive: true, force: true });
  }
}

/** Whole programs, one after the other in turn: ours move the image chunk by chunk and prove each one. */
async function transfers(rgw: Rgw, dir: string, file: string, megabytes: number): Promise<Row[]> {
  const remote = (run: number) => `s3://bench/image-${run}?endpoint=${rgw.endpoint}`;
  const s3cmd = ['s3cmd', '-c', join(dir, 's3cfg')];
  const rclone = ['rclone', '--config', join(dir, 'rclone.conf')];
  await writeConfigs(rgw, dir);
  const lazydisk = [process.execPath, MAIN];
  const uploads: Record<string, (run: number) => string[]> = {
    lazydisk: (run) => [...lazydisk, 'copy', 'app:1', join(dir, 'store'), remote(run)],
    s3cmd: (run) => [...s3cmd, 'put', file, `s3://bench/s3cmd-${run}`],
    rclone: (run) => [...rclone, 'copyto', file, `rgw:bench/rclone-${run}`],
    [SAME_OBJECTS]: (run) => [...rclone, ...LANES, 'copy', join(dir, 'chunks'), `rgw:bench/chunks-${run}`],
  };
  const downloads: Record<string, (run: number) => string[]> = {
    lazydisk: (run) => [
      ...lazydisk,
      'export',
      'app:1',
      '/dev/null',
      '--store',
      remote(run),
      '--key',
      join(dir, 'key'),
    ],
    s3cmd: (run) => [...s3cmd, 'get', '--force', `s3://bench/s3cmd-${run}`, join(dir, 'got')],
    rclone: (run) => [...rclone, 'copyto', `rgw:bench/rclone-${run}`, join(dir, 'got')],
    [SAME_OBJECTS]: (run) => [
      ...rclone,
      ...LANES,
      'copy',
      `rgw:bench/chunks-${run}`,
      join(dir, `got-${run}`),
    ],
  };
  const rows: Row[] = [];
  for (const [what, programs] of [
    ['upload', uploads],
    ['cold whole-image download', downloads],
  ] as const) {
    const seconds: Record<string, number[]> = {};
    for (let run = 0; run < RUNS; run++)
      for (const [program, words] of Object.entries(programs)) {
        seconds[program] ??= [];
        seconds[program].push(await timeOf(words(run)));
      }
    const speed = (program: string) => megabytes / median(seconds[program]!);
    for (const peer of ['s3cmd', 'rclone', SAME_OBJECTS])
      rows.push({
        ...{ name: what, ours: speed('lazydisk'), unit: 'MB/s', peer, peerValue: speed(peer) },
        ratio: speed('lazydisk') / speed(peer),
        ...(peer !== SAME_OBJECTS && { goal: 0.8 }),
      });
  }
  return rows;
}

async function writeConfigs({ endpoint, key }: Rgw, dir: string): Promise<void> {
  const { host } = new URL(endpoint);
  const s3cfg = [
    ...['[default]', `access_key = ${key.accessKeyId}`, `secret_key = ${key.secretAccessKey}`],
    ...[`host_base = ${host}`, `host_bucket = ${host}`, 'use_https = False', 'progress_meter = False'],
  ];
  await writeFile(join(dir, 's3cfg'), `${s3cfg.join('\n')}\n`, { mode: 0o600 });
  const rclone = [
    ...['[rgw]', 'type = s3', 'provider = Ceph', `endpoint = ${endpoint}`],
    ...[`access_key_id = ${key.accessKeyId}`, `secret_access_key = ${key.secretAccessKey}`],
  ];
  await writeFile(join(dir, 'rclone.conf'), `${rclone.join('\n')}\n`, { mode: 0o600 });
}

async function timeOf([program, ...words]: string[]): Promise<number> {
  const startMs = performance.now();
  // A bundle of certificates is of no use on loopback, and rclone refuses to start with one.
  const { AWS_CA_BUNDLE: _, ...env } = process.env;
  const child = spawn(program!, words, { env, stdio: ['ignore', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr.on('data', (text) => (stderr += text));
  const [code] = await once(child, 'close');
  if (code !== 0) throw new Error(`${program} ${words.join(' ')}: exit ${code}: ${stderr}`);
  return (performance.now() - startMs) / 1000;
}

/** One chunk at a time, ours and bare in turn, so that both see the same server. */
async function latencies(rgw: Rgw, url: string, ids: readonly ChunkId[]): Promise<Row[]> {
  const store = await openStore(url);
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const ours: number[] = [];
  const bare: number[] = [];
  try {
    for (let n = 0; n < GETS; n++) {
      const id = ids[n % ids.length]!;
      const path = `/bench/image-0/roots/1/chunks/${id.slice(0, 2)}/${id.slice(2, 4)}/${id}`;
      const get = [
        async () => ours.push(await msOf(() => store.getChunk(id))),
        async () => bare.push(await msOf(() => bareGet(rgw.endpoint, path, rgw.key, agent))),
      ];
      for (const one of n % 2 ? get : get.reverse()) await one();
    }
  } finally {
    agent.destroy();
    await store.close();
  }
  return [0.5, 0.99].map((share) => ({
    ...{ name: `GET of a chunk, p${share * 100}`, ours: percentile(ours, share), unit: 'ms' },
    ...{ peer: 'bare signed GET', peerValue: percentile(bare, share) },
    ratio: percentile(ours, share) / percentile(bare, share),
    ...(share === 0.5 && { goal: 1.2, goalIsMost: true }),
  }));
}

async function msOf(work: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await work();
  return performance.now() - startMs;
}

/** Nothing but a signature (AWS Signature Version 4), a request and its body in one buffer. */
function bareGet(endpoint: string, path: string, key: Key, agent: Agent): Promise<Buffer> {
  const { host } = new URL(endpoint);
  const date = new Date().toISOString().replace(/[-:]|\.\d+/g, '');
  const scope = `${date.slice(0, 8)}/us-east-1/s3/aws4_request`;
  const payload = createHash('sha256').digest('hex');
  const canonical = `GET\n${path}\n\nhost:${host}\nx-amz-content-sha256:${payload}\nx-amz-date:${date}\n\nhost;x-amz-content-sha256;x-amz-date\n${payload}`;
  const toSign = `AWS4-HMAC-SHA256\n${date}\n${scope}\n${createHash('sha256').update(canonical).digest('hex')}`;
  const hmac = (secret: string | Buffer, text: string) => createHmac('sha256', secret).update(text).digest();
  const signing = scope.split('/').reduce<string | Buffer>(hmac, `AWS4${key.secretAccessKey}`);
  const signature = hmac(signing, toSign).toString('hex');
  const authorization = `AWS4-HMAC-SHA256 Credential=${key.accessKeyId}/${scope}, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=${signature}`;
  const headers = { 'x-amz-date': date, 'x-amz-content-sha256': payload, authorization };
  return new Promise((resolve, reject) => {
    const request = get(`${endpoint}${path}`, { agent, headers }, (response) => {
      const body = Buffer.allocUnsafe(Number(response.headers['content-length']));
      let at = 0;
      response.on('data', (part: Buffer) => (at += part.copy(body, at)));
      response.on('error', reject);
      response.on('end', () =>
        response.statusCode === 200 ? resolve(body) : reject(new Error(`${response.statusCode}`)),
      );
    });
    request.on('error', reject);
  });
}

function percentile(values: readonly number[], share: number): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length * share)]!;
}

function median(values: readonly number[]): number {
  return percentile(values, 0.5);
}

if (import.meta.main) {
  process.stdout.write(`\nAn S3 origin\n${formatRows(await benchOrigin())}`);
  process.stdout.write(
    `\nGarbage collection and fsck, on a simulated store\n${formatRows(await benchFsckGc())}`,
  );
}
