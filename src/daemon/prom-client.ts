/**
 * The parts of prom-client that the daemon uses. Its index loads a client for the push gateway, and with it TLS and
 * OpenTelemetry, which takes longer than the rest of the daemon's startup.
 */
import { createRequire } from 'node:module';
import type * as Prom from 'prom-client';

type Collector = (registry: Prom.Registry) => void;

const part = createRequire(import.meta.url);

export type Counter<T extends string = string> = Prom.Counter<T>;
export const Counter = part('prom-client/lib/counter') as typeof Prom.Counter;
export type Gauge<T extends string = string> = Prom.Gauge<T>;
export const Gauge = part('prom-client/lib/gauge') as typeof Prom.Gauge;
export type Histogram<T extends string = string> = Prom.Histogram<T>;
export const Histogram = part('prom-client/lib/histogram') as typeof Prom.Histogram;
export type Registry = Prom.Registry;
export const Registry = part('prom-client/lib/registry') as typeof Prom.Registry;

/**
 * The process metrics of prom-client that are useful here. Left out are the counts of active resources, which are
 * computed from a list of all of them, at a cost that grows with the number of guests; and the event loop lag, which
 * includes the resolution of the measurement. CPU time is defined below, because prom-client's uses OpenTelemetry.
 */
const COLLECTORS = [
  'processStartTime',
  'osMemoryHeap',
  'processOpenFileDescriptors',
  'processMaxFileDescriptors',
  'heapSizeAndUsed',
  'heapSpacesSizeAndUsed',
  'version',
  'gc',
];

/** Registers the metrics of the process itself, under the names that Prometheus clients agree on. */
export function collectProcessMetrics(registry: Prom.Registry): void {
  for (const name of COLLECTORS) (part(`prom-client/lib/metrics/${name}`) as Collector)(registry);
  const times = {
    process_cpu_user_seconds_total: ['User processor time.', ({ user }) => user],
    process_cpu_system_seconds_total: ['System processor time.', ({ system }) => system],
    process_cpu_seconds_total: ['User and system processor time.', ({ user, system }) => user + system],
  } satisfies Record<string, [string, (usage: NodeJS.CpuUsage) => number]>;
  for (const [name, [help, microseconds]] of Object.entries(times)) {
    new Counter({
      name,
      help,
      registers: [registry],
      collect() {
        this.reset();
        this.inc(microseconds(process.cpuUsage()) / 1e6);
      },
    });
  }
}
