/** Long work in slices: all of it, in order, and one slice per turn for all work together. */
import t from 'tap';
import { ownTurn, runInSlices, runNow, type Steps } from '../../src/async/slices.ts';

function* counted(count: number, onStep: (n: number) => void = () => {}): Steps<number> {
  for (let n = 0; n < count; n++) {
    onStep(n);
    yield;
  }
  return count;
}

/** Keeps the loop busy for a time. */
function spin(milliseconds: number): void {
  const until = performance.now() + milliseconds;
  while (performance.now() < until);
}

t.test('both ways return the result of the work, or throw its error', async (t) => {
  t.equal(runNow(counted(10)), 10);
  t.equal(await runInSlices(counted(10)), 10);
  const failing = () =>
    counted(10, (n) => {
      if (n === 5) throw new Error('five');
    });
  t.throws(() => runNow(failing()), { message: 'five' });
  await t.rejects(runInSlices(failing()), { message: 'five' });
  t.equal(await runInSlices(counted(3)), 3, 'and the next work gets its turn');
});

t.test('the loop turns between slices, and each turn has one slice of one of many jobs', async (t) => {
  let turn = 0;
  let running = true;
  const count = () => {
    turn++;
    if (running) setImmediate(count);
  };
  count();
  const turnsOf: number[][] = Array.from({ length: 4 }, () => []);
  const works = turnsOf.map((turns) =>
    runInSlices(
      counted(10, () => {
        turns.push(turn);
        spin(2);
      }),
    ),
  );
  await Promise.all(works);
  running = false;
  const all = turnsOf.flat();
  t.equal(all.length, 40);
  t.equal(new Set(all).size, 40, 'never two in one turn');
});

t.test('turns are given in the order in which they were requested', async (t) => {
  const order: number[] = [];
  await Promise.all(
    Array.from({ length: 10 }, async (_, n) => {
      await ownTurn();
      order.push(n);
    }),
  );
  t.same(order, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});
