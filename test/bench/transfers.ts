/**
 * Whole images copied to and from S3 by whole programs: ours, which moves and verifies chunk by chunk, and the tools
 * that people use to move files, on one file of the same bytes or on one object per chunk. They take turns at the same
 * server, so that load on the machine affects all of them; ratios are medians over the turns.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DelayProxy } from '../support/delay-proxy.ts';
import type { Rgw } from '../support/rgw.ts';
import type { Row } from './row.ts';

const LAZYDISK = new URL('../../src/lazydisk', import.meta.url).pathname;
const TURNS = 3;
const FAR_MS = 30;

/** What the server achieves with objects as small as chunks, each of which costs it as much work as a large one. */
const OBJECTS = 'rclone, one object per chunk, transfers:';
/** Numbers of parallel transfers that rclone is given; near the server, more than the first make it slower. */
const NEAR_LANES = [16] as const;
const FAR_LANES = [16, 32, 64] as const;

/** The minimum ratios to rclone with one object per chunk, and to programs that move one file. */
const GOALS = { upload: 1.3, 'cold whole-image download': 1.2, far: 1.2, file: 0.8 } as const;

type Direction = 'upload' | 'cold whole-image download';

/** By name: the command line of a program for one turn. */
type Programs = Readonly<Record<string, (turn: number) => readonly string[]>>;

/**
 * `dir` holds the image `app:1` in `store` with its `key`, its sealed chunks in `chunks`, and all of them in `file`,
 * which is `megabytes` long; bucket `bench` gets them, as `image-0` and `chunks-0` among others.
 */
export async function benchTransfers(rgw: Rgw, dir: string, megabytes: number): Promise<Row[]> {
  const far = await DelayProxy.start(rgw.port, FAR_MS);
  try {
    await writeConfigs(rgw, far, dir);
    const rows: Row[] = [];
    for (const [endpoint, remote, lanes] of [
      [rgw.endpoint, 'near', NEAR_LANES],
      [far.endpoint, 'far', FAR_LANES],
    ] as const) {
      const { upload, download } = programsOf(dir, endpoint, remote, lanes);
      rows.push(...(await compare('upload', upload, remote, dir, megabytes)));
      rows.push(...(await compare('cold whole-image download', download, remote, dir, megabytes)));
    }
    return rows;
  } finally {
    await far.close();
  }
}

function programsOf(
  dir: string,
  endpoint: string,
  remote: 'near' | 'far',
  lanes: readonly number[],
): { upload: Programs; download: Programs } {
  const at = (file: string) => join(dir, file);
  const rclone = ['rclone', '--config', at('rclone.conf')];
  const s3cmd = ['s3cmd', '-c', at('s3cfg')];
  const store = (name: string) => `s3://bench/${name}?endpoint=${endpoint}`;
  // The first upload is what is downloaded.
  const name = (turn: number) => (remote === 'near' ? turn : `far-${turn}`);
  const upload: Record<string, (turn: number) => readonly string[]> = {
    lazydisk: (turn) => [LAZYDISK, 'copy', 'app:1', at('store'), store(`image-${name(turn)}`)],
  };
  const download: Record<string, (turn: number) => readonly string[]> = {
    lazydisk: () => [
      LAZYDISK,
      'export',
      'app:1',
      '/dev/null',
      '--store',
      store('image-0'),
      '--key',
      at('key'),
    ],
  };
  if (remote === 'near') {
    upload.s3cmd = (turn) => [...s3cmd, 'put', at('file'), `s3://bench/s3cmd-${turn}`];
    upload.rclone = (turn) => [...rclone, 'copyto', at('file'), `near:bench/rclone-${turn}`];
    download.s3cmd = () => [...s3cmd, 'get', '--force', 's3://bench/s3cmd-0', at('got')];
    download.rclone = () => [...rclone, 'copyto', 'near:bench/rclone-0', at('got')];
  }
  for (const count of lanes) {
    const words = [...rclone, '--transfers', String(count), '--checkers', String(count), 'copy'];
    upload[`${OBJECTS} ${count}`] = (turn) => [
      ...words,
      at('chunks'),
      `${remote}:bench/chunks-${name(turn)}-${count}`,
    ];
    download[`${OBJECTS} ${count}`] = () => [
      ...words,
      `${remote}:bench/chunks-0-${NEAR_LANES[0]}`,
      at('got-chunks'),
    ];
  }
  return { upload, download };
}

async function compare(
  direction: Direction,
  programs: Programs,
  remote: 'near' | 'far',
  dir: string,
  megabytes: number,
): Promise<Row[]> {
  const speeds: Record<string, number[]> = {};
  for (let turn = 0; turn < TURNS; turn++) {
    for (const [program, words] of Object.entries(programs)) {
      speeds[program] ??= [];
      speeds[program].push(megabytes / (await timeOf(words(turn))));
      await rm(join(dir, 'got-chunks'), { recursive: true, force: true });
    }
    if (direction === 'upload' && remote === 'far') await clean(dir, `far-${turn}`);
    else if (direction === 'upload' && turn > 0) await clean(dir, String(turn));
  }
  const ours = speeds.lazydisk!;
  const rows: Row[] = [];
  const add = (peer: string, theirs: readonly number[], goal: number): void => {
    const name = remote === 'far' ? `${direction}, ${FAR_MS} ms away` : direction;
    const ratio = median(ours.map((speed, turn) => speed / theirs[turn]!));
    rows.push({ name, ours: median(ours), unit: 'MB/s', peer, peerValue: median(theirs), ratio, goal });
  };
  const settings = Object.keys(speeds).filter((program) => program.startsWith(OBJECTS));
  for (const program of Object.keys(speeds))
    if (program !== 'lazydisk' && !settings.includes(program)) add(program, speeds[program]!, GOALS.file);
  const best = settings.reduce((a, b) => (median(speeds[b]!) > median(speeds[a]!) ? b : a));
  add(best, speeds[best]!, remote === 'far' ? GOALS.far : GOALS[direction]);
  return rows;
}

/** Deletes the objects that one turn of uploads wrote, one per chunk. */
async function clean(dir: string, name: string): Promise<void> {
  const rclone = ['rclone', '--config', join(dir, 'rclone.conf'), '--checkers', '16'];
  await timeOf([...rclone, 'delete', 'near:bench', '--include', `{image,chunks}-${name}*/**`]);
}

async function writeConfigs({ endpoint, key }: Rgw, far: DelayProxy, dir: string): Promise<void> {
  const { host } = new URL(endpoint);
  const s3cfg = [
    ...['[default]', `access_key = ${key.accessKeyId}`, `secret_key = ${key.secretAccessKey}`],
    ...[`host_base = ${host}`, `host_bucket = ${host}`, 'use_https = False', 'progress_meter = False'],
  ];
  await writeFile(join(dir, 's3cfg'), `${s3cfg.join('\n')}\n`, { mode: 0o600 });
  const remotes = Object.entries({ near: endpoint, far: far.endpoint }).flatMap(([name, url]) => [
    ...[`[${name}]`, 'type = s3', 'provider = Ceph', `endpoint = ${url}`],
    ...[`access_key_id = ${key.accessKeyId}`, `secret_access_key = ${key.secretAccessKey}`],
  ]);
  await writeFile(join(dir, 'rclone.conf'), `${remotes.join('\n')}\n`, { mode: 0o600 });
}

async function timeOf([program, ...words]: readonly string[]): Promise<number> {
  const startMs = performance.now();
  // A bundle of certificates is not needed on loopback, and rclone refuses to start with one.
  const { AWS_CA_BUNDLE: _, ...env } = process.env;
  const child = spawn(program!, words, { env, stdio: ['ignore', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr.on('data', (text) => (stderr += text));
  const [code] = await once(child, 'close');
  if (code !== 0) throw new Error(`${program} ${words.join(' ')}: exit ${code}: ${stderr}`);
  return (performance.now() - startMs) / 1000;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}
