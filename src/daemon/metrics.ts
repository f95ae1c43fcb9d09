/**
 * The daemon's Prometheus metrics. Events on a chunk's path are counted as they happen (TierMetrics is the read path's
 * observer); what other parts count already (exports, caches) is read at each scrape. Labels have few values on
 * purpose: a host attaches thousands of drives, so per-drive figures are left to `lazydisk stat`.
 */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { ReadClass } from '../async/read-context.ts';
import type { FleetStats } from '../chunk/fleet/fleet-tier.ts';
import type { NodeStats } from '../chunk/fleet/node.ts';
import type { ReadObserver } from '../chunk/observer.ts';
import type { TierName } from '../chunk/tier.ts';
import { blockedBy, noteWork, watchCollector } from '../loop-work.ts';
import type { MetricSources } from './metric-sources.ts';
import { Counter, collectProcessMetrics, Gauge, Histogram, Registry } from './prom-client.ts';

/** From memory speed to a read timeout. */
const LATENCY_BUCKETS_SECONDS = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
];

const EVENT_LOOP_RESOLUTION_MS = 10;

export class DaemonMetrics {
  readonly observer: ReadObserver;
  readonly #registry = new Registry();
  readonly #eventLoop: ReturnType<typeof monitorEventLoopDelay>;
  readonly #stopWatching: () => void;

  constructor(version: string) {
    collectProcessMetrics(this.#registry);
    this.#stopWatching = watchCollector();
    this.observer = new TierMetrics(this.#registry);
    this.#eventLoop = monitorEventLoopDelay({ resolution: EVENT_LOOP_RESOLUTION_MS });
    this.#eventLoop.enable();
    this.#gauge(
      'event_loop_lag_seconds',
      'Delay of the event loop since the last scrape.',
      ['stat'],
      (gauge) => {
        // The measuring timer itself sleeps this long; anything above it is lag.
        const lag = (ns: number) => Math.max(0, ns / 1e9 - EVENT_LOOP_RESOLUTION_MS / 1e3) || 0;
        gauge.set({ stat: 'p50' }, lag(this.#eventLoop.percentile(50)));
        gauge.set({ stat: 'p99' }, lag(this.#eventLoop.percentile(99)));
        gauge.set({ stat: 'max' }, lag(this.#eventLoop.max));
        this.#eventLoop.reset();
      },
    );
    this.#counter(
      'event_loop_blocked_total',
      'Times that something held up the event loop for more than 5 ms.',
      ['by'],
      (counter) => {
        for (const [by, { count }] of blockedBy()) counter.inc({ by }, count);
      },
    );
    this.#counter('event_loop_blocked_seconds_total', 'How long it was.', ['by'], (counter) => {
      for (const [by, { seconds }] of blockedBy()) counter.inc({ by }, seconds);
    });
    this.#gauge('build_info', 'Constant 1, labelled with the version.', ['version'], (gauge) =>
      gauge.set({ version }, 1),
    );
  }

  /** Called once, when the sources exist. */
  watch(sources: MetricSources): void {
    this.#gauge('drives_attached', 'Drives attached now.', [], (gauge) => gauge.set(sources.drives()));
    this.#gauge('images_loaded', 'Images whose manifest is in memory.', [], (gauge) =>
      gauge.set(sources.images()),
    );
    this.#counter('log_lines_dropped_total', 'Lines of the log that could not be written.', [], (counter) =>
      counter.inc(sources.logDrops()),
    );
    this.#watchExports(sources);
    this.#watchCaches(sources);
    this.#watchOrigin(sources);
    this.#watchStore(sources);
    if (sources.fleet()) this.#watchFleet(() => sources.fleet()!);
  }

  #watchExports(sources: MetricSources): void {
    this.#counter('export_reads_total', 'Read requests answered.', ['export', 'result'], (counter) => {
      for (const { export: name, readsOk, readErrors } of sources.exports()) {
        counter.inc({ export: name, result: 'ok' }, readsOk);
        counter.inc({ export: name, result: 'error' }, readErrors);
      }
    });
    this.#counter('export_read_bytes_total', 'Bytes given to readers.', ['export'], (counter) => {
      for (const { export: name, readBytes } of sources.exports()) counter.inc({ export: name }, readBytes);
    });
    this.#gauge('export_inflight', 'Requests without an answer yet.', ['export'], (gauge) => {
      for (const { export: name, inFlight } of sources.exports()) gauge.set({ export: name }, inFlight);
    });
    this.#gauge('export_oldest_inflight_seconds', 'Age of the oldest of them.', ['export'], (gauge) => {
      for (const { export: name, oldestInFlightMs } of sources.exports())
        gauge.set({ export: name }, oldestInFlightMs / 1e3);
    });

    this.#gauge('answer_memory_bytes', 'Long answers that guests have not taken yet.', [], (gauge) =>
      gauge.set(sources.answers().heldBytes),
    );
    this.#gauge('answer_memory_waits', 'Reads that wait for room for their answer.', [], (gauge) =>
      gauge.set(sources.answers().waiters),
    );
    const listenerGauges = [
      ['nbd_connections', 'NBD clients now.', 'connections'],
      ['nbd_connections_max', 'NBD clients that there may be at once.', 'connectionsMax'],
    ] as const;
    for (const [name, help, field] of listenerGauges) {
      this.#gauge(name, help, ['listener'], (gauge) => {
        for (const listener of sources.nbdListeners())
          gauge.set({ listener: listener.kind }, listener[field]);
      });
    }
    this.#counter('nbd_refused_total', 'NBD clients that found a listener full.', ['listener'], (counter) => {
      for (const { kind, refused } of sources.nbdListeners()) counter.inc({ listener: kind }, refused);
    });
  }

  #watchCaches(sources: MetricSources): void {
    this.#counter('memory_lookups_total', 'Chunks looked for in memory.', ['result'], (counter) => {
      const { memoryHits, memoryMisses } = sources.reader();
      counter.inc({ result: 'hit' }, memoryHits);
      counter.inc({ result: 'miss' }, memoryMisses);
    });
    this.#gauge('chunk_fetches_inflight', 'Chunks on their way to memory.', [], (gauge) =>
      gauge.set(sources.reader().flights),
    );
    this.#gauge('chunk_fetches_waiting', 'Chunks whose turn has not come.', [], (gauge) =>
      gauge.set(sources.reader().waiting),
    );
    const cacheGauges = [
      ['cache_used_bytes', 'Bytes that hold chunks.', 'usedBytes'],
      ['cache_reserved_bytes', 'Bytes taken from the system.', 'reservedBytes'],
      ['cache_cap_bytes', 'Bytes that may be taken at most.', 'capBytes'],
    ] as const;
    for (const [name, help, field] of cacheGauges) {
      this.#gauge(name, help, ['tier'], (gauge) => {
        for (const cache of sources.caches()) gauge.set({ tier: cache.tier }, cache[field]);
      });
    }
    this.#counter('cache_evictions_total', 'Chunks dropped for others.', ['tier'], (counter) => {
      for (const { tier, evictions } of sources.caches()) counter.inc({ tier }, evictions);
    });
    this.#gauge('cache_up', 'Whether the disk cache is used so.', ['for'], (gauge) => {
      const { up, writable } = sources.cacheHealth();
      gauge.set({ for: 'reads' }, up ? 1 : 0);
      gauge.set({ for: 'writes' }, writable ? 1 : 0);
    });
    this.#counter('cache_ejections_total', 'Times that the disk cache was left out.', [], (counter) =>
      counter.inc(sources.cacheHealth().ejections),
    );
    this.#counter('cache_dropped_writes_total', 'Disk cache writes given up.', ['reason'], (counter) => {
      const { dropped, failed } = sources.cacheDrops();
      counter.inc({ reason: 'busy' }, dropped);
      counter.inc({ reason: 'error' }, failed);
    });
  }

  #watchOrigin(sources: MetricSources): void {
    this.#gauge('origin_reads', 'Reads at the origin, and waiting for a place.', ['state'], (gauge) => {
      const { active, queued } = sources.origin();
      gauge.set({ state: 'active' }, active);
      gauge.set({ state: 'queued' }, queued);
    });
    this.#counter('origin_hedges_total', 'Second requests for slow reads.', ['result'], (counter) => {
      const { hedgesWon, hedgesLost } = sources.origin();
      counter.inc({ result: 'won' }, hedgesWon);
      counter.inc({ result: 'lost' }, hedgesLost);
    });
    this.#counter('origin_rate_waits_total', 'Reads that waited for the rate limit.', [], (counter) =>
      counter.inc(sources.origin().rateWaits),
    );
    this.#gauge('origin_breaker_state', '1 for the state it is in.', ['state'], (gauge) => {
      for (const state of ['closed', 'half-open', 'open'])
        gauge.set({ state }, sources.origin().breaker === state ? 1 : 0);
    });
    this.#counter('origin_breaker_opened_total', 'Times that the breaker opened.', [], (counter) =>
      counter.inc(sources.origin().breakerOpened),
    );
    this.#gauge('attaches', 'Drives that start, and attaches that wait to.', ['state'], (gauge) => {
      const { starting, waiting } = sources.admission();
      gauge.set({ state: 'starting' }, starting);
      gauge.set({ state: 'waiting' }, waiting);
    });
    this.#counter('attaches_held_total', 'Attaches that waited, or were refused.', ['result'], (counter) => {
      const { waited, refused } = sources.admission();
      counter.inc({ result: 'waited' }, waited);
      counter.inc({ result: 'refused' }, refused);
    });
  }

  #watchStore(sources: MetricSources): void {
    this.#gauge('store_roots', 'Roots of the store, and trashes, by state.', ['state'], (gauge) => {
      for (const [state, count] of Object.entries(sources.store().roots)) gauge.set({ state }, count);
    });
    this.#gauge('store_credential_expiry_seconds', 'Until the credentials expire.', ['client'], (gauge) => {
      const { credentialExpiryMs } = sources.store();
      if (credentialExpiryMs !== null) gauge.set({ client: 's3' }, (credentialExpiryMs - Date.now()) / 1e3);
    });
    this.#gauge('store_lease_images', 'Images attached, by what the store knows.', ['state'], (gauge) => {
      const { state, images, unleased } = sources.lease();
      gauge.set({ state: 'leased' }, images - unleased);
      gauge.set({ state: 'unleased' }, state === 'read-only' ? 0 : unleased);
      gauge.set({ state: 'read_only' }, state === 'read-only' ? unleased : 0);
    });
    this.#gauge('store_lease_expiry_seconds', 'Until the lease runs out, if not renewed.', [], (gauge) => {
      const { expiresInMs } = sources.lease();
      if (expiresInMs !== null) gauge.set(expiresInMs / 1e3);
    });
    this.#counter(
      'store_retired_reads_total',
      'Objects found only in a retired root or a trash, whose deletion waits for it.',
      [],
      (counter) => counter.inc(sources.store().retiredReads),
    );
    this.#counter(
      'store_unrecorded_reads_total',
      'Of these, those that the store could not be told of: a deletion will not wait.',
      [],
      (counter) => counter.inc(sources.store().unrecordedReads),
    );
  }

  #watchFleet(fleet: () => FleetStats): void {
    const nodeGauges = [
      ['up', 'Whether the node is asked.', ({ up }: NodeStats) => (up ? 1 : 0)],
      ['p50_seconds', 'Median of its answers.', ({ p50Ms }: NodeStats) => p50Ms / 1e3],
      ['p99_seconds', '99th percentile of its answers.', ({ p99Ms }: NodeStats) => p99Ms / 1e3],
    ] as const;
    for (const [name, help, of] of nodeGauges) {
      this.#gauge(`fleet_node_${name}`, help, ['node'], (gauge) => {
        for (const node of fleet().nodes) gauge.set({ node: node.name }, of(node));
      });
    }
    const nodeCounters = [
      ['requests', 'Requests to the node.', ({ requests }: NodeStats) => requests],
      ['errors', 'Requests that failed, and shards that lied.', ({ errors }: NodeStats) => errors],
      ['ejections', 'Times that it was given up for a while.', ({ ejections }: NodeStats) => ejections],
      ['read_bytes', 'Bytes that it gave.', ({ bytesRead }: NodeStats) => bytesRead],
      ['written_bytes', 'Bytes that it was given.', ({ bytesWritten }: NodeStats) => bytesWritten],
    ] as const;
    for (const [name, help, of] of nodeCounters) {
      this.#counter(`fleet_node_${name}_total`, help, ['node'], (counter) => {
        for (const node of fleet().nodes) counter.inc({ node: node.name }, of(node));
      });
    }
    const counters = [
      ['reconstructions', 'Chunks whose data came out of parity.', 'reconstructions'],
      ['repairs', 'Lost shards put back.', 'repairs'],
      ['lease_wins', 'Chunks that were ours to fill.', 'leaseWins'],
      ['lease_waits', 'Reads that waited for another to fill.', 'leaseWaits'],
      ['too_few', 'Reads that found fewer than k shards.', 'tooFew'],
      ['fills', 'Chunks put into the fleet.', 'fills'],
      ['fills_dropped', 'Chunks not put, because too much was on its way.', 'fillsDropped'],
    ] as const;
    for (const [name, help, field] of counters)
      this.#counter(`fleet_${name}_total`, help, [], (counter) => counter.inc(fleet()[field]));
  }

  async text(): Promise<{ contentType: string; text: string }> {
    const since = performance.now();
    const text = await this.#registry.metrics();
    noteWork('metrics', since);
    return { contentType: this.#registry.contentType, text };
  }

  close(): void {
    this.#eventLoop.disable();
    this.#stopWatching();
    this.#registry.clear();
  }

  #gauge(name: string, help: string, labelNames: string[], fill: (gauge: Gauge) => void): void {
    new Gauge({
      name: `lazydisk_${name}`,
      help,
      labelNames,
      registers: [this.#registry],
      collect() {
        this.reset();
        fill(this as unknown as Gauge);
      },
    });
  }

  /** A counter that another part counts: it is set anew at each scrape. */
  #counter(name: string, help: string, labelNames: string[], fill: (counter: Counter) => void): void {
    new Counter({
      name: `lazydisk_${name}`,
      help,
      labelNames,
      registers: [this.#registry],
      collect() {
        this.reset();
        fill(this as unknown as Counter);
      },
    });
  }
}

/** Counts the events that the chunk reader reports. */
class TierMetrics implements ReadObserver {
  readonly #reads: Counter<'tier' | 'result' | 'class'>;
  readonly #bytes: Counter<'tier'>;
  readonly #durations: Histogram<'tier' | 'class'>;
  readonly #verifyFailures: Counter<'tier'>;
  readonly #heals: Counter<'tier'>;
  readonly #waits: Counter;

  constructor(registry: Registry) {
    const registers = [registry];
    this.#reads = new Counter({
      name: 'lazydisk_tier_reads_total',
      help: 'Times that a tier was asked for a chunk.',
      labelNames: ['tier', 'result', 'class'],
      registers,
    });
    this.#bytes = new Counter({
      name: 'lazydisk_tier_read_bytes_total',
      help: 'Sealed bytes that a tier gave.',
      labelNames: ['tier'],
      registers,
    });
    this.#durations = new Histogram({
      name: 'lazydisk_tier_read_duration_seconds',
      help: 'How long a tier took to answer.',
      labelNames: ['tier', 'class'],
      buckets: LATENCY_BUCKETS_SECONDS,
      registers,
    });
    this.#verifyFailures = new Counter({
      name: 'lazydisk_verify_failures_total',
      help: 'Copies that failed their proof and were dropped, by the tier they came from.',
      labelNames: ['tier'],
      registers,
    });
    this.#heals = new Counter({
      name: 'lazydisk_heals_total',
      help: 'Proven chunks put back into a tier whose copy had failed.',
      labelNames: ['tier'],
      registers,
    });
    this.#waits = new Counter({
      name: 'lazydisk_singleflight_waits_total',
      help: 'Reads that waited for a fetch under way instead of starting one.',
      registers,
    });
    // Present from the start, so that a rate sees the first failure.
    for (const tier of ['disk', 'fleet', 'origin']) {
      this.#verifyFailures.inc({ tier }, 0);
      this.#heals.inc({ tier }, 0);
    }
  }

  tierRead(
    tier: TierName,
    result: 'hit' | 'miss' | 'error',
    readClass: ReadClass,
    sealedBytes: number,
    durationMs: number,
  ): void {
    this.#reads.inc({ tier, result, class: readClass });
    if (sealedBytes > 0) this.#bytes.inc({ tier }, sealedBytes);
    this.#durations.observe({ tier, class: readClass }, durationMs / 1e3);
  }

  verifyFailure(tier: TierName): void {
    this.#verifyFailures.inc({ tier });
  }

  heal(tier: TierName): void {
    this.#heals.inc({ tier });
  }

  singleFlightWait(): void {
    this.#waits.inc();
  }
}
