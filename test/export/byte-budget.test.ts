/**
 * Memory for answers: never more than its capacity, never all of it for one drive, and every waiting read gets a turn.
 */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { ByteBudget, type HeldBytes } from '../../src/export/byte-budget.ts';

const controller = new AbortController();
const { signal } = controller;
t.teardown(() => controller.abort());
const later = (ms = 60_000) => ({ deadline: performance.now() + ms, signal });
const [a, b, c] = ['a', 'b', 'c'].map((name) => ({ name })) as [
  { name: string },
  { name: string },
  { name: string },
];
/** Lets resolved promises run. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

t.test('a drive gets at most half, except for a single longer read', async (t) => {
  const budget = new ByteBudget(100);
  const first = budget.tryTake(a, 30);
  t.ok(first);
  t.notOk(budget.tryTake(a, 30), 'it would have 60');
  t.ok(budget.tryTake(a, 20));
  const long = budget.tryTake(b, 51);
  t.notOk(long, 'there are 50 left');
  first?.release();
  t.ok(budget.tryTake(b, 60));
  t.notOk(budget.tryTake(b, 1));
});

t.test('waiting reads get room as it is released, one drive after the other', async (t) => {
  const budget = new ByteBudget(100);
  const held = [budget.tryTake(a, 50)!, budget.tryTake(b, 50)!];
  const order: string[] = [];
  const ask = (owner: { name: string }, bytes: number) =>
    void budget.take(owner, bytes, later()).then((given) => {
      order.push(owner.name);
      held.push(given);
    });
  for (let n = 0; n < 10; n++) ask(a, 25);
  ask(c, 25);
  t.equal(budget.waiters, 11);
  held.shift()!.release();
  await settle();
  t.same(order, ['a', 'c'], 'the read of another drive is the second, not the eleventh');
  while (held.length > 0) {
    held.shift()!.release();
    await settle();
  }
  t.equal(order.length, 11);
  t.same([budget.waiters, budget.heldBytes], [0, 0]);
});

t.test('a long read that has its turn is not overtaken', async (t) => {
  const budget = new ByteBudget(100);
  const held = [budget.tryTake(a, 40)!, budget.tryTake(b, 40)!];
  const long = budget.take(c, 90, later());
  t.notOk(budget.tryTake(a, 1), 'although there is room for this one');
  for (const one of held) one.release();
  (await long).release();
  t.ok(budget.tryTake(a, 1));
});

t.test('a drive that waits for its own share does not delay others', async (t) => {
  const budget = new ByteBudget(100);
  budget.tryTake(a, 50);
  void budget.take(a, 50, later()).catch(() => {});
  t.ok(budget.tryTake(b, 50));
});

t.test('a wait ends at its deadline or by its signal, and an impossible one at once', async (t) => {
  const budget = new ByteBudget(100);
  budget.tryTake(a, 100);
  await t.rejects(budget.take(b, 1, later(5)), { code: 'TIMEOUT', message: /drive b/ });
  const controller = new AbortController();
  const waiting = budget.take(b, 1, { ...later(), signal: controller.signal });
  controller.abort();
  await t.rejects(waiting, { code: 'ABORTED' });
  await t.rejects(budget.take(b, 101, later()), { code: 'OVERLOAD' });
  t.equal(budget.waiters, 0);
});

t.test('property: the bound always holds, and all reads are served', async (t) => {
  const step = fc.record({
    owner: fc.constantFrom(a, b, c),
    bytes: fc.integer({ min: 1, max: 100 }),
    releases: fc.nat(3),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const budget = new ByteBudget(100);
      const held: HeldBytes[] = [];
      let served = 0;
      for (const { owner, bytes, releases } of steps) {
        void budget.take(owner, bytes, later()).then((given) => {
          served++;
          held.push(given);
        });
        await settle();
        for (let n = 0; n < releases; n++) held.shift()?.release();
        assert.ok(budget.heldBytes <= 100);
      }
      await settle();
      while (served < steps.length || held.length > 0) {
        assert.ok(held.length > 0, 'a read waits although nothing is held');
        held.shift()!.release();
        assert.ok(budget.heldBytes <= 100);
        await settle();
      }
      assert.equal(budget.heldBytes, 0);
    }),
    { numRuns: 200 },
  );
  t.pass('holds');
});
