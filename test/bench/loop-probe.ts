/** Loaded into a daemon before its program: measures the event loop, and reports to the parent process on request. */
import { monitorEventLoopDelay } from 'node:perf_hooks';

const RESOLUTION_MS = 1;

const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
delay.enable();
// The measurement's own timer sleeps this long.
const lagMs = (ns: number) => Math.max(0, ns / 1e6 - RESOLUTION_MS);
process.on('message', () => {
  const [p50Ms, p99Ms] = [delay.percentile(50), delay.percentile(99)].map(lagMs);
  process.send?.({ p50Ms, p99Ms, maxMs: lagMs(delay.max) });
  delay.reset();
});
process.channel?.unref();
