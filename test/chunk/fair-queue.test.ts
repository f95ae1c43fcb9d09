/** The order of those that wait: by class, by drive in turns, by age; against a model that is as plain as can be. */
import { setImmediate as tick } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import { deadlineError } from '../../src/chunk/deadline.ts';
import { FairQueue } from '../../src/chunk/fair-queue.ts';
import { Places } from '../../src/chunk/places.ts';
import type { ReadClass, ReadContext } from '../../src/chunk/tier.ts';
import { BY_URGENCY } from '../../src/chunk/urgency.ts';
import { LazydiskError } from '../../src/errors.ts';
import { contextOf } from '../support/tiers.ts';

const late = (why: 'deadline' | 'signal') => deadlineError(why, 'not served');

function contextFor(drive: string, readClass: ReadClass = 'demand', timeoutMs?: number): ReadContext {
  return { ...contextOf(readClass, timeoutMs), drive };
}

/** A context whose class and drives move, as a flight's do. */
class Moving implements ReadContext {
  class: ReadClass = 'prefetch';
  readonly deadline = performance.now() + 60_000;
  readonly drive = 'first';
  readonly drives = new Set(['first']);
  #listeners = new Set<() => void>();

  onPromote(listener: () => void) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  move(): void {
    for (const listener of this.#listeners) listener();
  }

  get watched(): boolean {
    return this.#listeners.size > 0;
  }
}

t.test('drives take turns, whatever each has waiting; a drive is first come, first served', async (t) => {
  const queue = new FairQueue<void>(() => {});
  const order: string[] = [];
  const waits = ['a1', 'a2', 'a3', 'b1', 'b2', 'c1'].map((name) =>
    queue.wait(contextFor(name[0]!), late).then(() => order.push(name)),
  );
  for (let next = queue.next(); next; next = queue.next()) {
    next.give();
    await tick();
  }
  await Promise.all(waits);
  t.same(order, ['a1', 'b1', 'c1', 'a2', 'b2', 'a3']);
  t.equal(queue.size, 0);
});

t.test('who may not go is passed over, and keeps its turn', async (t) => {
  const queue = new FairQueue<void>(() => {});
  const waits = ['a', 'b', 'a'].map((drive) => queue.wait(contextFor(drive), late));
  t.equal(queue.next((_, drive) => drive !== 'a')?.ctx.drive, 'b');
  t.equal(
    queue.next(() => false),
    undefined,
  );
  t.equal(queue.next()?.ctx.drive, 'a', 'b has had its turn');
  queue.refuseAll(new LazydiskError('ABORTED', 'over'));
  t.ok((await Promise.allSettled(waits)).every(({ status }) => status === 'rejected'));
  t.equal(queue.urgency, undefined);
});

t.test('one that becomes more urgent, or another drive’s too, moves and says so', async (t) => {
  let moves = 0;
  const queue = new FairQueue<string>(() => moves++);
  const ctx = new Moving();
  const moving = queue.wait(ctx, late);
  const other = queue.wait(contextFor('second', 'readahead'), late);
  t.equal(queue.urgency, 'readahead');
  ctx.class = 'demand';
  ctx.drives.add('third');
  ctx.move();
  t.equal(moves, 1);
  t.equal(queue.urgency, 'demand');
  const next = queue.next((_, drive) => drive === 'third');
  t.equal(next?.ctx, ctx, 'in the turn of the drive that came later');
  next?.give('served');
  t.equal(await moving, 'served');
  t.notOk(ctx.watched);
  t.equal(queue.size, 1, 'it is in no queue any more');
  t.equal(queue.last()?.ctx.class, 'readahead');
  queue.last()?.give('too');
  t.equal(await other, 'too');
});

t.test('waiting ends at the deadline and when cancelled', async (t) => {
  const queue = new FairQueue<void>(() => {});
  await t.rejects(queue.wait(contextFor('a', 'demand', 10), late), { code: 'TIMEOUT' });
  const controller = new AbortController();
  const cancelled = queue.wait({ ...contextFor('a'), signal: controller.signal }, late);
  controller.abort();
  await t.rejects(cancelled, { code: 'ABORTED' });
  t.equal(queue.size, 0);
});

t.test('property: most urgent class first, then the drive whose turn is longest ago, then age', async (t) => {
  const readClass = fc.constantFrom(...BY_URGENCY);
  const drive = fc.constantFrom('a', 'b', 'c', 'd');
  const step = fc.oneof(
    fc.record({ kind: fc.constant('wait' as const), readClass, drive }),
    fc.record({ kind: fc.constant('next' as const), barred: fc.option(drive) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const queue = new FairQueue<void>(() => {});
      const model: { ctx: ReadContext; served: Promise<void> }[] = [];
      // By class and drive: when it had its last turn, or began to wait.
      const turns = new Map<string, number>();
      const turnOf = (ctx: ReadContext) => turns.get(`${ctx.class} ${ctx.drive}`)!;
      let now = 0;
      for (const { kind, ...rest } of steps) {
        now++;
        if (kind === 'wait') {
          const { readClass, drive } = rest as { readClass: ReadClass; drive: string };
          const ctx = contextFor(drive, readClass);
          const waits = model.some(({ ctx: other }) => other.class === readClass && other.drive === drive);
          if (!waits) turns.set(`${readClass} ${drive}`, now);
          model.push({ ctx, served: queue.wait(ctx, late) });
          continue;
        }
        const { barred } = rest as { barred: string | null };
        const best = model
          .filter(({ ctx }) => ctx.drive !== barred)
          .sort(
            (a, b) =>
              BY_URGENCY.indexOf(a.ctx.class) - BY_URGENCY.indexOf(b.ctx.class) ||
              turnOf(a.ctx) - turnOf(b.ctx),
          )[0];
        const next = queue.next((_, owner) => owner !== barred);
        if (next?.ctx !== best?.ctx) return false;
        if (!best) continue;
        turns.set(`${best.ctx.class} ${best.ctx.drive}`, now);
        next?.give();
        await best.served;
        model.splice(model.indexOf(best), 1);
      }
      for (const { ctx } of model) if (!queue.next()) return ctx === undefined;
      queue.refuseAll(new LazydiskError('ABORTED', 'over'));
      await Promise.allSettled(model.map(({ served }) => served));
      return queue.size === 0;
    }),
  );
  t.pass();
});

t.test('property: places are never over the bound, and no drive keeps another out', async (t) => {
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
        // A drive that has nothing is kept out only when nothing is free.
        if (held.length < count) {
          const place = places.tryEnter(contextFor('newcomer'));
          if (!place) return false;
          places.leave(place);
        }
      }
      // All that wait come in when places are given back.
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
