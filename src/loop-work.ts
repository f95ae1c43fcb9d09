/**
 * Records what blocks the event loop, by name. Whatever a daemon does in one turn delays everything else, so code whose
 * work grows with requests notes how long it took; work that took too long is counted, for a metric. There is one
 * counter for the process, because there is one loop.
 */
import { PerformanceObserver } from 'node:perf_hooks';

/** The kinds of work. `gc`: pauses of the garbage collector; `slice`: a slice of long work (slices.ts). */
const LOOP_WORK = ['nbd', 'fuse', 'control', 'metrics', 'slice', 'gc'] as const;
export type LoopWork = (typeof LOOP_WORK)[number];

/** Shorter work is normal. */
const BLOCKED_MS_MIN = 5;

interface Blocked {
  count: number;
  seconds: number;
}

const blocked = new Map<LoopWork, Blocked>(LOOP_WORK.map((by) => [by, { count: 0, seconds: 0 }]));

/** Notes work that began at `sinceMs` by performance.now() and ends now. */
export function noteWork(by: LoopWork, sinceMs: number): void {
  noteWorkFor(by, performance.now() - sinceMs);
}

/** How often and how long each kind of work has blocked the loop, counting only work of more than 5 ms at a time. */
export function blockedBy(): ReadonlyMap<LoopWork, Readonly<Blocked>> {
  return blocked;
}

/** Notes the garbage collector's pauses until the returned function is called. */
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
