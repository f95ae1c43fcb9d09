/**
 * `npm run bench:fleet`: reads of 512 KiB chunks from real memcached nodes on loopback. The same bytes are kept as one
 * copy, two copies with hedging, 4+1 and 4+2, with all nodes healthy, one stopped, one slow now and then, and one dead.
 * Prints a table and draws the latency distributions (SVG), one panel per condition.
 *
 * Nodes, reader and proxy share two cores here, so latencies are bound by CPU; read the ratios.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { FleetTier } from '../../src/chunk/fleet/fleet-tier.ts';
import { metaGet } from '../../src/chunk/fleet/meta-protocol.ts';
import type { NodeAddress } from '../../src/chunk/fleet/node.ts';
import { SHARD_HEADER_BYTES } from '../../src/chunk/fleet/shard.ts';
import { CHUNK_BYTES, type ChunkId } from '../../src/format/chunk-id.ts';
import { Memcached, startProxy } from '../support/memcached.ts';
import { drawDistributions, type Panel } from './distribution-plot.ts';

const NODES = 6;
const CHUNKS = 200;
const READS = 3_000;
const TIMEOUT_MS = 200;
const SLOW = { delayMs: 10, delayShare: 0.05 };

interface Chunk {
  readonly id: ChunkId;
  readonly bytes: Buffer;
}

/** One way to keep chunks in the fleet. */
interface Scheme {
  readonly name: string;
  /** Bytes kept per byte stored. */
  readonly cost: number;
  readonly tier: FleetTier;
  /** False: the chunk was not returned. */
  read(chunk: Chunk): Promise<boolean>;
}

const CONDITIONS = ['all healthy', 'one stopped', 'one slow (10 ms on 5 %)', 'one dead'] as const;

function newTier(nodes: readonly NodeAddress[], k: number, m: number): FleetTier {
  return new FleetTier({
    code: { k, m },
    nodes,
    node: { connectTimeoutMs: 500, inflightMax: 1024, queuedBytesMax: 64 << 20 },
    timeoutMs: TIMEOUT_MS,
    fillBytesMax: 1 << 30,
  });
}

function coded(name: string, nodes: readonly NodeAddress[], k: number, m: number): Scheme {
  const tier = newTier(nodes, k, m);
  const read = async ({ id, bytes }: Chunk) => {
    const ctx = { class: 'demand', deadline: performance.now() + 10_000 } as const;
    // A single copy on a node that is gone cannot be read.
    const loan = await tier.get(id, bytes.length, ctx).catch(() => undefined);
    loan?.release();
    return loan !== undefined;
  };
  return { name, cost: (k + m) / k, tier, read };
}

/** Two whole copies; the second is asked when the first has not arrived within the p95 of the last reads. */
function hedged(nodes: readonly NodeAddress[]): Scheme {
  const tier = newTier(nodes, 1, 1);
  const recent: number[] = [];
  let hedgeAfterMs = 1;
  const sinks = [0, 1].map(() => ({
    head: Buffer.alloc(SHARD_HEADER_BYTES),
    body: Buffer.alloc(CHUNK_BYTES),
  }));
  const read = async ({ id }: Chunk) => {
    const started = performance.now();
    const [first, second] = tier.holdersOf(id);
    const control = new AbortController();
    const ask = (node: typeof first, at: number) =>
      node!.request([metaGet(`lazydisk:1:${id}`, ['v'])], started + TIMEOUT_MS, sinks[at], control.signal);
    const late = new Promise<void>((resolve) => setTimeout(resolve, hedgeAfterMs));
    const asks: Promise<unknown>[] = first!.health.up ? [ask(first, 0)] : [ask(second, 1)];
    if (first!.health.up)
      asks.push(
        Promise.race([late, asks[0]!.catch(() => {})]).then(() =>
          control.signal.aborted ? Promise.reject(new Error('done')) : ask(second, 1),
        ),
      );
    const came = await Promise.any(asks.map((one, n) => one.then(() => n))).then(
      () => true,
      () => false,
    );
    control.abort();
    await Promise.allSettled(asks);
    recent.push(performance.now() - started);
    if (recent.length >= 200) {
      recent.sort((a, b) => a - b);
      hedgeAfterMs = recent[Math.floor(recent.length * 0.95)]!;
      recent.length = 0;
    }
    return came;
  };
  return { name: '2 copies, hedged', cost: 2, tier, read };
}

const quantile = (sorted: readonly number[], q: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))]!;

async function measure(scheme: Scheme, chunks: readonly Chunk[]) {
  // Until a broken node is detected, every reader pays; tests measure that separately.
  for (let n = 0; n < 300; n++) await scheme.read(chunks[n % chunks.length]!);
  const latencies: number[] = [];
  let missed = 0;
  for (let n = 0; n < READS; n++) {
    const chunk = chunks[(n * 7919) % chunks.length]!;
    const started = performance.now();
    if (!(await scheme.read(chunk))) missed++;
    latencies.push(performance.now() - started);
  }
  latencies.sort((a, b) => a - b);
  const started = performance.now();
  let done = 0;
  if (scheme.name.startsWith('2')) return { latencies, missed, gigabytesPerSecond: Number.NaN };
  await Promise.all(
    Array.from({ length: 8 }, async (_, worker) => {
      for (let n = worker; n < 2000; n += 8)
        if (await scheme.read(chunks[(n * 104_729) % chunks.length]!)) done++;
    }),
  );
  return {
    latencies,
    missed,
    gigabytesPerSecond: (done * CHUNK_BYTES) / (performance.now() - started) / 1e6,
  };
}

async function proxyProcess(): Promise<{ port: number; slow(on: boolean): void; child: ChildProcess }> {
  const child = fork(import.meta.filename, ['--proxy'], { stdio: 'inherit' });
  return { child, port: 0, slow: (on) => child.send({ slow: on }) };
}

async function main(): Promise<void> {
  const nodes = await Memcached.cluster(NODES, ['-m', '1024']);
  const proxy = await proxyProcess();
  try {
    const target = nodes[2]!;
    const port = await new Promise<number>((resolve) => {
      proxy.child.once('message', (message) => resolve((message as { port: number }).port));
      proxy.child.send({ target: target.port });
    });
    const chunks: Chunk[] = Array.from({ length: CHUNKS }, () => {
      const bytes = randomBytes(CHUNK_BYTES);
      return { bytes, id: createHash('sha256').update(bytes).digest('hex') as ChunkId };
    });
    const addresses = nodes.map((node) => node.address);
    const throughProxy = addresses.map((address, n) => (n === 2 ? { ...address, port } : address));
    const panels: Panel[] = [];
    const rows: string[] = [];
    let speed = 0;
    let stopped = 0;
    const healthy = new Map<string, { p50: number; p999: number }>();
    const makers: ((list: readonly NodeAddress[]) => Scheme)[] = [
      (list) => coded('1 copy', list, 1, 0),
      hedged,
      (list) => coded('4+1', list, 4, 1),
      (list) => coded('4+2', list, 4, 2),
    ];
    for (const condition of CONDITIONS) {
      const panel: Panel = { title: condition, series: [] };
      for (const make of makers) {
        for (const node of nodes) await node.raw('flush_all\r\n');
        const filler = make(addresses);
        for (const { id, bytes } of chunks) await filler.tier.put(id, bytes);
        await filler.tier.close();
        const slow = condition.startsWith('one slow');
        const scheme = make(slow ? throughProxy : addresses);
        proxy.slow(slow);
        if (condition === 'one stopped') await target.pause();
        if (condition === 'one dead') await target.kill();
        const { latencies, missed, gigabytesPerSecond } = await measure(scheme, chunks);
        if (condition === 'one stopped') target.resume();
        if (condition === 'one dead') await target.start();
        await scheme.tier.close();
        const [p50, p99, p999] = [0.5, 0.99, 0.999].map((q) => quantile(latencies, q)) as [
          number,
          number,
          number,
        ];
        if (condition === 'all healthy') healthy.set(scheme.name, { p50, p999 });
        const base = healthy.get(scheme.name)!;
        if (scheme.name === '4+1' && condition === 'all healthy') speed = gigabytesPerSecond;
        if (scheme.name === '4+1' && condition === 'one stopped') stopped = p999 / base.p999;
        panel.series.push({ name: scheme.name, sorted: latencies });
        rows.push(
          [
            condition.padEnd(24),
            scheme.name.padEnd(17),
            scheme.cost.toFixed(2).padStart(5),
            p50.toFixed(2).padStart(8),
            p99.toFixed(2).padStart(8),
            p999.toFixed(2).padStart(8),
            (p999 / base.p999).toFixed(2).padStart(9),
            (p50 / healthy.get('1 copy')!.p50).toFixed(2).padStart(9),
            ((100 * missed) / READS).toFixed(1).padStart(7),
            (Number.isNaN(gigabytesPerSecond) ? '-' : gigabytesPerSecond.toFixed(2)).padStart(6),
          ].join(' '),
        );
        process.stderr.write(`${rows.at(-1)}\n`);
      }
      panels.push(panel);
    }
    const head = `${'condition'.padEnd(24)} ${'kept as'.padEnd(17)} bytes  p50 ms   p99 ms p99.9 ms  x healthy x 1 copy missed %   GB/s`;
    process.stdout.write(`${[head, '-'.repeat(head.length), ...rows].join('\n')}\n`);
    const parity = healthy.get('4+1')!.p50 / healthy.get('1 copy')!.p50;
    const verdict = (met: boolean) => (met ? 'met' : 'MISSED');
    process.stdout.write(`
4+1, p99.9 with a node stopped / all healthy: ${stopped.toFixed(2)}  goal 1.5  ${verdict(stopped <= 1.5)}
4+1, p50 / that of one copy:                  ${parity.toFixed(2)}  goal 1.3  ${verdict(parity <= 1.3)}
4+1, GB/s into one reader:                    ${speed.toFixed(2)}  goal 1.0  ${verdict(speed > 1)}
`);
    const svg = process.argv[2];
    if (svg) writeFileSync(svg, drawDistributions('Latency of a 512 KiB chunk read from the fleet', panels));
  } finally {
    proxy.child.kill();
    for (const node of nodes) node.resume();
    await Promise.all(nodes.map((node) => node.kill()));
  }
}

async function runProxy(): Promise<void> {
  process.once('message', async (message) => {
    const proxy = await startProxy((message as { target: number }).target);
    process.send?.({ port: proxy.port });
    process.on('message', (next) => {
      Object.assign(proxy.faults, (next as { slow: boolean }).slow ? SLOW : { delayMs: 0, delayShare: 0 });
    });
  });
}

await (process.argv[2] === '--proxy' ? runProxy() : main());
