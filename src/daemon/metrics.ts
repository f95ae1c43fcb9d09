/**
 * The daemon's Prometheus metrics. What happens on the path of a chunk is counted as it happens (TierMetrics is
 * the read path's observer); what somebody else counts already (exports, caches) is read at a scrape. Labels have
 * few values on purpose: a host attaches thousands of drives, so per-drive figures are `lazydisk stat`'s.
 */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { ReadObserver } from '../chunk/observer.ts';
import type { ReadClass, TierName } from '../chunk/tier.ts';

/** From memory speed to a read timeout. */
const LATENCY_BUCKETS_SECONDS = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
];

const EVENT_LOOP_RESOLUTION_MS = 10;

/**
 * Of prom-client's own: gauges that end in _total, which the format's linter refuses, and the event loop's lag, which
 * it gives with the resolution of the measurement added.
 */
const UNWANTED = /^nodejs_active_\w+_total$|^nodejs_eventloop_lag_/;

export interface ExportFigures {
  readonly export: 'nbd' | 'fuse';
  readonly reads: number;
  readonly readBytes: number;
  readonly errors: number;
  readonly inFlight: number;
  /** Age of the oldest request that has no answer yet; 0 if there is none. */
  readonly oldestInFlightMs: number;
}

export interface CacheFigures {
  readonly tier: 'memory' | 'disk';
  readonly usedBytes: number;
  readonly reservedBytes: number;
  readonly capBytes: number;
  readonly evictions: number;
}

/** What is asked at every scrape. */
export interface MetricSources {
  drives(): number;
  images(): number;
  exports(): readonly ExportFigures[];
  caches(): readonly CacheFigures[];
  reader(): { readonly memoryHits: number; readonly memoryMisses: number; readonly flights: number };
  /** Writes to the disk cache that were given up: too much at once, or a disk that fails. */
  cacheDrops(): { readonly dropped: number; readonly failed: number };
}

export class DaemonMetrics {
  readonly observer: ReadObserver;
  readonly #registry = new Registry();
  readonly #eventLoop: ReturnType<typeof monitorEventLoopDelay>;

  constructor(version: string) {
    collectDefaultMetrics({ register: this.#registry });
    for (const name of this.#registry.getMetricsAsArray().map((metric) => metric.name)) {
      if (UNWANTED.test(name)) this.#registry.removeSingleMetric(name);
    }
    this.observer = new TierMetrics(this.#registry);
    this.#eventLoop = monitorEventLoopDelay({ resolution: EVENT_LOOP_RESOLUTION_MS });
    this.#eventLoop.enable();
    this.#gauge(
      'event_loop_lag_seconds',
      'Delay of the event loop since the last scrape.',
      ['stat'],
      (gauge) => {
        // The timer of the measurement itself sleeps this long; what is above it is lag.
        const lag = (ns: number) => Math.max(0, ns / 1e9 - EVENT_LOOP_RESOLUTION_MS / 1e3) || 0;
        gauge.set({ stat: 'p50' }, lag(this.#eventLoop.percentile(50)));
        gauge.set({ stat: 'p99' }, lag(this.#eventLoop.percentile(99)));
        gauge.set({ stat: 'max' }, lag(this.#eventLoop.max));
        this.#eventLoop.reset();
      },
    );
    this.#gauge('build_info', 'Constant 1, labelled with the version.', ['version'], (gauge) =>
      gauge.set({ version }, 1),
    );
  }

  /** Called once, when what is to be asked is there. */
  watch(sources: MetricSources): void {
    this.#gauge('drives_attached', 'Drives attached now.', [], (gauge) => gauge.set(sources.drives()));
    this.#gauge('images_loaded', 'Images whose manifest is in memory.', [], (gauge) =>
      gauge.set(sources.images()),
    );

    this.#counter('export_reads_total', 'Read requests answered.', ['export', 'result'], (counter) => {
      for (const { export: name, reads, errors } of sources.exports()) {
        counter.inc({ export: name, result: 'ok' }, Math.max(0, reads - errors));
        counter.inc({ export: name, result: 'error' }, errors);
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

    this.#counter('memory_lookups_total', 'Chunks looked for in memory.', ['result'], (counter) => {
      const { memoryHits, memoryMisses } = sources.reader();
      counter.inc({ result: 'hit' }, memoryHits);
      counter.inc({ result: 'miss' }, memoryMisses);
    });
    this.#gauge('chunk_fetches_inflight', 'Chunks on their way to memory.', [], (gauge) =>
      gauge.set(sources.reader().flights),
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
    this.#counter('cache_dropped_writes_total', 'Disk cache writes given up.', ['reason'], (counter) => {
      const { dropped, failed } = sources.cacheDrops();
      counter.inc({ reason: 'busy' }, dropped);
      counter.inc({ reason: 'error' }, failed);
    });
  }

  async text(): Promise<{ contentType: string; text: string }> {
    return { contentType: this.#registry.contentType, text: await this.#registry.metrics() };
  }

  close(): void {
    this.#eventLoop.disable();
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

  /** A counter that somebody else counts: it is set anew at each scrape. */
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

/** Counts what the chunk reader tells. */
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
    // From the start, so that a rate over the first failure is seen.
    for (const tier of ['disk', 'origin']) {
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
