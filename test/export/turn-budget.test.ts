import { setImmediate as nextTurn } from 'node:timers/promises';
import t from 'tap';
import { TurnBudget } from '../../src/export/turn-budget.ts';

/** A clock that advances only by the work done. */
function clock() {
  let nowMs = 0;
  return {
    now: () => nowMs,
    work: (ms: number) => {
      nowMs += ms;
    },
  };
}

t.test('a turn ends after its time, however few bytes are copied', async (t) => {
  const { now, work } = clock();
  const turn = new TurnBudget(now);
  const deep = {};
  let served = 0;
  while (turn.hasRoom(deep)) {
    turn.use(deep, 1);
    work(0.03);
    served++;
  }
  t.equal(served, 7);
  await nextTurn();
  t.ok(turn.hasRoom(deep), 'and the next one has room again');
});

t.test('a turn ends after its bytes, however quickly they are copied', (t) => {
  const turn = new TurnBudget(clock().now);
  const deep = {};
  turn.use(deep, 2 * 1024 * 1024);
  t.notOk(turn.hasRoom(deep));
  t.notOk(turn.hasRoom({}), 'not for any drive');
  t.end();
});

t.test('a drive that was not served in a turn does not wait for one that filled it', (t) => {
  const { now, work } = clock();
  const turn = new TurnBudget(now);
  const deep = {};
  t.ok(turn.hasRoom(deep));
  turn.use(deep, 1);
  work(0.5);
  t.notOk(turn.hasRoom(deep));
  const shallow = {};
  t.ok(turn.hasRoom(shallow));
  turn.use(shallow, 1);
  t.notOk(turn.hasRoom(shallow), 'once');
  work(2);
  t.notOk(turn.hasRoom({}), 'many such drives together are bounded as well');
  t.end();
});

t.test('each waiting drive is served before a deep queue continues', async (t) => {
  const { now, work } = clock();
  const turn = new TurnBudget(now);
  const order: string[] = [];
  let deepLeft = 40;
  const deep = {};
  const runDeep = () => {
    while (deepLeft > 0 && turn.hasRoom(deep)) {
      turn.use(deep, 1);
      work(0.05);
      order.push('deep');
      deepLeft--;
    }
    if (deepLeft > 0) turn.wait(deep, runDeep);
  };
  turn.wait(deep, runDeep);
  for (let n = 0; n < 5; n++) {
    const shallow = {};
    turn.wait(shallow, () => {
      turn.use(shallow, 1);
      work(0.05);
      order.push('shallow');
    });
  }
  await nextTurn();
  t.same(order.slice(0, 9), [...Array(4).fill('deep'), ...Array(5).fill('shallow')]);
  t.equal(order.length, 9, 'all in one turn, with no more of the deep queue in it');
  while (deepLeft > 0) await nextTurn();
  t.equal(order.length, 45);
});
