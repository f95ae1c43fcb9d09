/** What held up the event loop is counted by name, and what did not is not. */
import { setTimeout } from 'node:timers/promises';
import t from 'tap';
import { runInSlices } from '../src/async/slices.ts';
import { blockedBy, noteWork, watchCollector } from '../src/loop-work.ts';

function spin(milliseconds: number): void {
  const until = performance.now() + milliseconds;
  while (performance.now() < until);
}

t.test('long work is counted with its time, short work is not', async (t) => {
  const before = { ...blockedBy().get('control')! };
  // Begun a little later than now: no time has passed, however loaded the machine is.
  noteWork('control', performance.now() + 1_000);
  t.same(blockedBy().get('control'), before);
  const since = performance.now();
  spin(6);
  noteWork('control', since);
  const { count, seconds } = blockedBy().get('control')!;
  t.equal(count, before.count + 1);
  t.ok(seconds - before.seconds >= 0.006);
});

t.test('a step that is longer than its slice is named', async (t) => {
  const before = blockedBy().get('slice')!.count;
  await runInSlices(
    (function* () {
      spin(6);
      yield;
    })(),
  );
  t.ok(blockedBy().get('slice')!.count > before);
});

t.test('the collector’s long pauses are counted while it is watched', async (t) => {
  const stop = watchCollector();
  const before = blockedBy().get('gc')!.count;
  const kept: object[] = [];
  while (blockedBy().get('gc')!.count === before) {
    for (let n = 0; n < 200_000; n++) kept.push({ n, text: `${n}` });
    await setTimeout(1);
  }
  stop();
  t.ok(kept.length > 0);
});
