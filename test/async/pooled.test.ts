/** Work in lanes: how many run at once, what a failure stops, and lanes that are added and removed. */
import t from 'tap';
import { pooled } from '../../src/async/pooled.ts';

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

t.test('all items are worked on, never more at a time than there are lanes', async (t) => {
  for (const lanes of [1, 3, 100]) {
    let running = 0;
    let most = 0;
    const done: number[] = [];
    await pooled(lanes, Array.from({ length: 50 }, (_, n) => n).values(), async (n) => {
      most = Math.max(most, ++running);
      await turn();
      running--;
      done.push(n);
    });
    t.equal(most, Math.min(lanes, 50));
    t.equal(new Set(done).size, 50);
  }
  await pooled(4, [], async () => {
    t.fail('nothing to do');
  });
});

t.test('lanes are added and removed while work runs', async (t) => {
  const lanes = { limit: 2 };
  let running = 0;
  const seen: number[] = [];
  await pooled(
    lanes,
    Array.from({ length: 90 }, (_, n) => n),
    async (n) => {
      running++;
      await turn();
      seen.push(running);
      if (n === 20) lanes.limit = 8;
      if (n === 60) lanes.limit = 3;
      await turn();
      running--;
    },
  );
  t.equal(seen.length, 90);
  t.equal(Math.max(...seen.slice(0, 20)), 2);
  t.equal(Math.max(...seen), 8);
  t.equal(Math.max(...seen.slice(75)), 3);
});

t.test('after a failure nothing new begins, running work finishes, and the iterator is closed', async (t) => {
  let isClosed = false;
  let begun = 0;
  let ended = 0;
  async function* items(): AsyncGenerator<number> {
    try {
      for (let n = 0; ; n++) yield n;
    } finally {
      isClosed = true;
    }
  }
  const failing = pooled(4, items(), async (n) => {
    begun++;
    await turn();
    if (n === 9) throw new Error('nine');
    for (let turns = 0; turns < 5; turns++) await turn();
    ended++;
  });
  await t.rejects(failing, { message: 'nine' });
  t.equal(begun, ended + 1);
  t.ok(isClosed);
  const bad = (async function* () {
    yield 1;
    throw new Error('no more');
  })();
  await t.rejects(
    pooled(2, bad, async () => undefined),
    { message: 'no more' },
  );
});
