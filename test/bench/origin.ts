/**
 * `npm run bench:origin`: an S3 origin (a real RGW on loopback) against the tools that people use to move files, near
 * and far; the cost of our reads over a bare signed GET; and the speed of garbage collection and fsck.
 */
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { Agent, get } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CHUNK_BYTES, type ChunkId } from '../../src/format/chunk-id.ts';
import { newKeyFile } from '../../src/keys/key-file.ts';
import { openStore } from '../../src/store/open.ts';
import { type Key, Rgw } from '../support/rgw.ts';
import { putDisk } from '../support/stored-disk.ts';
import { benchFsckGc } from './fsck-gc.ts';
import { formatRows, type Row } from './row.ts';
import { benchTransfers } from './transfers.ts';

const CHUNKS = 1000;
const GETS = 400;

/** Half of each chunk is noise, so that a sealed one is as long as real ones. */
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
    await writeFile(join(dir, 'file'), Buffer.concat(sealed));
    await mkdir(join(dir, 'chunks'));
    for (const [n, id] of ids.entries()) await writeFile(join(dir, 'chunks', id), sealed[n]!);
    const megabytes = sealed.reduce((sum, { length }) => sum + length, 0) / 1e6;
    return [
      ...(await benchTransfers(rgw, dir, megabytes)),
      ...(await latencies(rgw, `s3://bench/image-0?endpoint=${rgw.endpoint}`, ids)),
    ];
  } finally {
    await rgw.close();
    await rm(dir, { recursive: true, force: true });
  }
}

/** One chunk at a time, alternating ours and the bare GET, so that both see the same server. */
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
    name: `GET of a chunk, p${share * 100}`,
    ours: percentile(ours, share),
    unit: 'ms',
    peer: 'bare signed GET',
    peerValue: percentile(bare, share),
    ratio: percentile(ours, share) / percentile(bare, share),
    ...(share === 0.5 && { goal: 1.05, goalIsMost: true }),
  }));
}

async function msOf(work: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await work();
  return performance.now() - startMs;
}

/** Only a signature (AWS Signature Version 4), a request and its body in one buffer. */
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

if (import.meta.main) {
  process.stdout.write(`\nAn S3 origin\n${formatRows(await benchOrigin())}`);
  process.stdout.write(
    `\nGarbage collection and fsck, on a simulated store\n${formatRows(await benchFsckGc())}`,
  );
}
