/**
 * Long work on the event loop, cut into slices: a generator that yields wherever it may pause. It runs either in one
 * go, where nothing else waits (a command), or one slice per turn of the loop (the daemon). All work in a process
 * shares the turns, so ten such jobs at once take ten times as long but never run ten slices in one turn.
 */
import { noteWork } from '../loop-work.ts';

/** Work that may pause wherever it yields, at most a millisecond apart. */
export type Steps<T> = Generator<void, T, void>;

/** The length of a slice, during which the loop does nothing else. */
const SLICE_MS = 1;

const waiting: (() => void)[] = [];

/** Resolves in a turn of the event loop in which no other long work runs. */
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

/** Runs all of the work now. */
export function runNow<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/** Runs all of the work, one slice per turn. */
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
