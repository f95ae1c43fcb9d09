import fc from 'fast-check';
import t from 'tap';
import type { ReadClass, ReadContext } from '../../../src/async/read-context.ts';
import { RateTier } from '../../../src/chunk/wrappers/rate.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import { contextOf, demand, MapTier } from '../../support/tiers.ts';
import { tierSuite } from '../tier-suite.ts';

t.test('it fulfils the contract of a tier', async (t) => {
  tierSuite(t, async () => ({ tier: new RateTier(new MapTier('origin'), { requestsPerSecond: 1e6 }) }));
});

const idOf = (n: number) => n.toString(16).padStart(64, '0') as ChunkId;

function setUp(options: { requestsPerSecond?: number; bytesPerSecond?: number }) {
  const clock = { nowMs: 0 };
  const map = new MapTier('origin');
  const rate = new RateTier(map, options, () => clock.nowMs);
  const pass = async (ms: number) => {
    clock.nowMs += ms;
    rate.admit();
    await new Promise((resolve) => setImmediate(resolve));
  };
  return { clock, map, rate, pass };
}

t.test('one second’s worth passes at once, the rest at the rate', async (t) => {
  const { map, rate, pass } = setUp({ requestsPerSecond: 10 });
  t.teardown(() => rate.close());
  const reads = Array.from({ length: 30 }, (_, n) => rate.get(idOf(n), 1, demand()).catch(() => {}));
  await pass(0);
  t.equal(map.asked.length, 10);
  await pass(500);
  t.equal(map.asked.length, 15);
  for (let n = 0; n < 20; n++) await pass(100);
  t.equal(map.asked.length, 30);
  await Promise.all(reads);
  t.equal(rate.stats().waits, 20);
});

t.test('sealed bytes are counted, and one read may be larger than one second’s worth', async (t) => {
  const { map, rate, pass } = setUp({ bytesPerSecond: 1000 });
  t.teardown(() => rate.close());
  const reads = [3000, 10, 10].map((bytes, n) => rate.get(idOf(n), bytes, demand()).catch(() => {}));
  await pass(0);
  t.equal(map.asked.length, 1);
  await pass(1900);
  t.equal(map.asked.length, 1, 'not paid for yet');
  await pass(150);
  t.equal(map.asked.length, 3);
  await Promise.all(reads);
});

t.test('scarce tokens go to the most urgent reads', async (t) => {
  const { map, rate, pass } = setUp({ requestsPerSecond: 1 });
  t.teardown(() => rate.close());
  const classes: ReadClass[] = ['demand', 'prefetch', 'readahead', 'demand'];
  const reads = classes.map((readClass, n) => rate.get(idOf(n), 1, contextOf(readClass)).catch(() => {}));
  for (let n = 0; n < 4; n++) await pass(1100);
  t.same(map.asked, [0, 3, 2, 1].map(idOf));
  await Promise.all(reads);
});

t.test(
  'readahead leaves the guest its share, and may use that share once a guest waits for it',
  async (t) => {
    const { map, rate, pass } = setUp({ requestsPerSecond: 100 });
    t.teardown(() => rate.close());
    const reads: Promise<unknown>[] = [];
    const ask = (ctx: ReadContext) => reads.push(rate.get(idOf(reads.length), 1, ctx).catch(() => {}));
    for (let n = 0; n < 100; n++) ask(contextOf('prefetch'));
    await pass(0);
    t.equal(map.asked.length, 50);
    for (let n = 0; n < 100; n++) ask(contextOf('readahead'));
    await pass(0);
    t.equal(map.asked.length, 75);
    t.notOk(rate.holdsDemand);
    for (let n = 0; n < 24; n++) ask(demand());
    await pass(0);
    t.equal(map.asked.length, 99, 'at once, ahead of all waiting reads');
    t.equal(rate.stats().waits, 125);

    let readClass: ReadClass = 'prefetch';
    let promoted = () => {};
    ask({
      get class() {
        return readClass;
      },
      deadline: performance.now() + 60_000,
      onPromote: (listener) => {
        promoted = listener;
        return () => {};
      },
    });
    await pass(0);
    t.equal(map.asked.length, 99);
    readClass = 'demand';
    promoted();
    // Not through `pass`, which admits reads itself: here the promotion alone has to do it.
    await new Promise((resolve) => setImmediate(resolve));
    t.equal(map.asked.at(-1), idOf(224));
    ask(demand());
    t.ok(rate.holdsDemand);
    for (let n = 0; n < 30; n++) await pass(100);
    t.equal(map.asked.length, 226);
    await Promise.all(reads);
  },
);

t.test('a wait ends at its deadline, by its signal, or when the tier closes', async (t) => {
  const { rate } = setUp({ requestsPerSecond: 0.001 });
  await rate.get(idOf(0), 1, demand());
  await t.rejects(rate.get(idOf(1), 1, demand(20)), { code: 'TIMEOUT', message: /rate limit/ });
  const controller = new AbortController();
  const read = rate.get(idOf(2), 1, demand(20_000, controller.signal));
  controller.abort();
  await t.rejects(read, { code: 'ABORTED' });
  const last = rate.get(idOf(3), 1, demand());
  await rate.close();
  await t.rejects(last, { code: 'ABORTED' });
});

t.test('property: no interval exceeds its rate plus one burst', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 50 }),
      fc.array(
        fc.record({ reads: fc.integer({ min: 0, max: 20 }), waitMs: fc.integer({ min: 0, max: 900 }) }),
        {
          maxLength: 25,
        },
      ),
      async (perSecond, steps) => {
        const { clock, map, rate, pass } = setUp({ requestsPerSecond: perSecond });
        const reads: Promise<unknown>[] = [];
        for (const step of steps) {
          for (let n = 0; n < step.reads; n++)
            reads.push(rate.get(idOf(reads.length), 1, demand()).catch(() => {}));
          await pass(step.waitMs);
          const most = perSecond + (clock.nowMs / 1000) * perSecond + 1;
          if (map.asked.length > most) return false;
        }
        await rate.close();
        await Promise.all(reads);
        return true;
      },
    ),
    { numRuns: 50 },
  );
  t.pass();
});
