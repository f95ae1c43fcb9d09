/** The queue in which owners take turns, compared with the simplest possible model. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { Turns } from '../../src/async/turns.ts';

t.test('owners take turns, however much each has queued', async (t) => {
  const turns = new Turns<string, string>();
  for (const item of ['a1', 'a2', 'a3', 'b1', 'b2', 'c1']) turns.push(item[0]!, item);
  const order = Array.from({ length: 7 }, () => turns.take());
  t.same(order, ['a1', 'b1', 'c1', 'a2', 'b2', 'a3', undefined]);
  t.ok(turns.isEmpty);
});

t.test('an owner that may not have its item is skipped; an item that may not go stops all', async (t) => {
  const turns = new Turns<string, string>();
  for (const item of ['a1', 'b1']) turns.push(item[0]!, item);
  t.equal(
    turns.take(
      () => true,
      (item) => item !== 'a1',
    ),
    undefined,
  );
  t.equal(
    turns.take((owner) => owner !== 'a'),
    'b1',
  );
  t.equal(turns.take(), 'a1', 'it kept its turn');
});

t.test('an item of several owners is removed from each queue separately', async (t) => {
  const turns = new Turns<string, string>();
  turns.push('a', 'shared');
  turns.push('b', 'shared');
  t.equal(turns.take(), 'shared');
  turns.remove('a', 'shared');
  turns.remove('b', 'shared');
  t.ok(turns.isEmpty);
  t.equal(turns.lastOfLongest(), undefined);
});

t.test('property: the least recently served owner goes first, and its oldest item', async (t) => {
  const owner = fc.constantFrom('a', 'b', 'c', 'd');
  const step = fc.oneof(
    fc.record({ kind: fc.constantFrom('push' as const, 'remove' as const), owner }),
    fc.record({ kind: fc.constantFrom('take' as const, 'last' as const) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const turns = new Turns<string, number>();
      // Owners in the order of their turns.
      let model: { owner: string; items: number[] }[] = [];
      for (const [n, each] of steps.entries()) {
        if (each.kind === 'push') {
          turns.push(each.owner, n);
          const known = model.find(({ owner }) => owner === each.owner);
          if (known) known.items.push(n);
          else model.push({ owner: each.owner, items: [n] });
        } else if (each.kind === 'remove') {
          const known = model.find(({ owner }) => owner === each.owner);
          turns.remove(each.owner, known?.items.pop() ?? -1);
        } else if (each.kind === 'take') {
          const first = model.shift();
          assert.equal(turns.take(), first?.items.shift());
          if (first) model.push(first);
        } else {
          const most = Math.max(0, ...model.map(({ items }) => items.length));
          assert.equal(turns.lastOfLongest(), model.find(({ items }) => items.length === most)?.items.at(-1));
        }
        model = model.filter(({ items }) => items.length > 0);
        assert.equal(turns.isEmpty, model.length === 0);
      }
    }),
  );
  t.pass();
});
