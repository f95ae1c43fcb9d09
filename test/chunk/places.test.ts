/** Places at a tier: never more than the bound, and always some for the next drive. */
import { setImmediate as tick } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import { BY_URGENCY, type ReadClass, type ReadContext } from '../../src/async/read-context.ts';
import { Places } from '../../src/chunk/places.ts';
import { contextOf } from '../support/tiers.ts';

function contextFor(drive: string, readClass: ReadClass = 'demand'): ReadContext {
  return { ...contextOf(readClass), drive };
}

t.test('property: places never exceed the bound, and no drive keeps another out', async (t) => {
  const drive = fc.constantFrom('a', 'b', 'c');
  const step = fc.oneof(
    fc.record({ kind: fc.constant('enter' as const), readClass: fc.constantFrom(...BY_URGENCY), drive }),
    fc.record({ kind: fc.constant('leave' as const), which: fc.nat(100) }),
  );
  const bounds = fc.record({
    places: fc.integer({ min: 1, max: 12 }),
    steps: fc.array(step, { maxLength: 80 }),
  });
  await fc.assert(
    fc.asyncProperty(bounds, async ({ places: count, steps }) => {
      const places = new Places({ name: 'test', places: count });
      const held: { readonly owner: string; readonly ctx: ReadContext }[] = [];
      const controller = new AbortController();
      const waits: Promise<unknown>[] = [];
      for (const each of steps) {
        if (each.kind === 'enter') {
          const ctx = { ...contextFor(each.drive, each.readClass), signal: controller.signal };
          waits.push(
            places.enter(ctx).then(
              (place) => held.push(place),
              () => {},
            ),
          );
        } else if (held.length > 0) places.leave(held.splice(each.which % held.length, 1)[0]!);
        await tick();
        const background = held.filter(({ ctx }) => ctx.class !== 'demand').length;
        if (held.length !== places.taken || held.length > count) return false;
        if (background > Math.max(1, Math.floor(count * 0.75))) return false;
        // A drive without a place is kept out only when none is free.
        if (held.length < count) {
          const place = places.tryEnter(contextFor('newcomer'));
          if (!place) return false;
          places.leave(place);
        }
      }
      // All that wait get in when places are given back.
      const wanted = waits.length;
      let served = held.length;
      while (held.length > 0) {
        places.leave(held.pop()!);
        await tick();
        served = Math.max(served, held.length);
      }
      await tick();
      controller.abort();
      await Promise.all(waits);
      return places.taken === 0 && places.waiting === 0 && served <= wanted;
    }),
  );
  t.pass();
});
