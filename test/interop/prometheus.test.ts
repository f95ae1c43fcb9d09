/** The real Prometheus scrapes the real daemon, and its API is queried until the series appear. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import type { DriveInfo } from '../../src/daemon/api.ts';
import { diskWorkplace, TestDaemon } from '../support/daemon.ts';
import { skipWithout, skipWithoutFuse } from '../support/tools.ts';

const run = promisify(execFile);

/** Dashboards use these names, so they must not disappear. */
const NAMES = [
  'lazydisk_answer_memory_bytes',
  'lazydisk_answer_memory_waits',
  'lazydisk_build_info',
  'lazydisk_cache_cap_bytes',
  'lazydisk_cache_dropped_writes_total',
  'lazydisk_cache_evictions_total',
  'lazydisk_cache_reserved_bytes',
  'lazydisk_cache_used_bytes',
  'lazydisk_chunk_fetches_inflight',
  'lazydisk_drives_attached',
  'lazydisk_event_loop_lag_seconds',
  'lazydisk_export_inflight',
  'lazydisk_export_oldest_inflight_seconds',
  'lazydisk_export_read_bytes_total',
  'lazydisk_export_reads_total',
  'lazydisk_heals_total',
  'lazydisk_images_loaded',
  'lazydisk_memory_lookups_total',
  'lazydisk_singleflight_waits_total',
  'lazydisk_tier_read_bytes_total',
  'lazydisk_tier_read_duration_seconds',
  'lazydisk_tier_reads_total',
  'lazydisk_verify_failures_total',
  'process_open_fds',
  'process_resident_memory_bytes',
];

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

async function startPrometheus(t: Test, dir: string, target: string): Promise<string> {
  const config = join(dir, 'prometheus.yml');
  const scrape = {
    job_name: 'lazydisk',
    scrape_interval: '200ms',
    scrape_timeout: '200ms',
    static_configs: [{ targets: [target] }],
  };
  // JSON is valid YAML.
  writeFileSync(config, JSON.stringify({ scrape_configs: [scrape] }));
  await run('promtool', ['check', 'config', config]);
  const address = `127.0.0.1:${await freePort()}`;
  const flags = [
    `--config.file=${config}`,
    `--storage.tsdb.path=${dir}/tsdb`,
    `--web.listen-address=${address}`,
  ];
  const child: ChildProcess = spawn('prometheus', flags, { stdio: 'ignore' });
  t.teardown(async () => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  });
  return `http://${address}`;
}

/** The value of an instant query with one result, as soon as there is one that `wanted` accepts. */
async function query(base: string, expression: string, wanted: (value: number) => boolean): Promise<number> {
  for (;;) {
    const url = `${base}/api/v1/query?query=${encodeURIComponent(expression)}`;
    // It listens before it is ready, and until then answers in plain text that it is not.
    const answer = await fetch(url).then(
      (response) => (response.ok ? response.json() : undefined),
      () => undefined,
    );
    const { result = [] } = ((answer as { data?: unknown })?.data ?? {}) as {
      result?: { value: [number, string] }[];
    };
    const value = Number(result[0]?.value[1]);
    if (result.length === 1 && wanted(value)) return value;
    await sleep(100);
  }
}

t.test('Prometheus sees what drives read', async (t) => {
  if (skipWithout(t, 'prometheus', 'promtool', 'nbdcopy')) return;
  const place = await diskWorkplace(t, 16);
  const daemon = await TestDaemon.start(t, place, ['--metrics', '127.0.0.1:0']);
  const { metrics } = await daemon.logged(({ msg }) => msg === 'serving');
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  await run('nbdcopy', [drive.nbd, join(place.dir, 'copy')]);
  const hasFuse = !skipWithoutFuse(t);
  if (hasFuse) await run('cmp', [join(place.dir, 'copy'), drive.fuse!]);

  const base = await startPrometheus(t, place.dir, new URL(String(metrics)).host);
  const stored = place.image.manifest.storedChunks;
  for (const [expression, wanted] of [
    ['up{job="lazydisk"}', (value: number) => value === 1],
    ['lazydisk_drives_attached', (value: number) => value === 1],
    ['sum(lazydisk_tier_reads_total{tier="origin",result="hit"})', (value: number) => value === stored],
    ['sum(lazydisk_tier_read_bytes_total{tier="origin"})', (value: number) => value > stored * 400_000],
    ['sum(lazydisk_tier_read_duration_seconds_count{tier="origin"})', (value: number) => value === stored],
    ['sum(lazydisk_export_read_bytes_total{export="nbd"})', (value: number) => value >= stored * 512 * 1024],
    ['lazydisk_cache_cap_bytes{tier="disk"}', (value: number) => value === 64 * 1024 ** 2],
    ['lazydisk_cache_used_bytes{tier="disk"}', (value: number) => value > stored * 400_000],
    ['lazydisk_event_loop_lag_seconds{stat="p99"}', (value: number) => value >= 0],
    ['process_resident_memory_bytes', (value: number) => value > 16 * 1024 ** 2],
    ['rate(lazydisk_verify_failures_total{tier="origin"}[1m])', (value: number) => value === 0],
  ] as const) {
    const value = await query(base, expression, wanted);
    t.ok(wanted(value), `${expression} is ${value}`);
  }
  if (hasFuse) {
    const value = await query(base, 'lazydisk_export_read_bytes_total{export="fuse"}', (bytes) => bytes > 0);
    t.ok(value > 0, `read over FUSE: ${value}`);
  }
});

t.test('promtool has no complaint about what the daemon shows', async (t) => {
  if (skipWithout(t, 'promtool', 'nbdcopy')) return;
  const place = await diskWorkplace(t, 8);
  const daemon = await TestDaemon.start(t, place, ['--metrics', '127.0.0.1:0']);
  const { metrics } = await daemon.logged(({ msg }) => msg === 'serving');
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  await run('nbdcopy', [drive.nbd, join(place.dir, 'copy')]);
  const text = await (await fetch(String(metrics))).text();
  writeFileSync(join(place.dir, 'metrics'), text);
  const { stdout, stderr } = await run('sh', ['-c', `promtool check metrics < ${place.dir}/metrics`]);
  t.equal(stdout + stderr, '');
  const names = new Set([...text.matchAll(/^# TYPE (\S+) /gm)].map(([, name]) => name));
  for (const name of NAMES) t.ok(names.has(name), name);
});
