/** A bound on how much is in flight. */
import assert from 'node:assert/strict';
import { setImmediate as tick } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import { Slots } from '../../src/async/slots.ts';

t.test('property: no more slots are taken than exist, and waiters are served in order', async (t) => {
  const world = fc.record({
    count: fc.integer({ min: 1, max: 5 }),
    steps: fc.array(fc.boolean(), { maxLength: 40 }),
  });
  await fc.assert(
    fc.asyncProperty(world, async ({ count, steps }) => {
      const slots = new Slots(count);
      const served: number[] = [];
      let taken = 0;
      let given = 0;
      for (const isTake of steps) {
        if (isTake) {
          const who = taken++;
          void slots.take().then(() => served.push(who));
        } else if (given < served.length) {
          slots.give();
          given++;
        }
        await tick();
        assert.equal(served.length, Math.min(taken, count + given));
      }
      assert.deepEqual(
        served,
        served.map((_, n) => n),
      );
    }),
  );
  t.pass();
});
