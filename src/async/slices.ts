/**
 * Long work on the event loop, cut into slices: a generator that yields where it may pause runs either at once, where
 * nobody waits (a command), or a slice a turn of the loop (the daemon). All of a process share the turns, so ten such
 * works at once take ten times as long and never ten slices in one turn.
 */
import { noteWork } from '../loop-work.ts';

/** Work that may pause wherever it yields, a millisecond apart at most. */
export type Steps<T> = Generator<void, T, void>;

/** One slice, in which nothing else of the loop happens. */
const SLICE_MS = 1;

const waiting: (() => void)[] = [];

/** Resolves in a turn of the event loop in which nobody else's long work goes on. */
export function ownTurn(): Promise<void> {
  return new Promise((resolve) => {
    waiting.push(resolve);
    if (waiting.length === 1) setImmediate(giveTurn);
  });
}

function giveTurn(): void {
  waiting.shift()!();
  if (waiting.length > 0) setImmediate(giveTurn);
}

/** All of the work, now. */
export function runNow<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/** All of the work, a slice a turn. */
export async function runInSlices<T>(steps: Steps<T>): Promise<T> {
  for (;;) {
    await ownTurn();
    const since = performance.now();
    let step = steps.next();
    while (!step.done && performance.now() - since < SLICE_MS) step = steps.next();
    noteWork('slice', since);
    if (step.done) return step.value;
  }
}
