import { spawn } from 'node:child_process';
import { once } from 'node:events';
import t from 'tap';
import { MetricsServer } from '../../src/daemon/metrics-server.ts';
import { sampleMetrics } from '../support/metrics.ts';
import { skipWithout } from '../support/tools.ts';

t.test('what was counted is shown, and shown again the same', async (t) => {
  const made = sampleMetrics();
  t.teardown(() => made.close());
  made.observer.tierRead('disk', 'hit', 'demand', 100, 2);
  made.observer.tierRead('disk', 'hit', 'demand', 50, 20);
  made.observer.tierRead('origin', 'error', 'prefetch', 0, 3);
  made.observer.verifyFailure('disk');
  made.observer.heal('disk');
  made.observer.singleFlightWait();
  for (let scrape = 0; scrape < 2; scrape++) {
    const { text } = await made.text();
    for (const line of [
      'lazydisk_tier_reads_total{tier="disk",result="hit",class="demand"} 2',
      'lazydisk_store_roots{state="retired"} 2',
      'lazydisk_store_retired_reads_total 4',
      'lazydisk_store_unrecorded_reads_total 5',
      'lazydisk_tier_reads_total{tier="origin",result="error",class="prefetch"} 1',
      'lazydisk_tier_read_bytes_total{tier="disk"} 150',
      'lazydisk_tier_read_duration_seconds_bucket{le="0.0025",tier="disk",class="demand"} 1',
      'lazydisk_tier_read_duration_seconds_count{tier="disk",class="demand"} 2',
      'lazydisk_verify_failures_total{tier="disk"} 1',
      'lazydisk_verify_failures_total{tier="origin"} 0',
      'lazydisk_heals_total{tier="disk"} 1',
      'lazydisk_singleflight_waits_total 1',
      'lazydisk_export_reads_total{export="nbd",result="ok"} 9',
      'lazydisk_export_reads_total{export="nbd",result="error"} 1',
      'lazydisk_export_read_bytes_total{export="nbd"} 4096',
      'lazydisk_export_inflight{export="nbd"} 3',
      'lazydisk_export_oldest_inflight_seconds{export="nbd"} 1.5',
      'lazydisk_cache_used_bytes{tier="disk"} 5',
      'lazydisk_cache_reserved_bytes{tier="disk"} 6',
      'lazydisk_cache_cap_bytes{tier="memory"} 3',
      'lazydisk_cache_evictions_total{tier="disk"} 8',
      'lazydisk_cache_dropped_writes_total{reason="error"} 2',
      'lazydisk_memory_lookups_total{result="hit"} 7',
      'lazydisk_chunk_fetches_inflight 3',
      'lazydisk_answer_memory_bytes 11',
      'lazydisk_answer_memory_waits 12',
      'lazydisk_drives_attached 2',
      'lazydisk_fleet_node_up{node="a:1"} 1',
      'lazydisk_fleet_node_p99_seconds{node="a:1"} 0.004',
      'lazydisk_fleet_node_errors_total{node="a:1"} 2',
      'lazydisk_fleet_node_read_bytes_total{node="a:1"} 100',
      'lazydisk_fleet_reconstructions_total 3',
      'lazydisk_fleet_repairs_total 2',
      'lazydisk_fleet_lease_wins_total 5',
      'lazydisk_fleet_fills_dropped_total 9',
      'lazydisk_origin_reads{state="queued"} 5',
      'lazydisk_origin_hedges_total{result="won"} 7',
      'lazydisk_origin_rate_waits_total 6',
      'lazydisk_origin_breaker_state{state="open"} 1',
      'lazydisk_origin_breaker_state{state="closed"} 0',
      'lazydisk_attaches{state="waiting"} 2',
      'lazydisk_attaches_held_total{result="refused"} 1',
      'lazydisk_images_loaded 1',
      'lazydisk_build_info{version="1.2.3"} 1',
    ]) {
      t.ok(text.split('\n').includes(line), line);
    }
    t.match(text, /^lazydisk_event_loop_lag_seconds\{stat="p99"\} [0-9.e-]+$/m);
    t.match(text, /^process_resident_memory_bytes \d+/m);
  }
});

t.test('promtool has no complaint', async (t) => {
  if (skipWithout(t, 'promtool')) return;
  const made = sampleMetrics();
  t.teardown(() => made.close());
  made.observer.tierRead('disk', 'hit', 'demand', 100, 2);
  const promtool = spawn('promtool', ['check', 'metrics'], { stdio: ['pipe', 'pipe', 'pipe'] });
  let said = '';
  promtool.stdout.on('data', (text) => (said += text));
  promtool.stderr.on('data', (text) => (said += text));
  promtool.stdin.end((await made.text()).text);
  const [code] = await once(promtool, 'close');
  t.equal(said, '');
  t.equal(code, 0);
});

t.test('the TCP server gives metrics and nothing else', async (t) => {
  const made = sampleMetrics();
  const server = new MetricsServer(() => made.text());
  t.teardown(async () => {
    await server.close();
    made.close();
  });
  const { port } = await server.listen({ host: '127.0.0.1', port: 0 });
  const answer = await fetch(`http://127.0.0.1:${port}/metrics`);
  t.equal(answer.status, 200);
  t.match(answer.headers.get('content-type'), /^text\/plain; version=0\.0\.4/);
  t.match(await answer.text(), /lazydisk_drives_attached 2/);
  t.equal((await fetch(`http://127.0.0.1:${port}/v1/drives`)).status, 404);
  t.equal((await fetch(`http://127.0.0.1:${port}/metrics`, { method: 'POST', body: 'x' })).status, 405);
  await t.rejects(new MetricsServer(() => made.text()).listen({ host: '127.0.0.1', port }), {
    code: 'UNAVAILABLE',
  });
});
