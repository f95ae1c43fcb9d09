/** The order of waiting reads: by class, by drive in turns, by age; compared with the simplest possible model. */
import { setImmediate as tick } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import { deadlineError } from '../../src/async/deadline.ts';
import { BY_URGENCY, type ReadClass, type ReadContext } from '../../src/async/read-context.ts';
import { UrgencyQueue } from '../../src/async/urgency-queue.ts';
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

t.test('drives take turns; within a drive it is first come, first served', async (t) => {
  const queue = new UrgencyQueue<void>(() => {});
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

t.test('a drive that may not go is skipped, and keeps its turn', async (t) => {
  const queue = new UrgencyQueue<void>(() => {});
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

t.test('a read that becomes more urgent, or shared with another drive, moves and reports it', async (t) => {
  let moves = 0;
  const queue = new UrgencyQueue<string>(() => moves++);
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
  t.equal(next?.ctx, ctx, 'in the turn of the drive that joined later');
  next?.give('served');
  t.equal(await moving, 'served');
  t.notOk(ctx.watched);
  t.equal(queue.size, 1, 'it has left every queue');
  t.equal(queue.last()?.ctx.class, 'readahead');
  queue.last()?.give('too');
  t.equal(await other, 'too');
});

t.test('a wait ends at its deadline, and when it is cancelled', async (t) => {
  const queue = new UrgencyQueue<void>(() => {});
  await t.rejects(queue.wait(contextFor('a', 'demand', 10), late), { code: 'TIMEOUT' });
  const controller = new AbortController();
  const cancelled = queue.wait({ ...contextFor('a'), signal: controller.signal }, late);
  controller.abort();
  await t.rejects(cancelled, { code: 'ABORTED' });
  t.equal(queue.size, 0);
});

t.test('property: most urgent class first, then least recently served drive, then oldest', async (t) => {
  const readClass = fc.constantFrom(...BY_URGENCY);
  const drive = fc.constantFrom('a', 'b', 'c', 'd');
  const step = fc.oneof(
    fc.record({ kind: fc.constant('wait' as const), readClass, drive }),
    fc.record({ kind: fc.constant('next' as const), barred: fc.option(drive) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const queue = new UrgencyQueue<void>(() => {});
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
