/**
 * What holds up the event loop, by name. Everything that a daemon does in one turn delays everybody else, so whoever does
 * something that grows with what others ask notes how long it took; what took too long is counted, for a metric. One
 * counter for the process, as there is one loop.
 */
import { PerformanceObserver } from 'node:perf_hooks';

/** What is noted. `gc`: the collector's pauses; `slice`: a slice of long work (slices.ts). */
const LOOP_WORK = ['nbd', 'fuse', 'control', 'metrics', 'slice', 'gc'] as const;
export type LoopWork = (typeof LOOP_WORK)[number];

/** Shorter stretches are what a loop is for. */
const BLOCKED_MS_MIN = 5;

interface Blocked {
  count: number;
  seconds: number;
}

const blocked = new Map<LoopWork, Blocked>(LOOP_WORK.map((by) => [by, { count: 0, seconds: 0 }]));

/** Notes work that began at `sinceMs` on the clock of performance.now() and ends now. */
export function noteWork(by: LoopWork, sinceMs: number): void {
  noteWorkFor(by, performance.now() - sinceMs);
}

/** How often and how long each kind of work blocked the loop so far, for more than 5 ms at a time. */
export function blockedBy(): ReadonlyMap<LoopWork, Readonly<Blocked>> {
  return blocked;
}

/** Notes the collector's pauses until the returned function is called. */
export function watchCollector(): () => void {
  const observer = new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) noteWorkFor('gc', duration);
  });
  observer.observe({ entryTypes: ['gc'] });
  return () => observer.disconnect();
}

function noteWorkFor(by: LoopWork, milliseconds: number): void {
  if (milliseconds < BLOCKED_MS_MIN) return;
  const sum = blocked.get(by)!;
  sum.count++;
  sum.seconds += milliseconds / 1e3;
}
