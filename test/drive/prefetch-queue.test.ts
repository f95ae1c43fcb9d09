/** Prefetching: in order, a few chunks at a time, and all of them. */
import assert from 'node:assert/strict';
import { setImmediate as tick } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import { PrefetchQueue } from '../../src/drive/prefetch-queue.ts';

t.test('entries are fetched in the order of their list, and lists one after the other', async (t) => {
  const asked: number[] = [];
  const queue = new PrefetchQueue({
    fetch: async (entry) => {
      asked.push(entry);
      return true;
    },
  });
  queue.add([7, 3, 9]);
  queue.add([]);
  queue.add(new Set([1, 8]));
  while (asked.length < 5) await tick();
  t.same(asked, [7, 3, 9, 1, 8]);
});

t.test('a list is not iterated further than its turn', async (t) => {
  let read = 0;
  const queue = new PrefetchQueue({ fetch: () => new Promise(() => {}) });
  queue.add(
    (function* () {
      for (;;) yield read++;
    })(),
  );
  await tick();
  t.equal(read, 4, 'as many as may be in flight at once');
  queue.close();
});

t.test('skipping chunks that are near already does not block the event loop', async (t) => {
  let looked = 0;
  const queue = new PrefetchQueue({
    fetch: () => {
      looked++;
      return undefined;
    },
  });
  queue.add(Array.from({ length: 5_000 }, (_, n) => n));
  t.ok(looked < 5_000, `${looked} in one turn`);
  while (looked < 5_000) await new Promise((resolve) => setTimeout(resolve, 1));
});

t.test('property: none is lost, four are in flight, and only refused ones are out of order', async (t) => {
  const outcome = fc.constantFrom('near', 'fetched', 'refused');
  const lists = fc.array(fc.array(outcome, { maxLength: 12 }), { maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(lists, async (lists) => {
      const outcomes = lists.flat();
      const refused = new Set<number>();
      const firsts: number[] = [];
      const settled = new Set<number>();
      let active = 0;
      const queue = new PrefetchQueue({
        fetch: (entry) => {
          const isRefused = outcomes[entry] === 'refused' && !refused.has(entry);
          if (!refused.has(entry)) firsts.push(entry);
          if (outcomes[entry] === 'near') {
            settled.add(entry);
            return undefined;
          }
          assert.ok(++active <= 4);
          return tick().then(() => {
            active--;
            if (isRefused) refused.add(entry);
            else settled.add(entry);
            return !isRefused;
          });
        },
      });
      let first = 0;
      for (const list of lists) {
        queue.add(list.map((_, n) => first + n));
        first += list.length;
      }
      while (settled.size < outcomes.length) await new Promise((resolve) => setTimeout(resolve, 1));
      assert.deepEqual(
        firsts,
        outcomes.map((_, n) => n),
      );
      queue.close();
    }),
    { numRuns: 30 },
  );
  t.pass();
});

t.test('nothing is fetched after close', async (t) => {
  let asked = 0;
  const queue = new PrefetchQueue({
    fetch: async () => {
      asked++;
      return true;
    },
  });
  queue.add([1, 2, 3, 4, 5, 6]);
  queue.close();
  queue.add([7]);
  await tick();
  t.equal(asked, 4);
});
