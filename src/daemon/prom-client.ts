/**
 * prom-client, those parts of it that the daemon uses. Its index loads a push gateway's client, TLS and OpenTelemetry with
 * them, which takes longer than the rest of the daemon's start.
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
 * Of its metrics of the process those that say something here. Not the counts of active resources, which are made of a
 * list of them all, at a cost that grows with the number of guests; not the event loop's lag, which has the resolution of
 * the measurement added; and the processor time is below, as theirs is made with OpenTelemetry.
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

/** Registers what the process itself uses, under the names that Prometheus' clients agree on. */
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
