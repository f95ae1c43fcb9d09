import fc from 'fast-check';
import t from 'tap';
import type { ReadClass, ReadContext } from '../../../src/async/read-context.ts';
import type { ChunkTier, SealedLoan } from '../../../src/chunk/tier.ts';
import { HedgeTier } from '../../../src/chunk/wrappers/hedge.ts';
import { LazydiskError } from '../../../src/errors.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import { contextOf, demand, MapTier } from '../../support/tiers.ts';
import { tierSuite } from '../tier-suite.ts';

const ID = 'ab' as ChunkId;

t.test('it fulfils the contract of a tier', async (t) => {
  tierSuite(t, async () => ({ tier: new HedgeTier(new MapTier('origin')) }));
});

/** A tier whose answers the test supplies, one by one. */
class ManualTier implements ChunkTier {
  readonly name = 'origin';
  readonly asked: { ctx: ReadContext; answer(loan?: SealedLoan): void; fail(error: Error): void }[] = [];
  /** Answered at once, with this loan. */
  instant: (() => SealedLoan) | undefined;

  get(_id: ChunkId, _sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    if (this.instant) return Promise.resolve(this.instant());
    return new Promise((resolve, reject) => {
      this.asked.push({ ctx, answer: resolve, fail: reject });
      ctx.signal?.addEventListener('abort', () => reject(new LazydiskError('ABORTED', 'cancelled')));
    });
  }

  async put(): Promise<boolean> {
    return false;
  }
  discard(): void {}
  async close(): Promise<void> {}
}

/** A hedger that has seen enough fast reads to know what is slow. */
async function trained(shareMax = 1): Promise<{ manual: ManualTier; hedge: HedgeTier }> {
  const manual = new ManualTier();
  const hedge = new HedgeTier(manual, { shareMax, floorMs: 10 });
  manual.instant = () => loanOf().loan;
  for (let n = 0; n < 30; n++) (await hedge.get(ID, 1, demand()))!.release();
  manual.instant = undefined;
  return { manual, hedge };
}

function loanOf(): { loan: SealedLoan; released: () => number } {
  let released = 0;
  return { loan: { bytes: Buffer.from('x'), release: () => void released++ }, released: () => released };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}

t.test('a slow read gets a second request; the first answer wins, the other is cancelled', async (t) => {
  const { manual, hedge } = await trained();
  const read = hedge.get(ID, 1, demand());
  await until(() => manual.asked.length === 2);
  const second = loanOf();
  manual.asked[1]!.answer(second.loan);
  t.equal(await read, second.loan);
  t.ok(manual.asked[0]!.ctx.signal?.aborted);
  t.notOk(manual.asked[1]!.ctx.signal?.aborted, 'the one whose loan is in use');
  t.match(hedge.stats(), { won: 1, lost: 0 });
});

t.test('the late loan of the slower request is released', async (t) => {
  const { manual, hedge } = await trained();
  const [first, second] = [loanOf(), loanOf()];
  const read = hedge.get(ID, 1, demand());
  await until(() => manual.asked.length === 2);
  manual.asked[0]!.answer(first.loan);
  manual.asked[1]!.answer(second.loan);
  t.equal(await read, first.loan);
  await until(() => second.released() === 1);
  t.equal(first.released(), 0);
  t.match(hedge.stats(), { won: 0, lost: 1 });
});

t.test('a miss or an error of one waits for the other', async (t) => {
  const { manual, hedge } = await trained();
  const read = hedge.get(ID, 1, demand());
  await until(() => manual.asked.length === 2);
  const { loan } = loanOf();
  manual.asked[0]!.fail(new LazydiskError('UNAVAILABLE', 'reset'));
  manual.asked[1]!.answer(loan);
  t.equal(await read, loan);

  const missing = hedge.get(ID, 1, demand());
  await until(() => manual.asked.length === 4);
  manual.asked[2]!.answer(undefined);
  manual.asked[3]!.fail(new LazydiskError('UNAVAILABLE', 'reset'));
  await t.rejects(missing, { code: 'UNAVAILABLE', message: 'reset' });
});

t.test('an error before the hedge is reported at once, and no hedge follows', async (t) => {
  const { manual, hedge } = await trained();
  const read = hedge.get(ID, 1, demand());
  manual.asked[0]!.fail(new LazydiskError('UNAVAILABLE', 'reset'));
  await t.rejects(read, { code: 'UNAVAILABLE' });
  await new Promise((resolve) => setTimeout(resolve, 40));
  t.equal(manual.asked.length, 1);
});

t.test('only demand is hedged, including reads that became demand meanwhile', async (t) => {
  const { manual, hedge } = await trained();
  for (const readClass of ['readahead', 'prefetch'] as const) {
    const read = hedge.get(ID, 1, contextOf(readClass));
    await new Promise((resolve) => setTimeout(resolve, 40));
    t.equal(manual.asked.length, 1, readClass);
    manual.asked.pop()!.answer(undefined);
    await read;
  }
  const promoted: { class: ReadClass; deadline: number } = { ...contextOf('readahead') };
  const read = hedge.get(ID, 1, promoted);
  promoted.class = 'demand';
  await until(() => manual.asked.length === 2);
  for (const { answer } of manual.asked) answer(undefined);
  await read;
});

t.test('hedges stay within their share of the requests', async (t) => {
  const { manual, hedge } = await trained(0.05);
  // A twentieth of the thirty warm-up reads, and of these.
  const reads: Promise<unknown>[] = [];
  for (let n = 0; n < 20; n++) {
    reads.push(hedge.get(ID, 1, demand()));
    await new Promise((resolve) => setTimeout(resolve, 15));
  }
  await until(() => hedge.stats().skipped > 10);
  t.ok(manual.asked.length <= 20 + 0.05 * 50, `${manual.asked.length - 20} hedges`);
  for (const { answer } of manual.asked) answer(undefined);
  await Promise.all(reads);
});

t.test('cancelling a read cancels both requests', async (t) => {
  const { manual, hedge } = await trained();
  const controller = new AbortController();
  const read = hedge.get(ID, 1, demand(20_000, controller.signal));
  await until(() => manual.asked.length === 2);
  controller.abort();
  await t.rejects(read, { code: 'ABORTED' });
  t.same(
    manual.asked.map(({ ctx }) => ctx.signal?.aborted),
    [true, true],
  );
});

t.test('a hedge that answers last, and without the chunk, has not won', async (t) => {
  const { manual, hedge } = await trained();
  const read = hedge.get(ID, 1, demand());
  await until(() => manual.asked.length === 2);
  manual.asked[0]!.fail(new LazydiskError('UNAVAILABLE', 'reset'));
  manual.asked[1]!.fail(new LazydiskError('UNAVAILABLE', 'reset too'));
  await t.rejects(read, { message: 'reset too' });
  t.match(hedge.stats(), { won: 0, lost: 1 });
});

t.test('a share of zero means no hedges', async (t) => {
  const { manual, hedge } = await trained(0);
  const read = hedge.get(ID, 1, demand());
  await until(() => hedge.stats().skipped === 1 || manual.asked.length > 1);
  t.equal(manual.asked.length, 1);
  manual.asked[0]!.answer(undefined);
  await read;
});

t.test('misses do not count in the latency of reads', async (t) => {
  const map = new MapTier('origin');
  const manual = new ManualTier();
  let isMissing = true;
  const inner: ChunkTier = {
    name: 'origin',
    put: async () => false,
    discard() {},
    close: async () => {},
    get: (id, sealedBytes, ctx) => (isMissing ? map : manual).get(id, sealedBytes, ctx),
  };
  const hedge = new HedgeTier(inner, { shareMax: 1, floorMs: 1 });
  for (let n = 0; n < 30; n++) await hedge.get(ID, 1, demand());
  isMissing = false;
  const read = hedge.get(ID, 1, demand());
  await new Promise((resolve) => setTimeout(resolve, 40));
  t.equal(manual.asked.length, 1);
  manual.asked[0]!.answer(undefined);
  await read;
});

t.test('a cancelled read is not hedged, even if its tier is slow to notice', async (t) => {
  const { manual, hedge } = await trained();
  const controller = new AbortController();
  let asked = 0;
  let end = () => {};
  manual.get = () => {
    asked++;
    return new Promise((resolve) => {
      end = () => resolve(undefined);
    });
  };
  const read = hedge.get(ID, 1, demand(20_000, controller.signal));
  controller.abort();
  await new Promise((resolve) => setTimeout(resolve, 40));
  t.equal(asked, 1);
  end();
  await read;
});

t.test('property: the loan of one request is returned, once, and every other loan is released', async (t) => {
  const answer = fc.constantFrom('loan', 'miss', 'error');
  await fc.assert(
    fc.asyncProperty(answer, answer, fc.boolean(), fc.boolean(), async (one, two, isHedgeFirst, isDeaf) => {
      const { manual, hedge } = await trained();
      let lent = 0;
      let out = 0;
      const asked: ((what: string) => void)[] = [];
      manual.get = (_id, _sealedBytes, ctx) =>
        new Promise((resolve, reject) => {
          const abort = () => reject(new LazydiskError('ABORTED', 'cancelled'));
          if (!isDeaf) ctx.signal?.addEventListener('abort', abort);
          asked.push((what) => {
            if (what === 'error') reject(new LazydiskError('UNAVAILABLE', 'reset'));
            if (what === 'miss') resolve(undefined);
            if (what !== 'loan' || (ctx.signal?.aborted && !isDeaf)) return;
            lent++;
            out++;
            resolve({ bytes: Buffer.from('x'), release: () => void out-- });
          });
        });
      const read = hedge.get(ID, 1, demand()).catch(() => undefined);
      await until(() => asked.length === 2);
      const [first, second] = isHedgeFirst ? [asked[1]!, asked[0]!] : [asked[0]!, asked[1]!];
      first(one);
      await new Promise((resolve) => setImmediate(resolve));
      second(two);
      const loan = await read;
      await new Promise((resolve) => setImmediate(resolve));
      const { won, lost } = hedge.stats();
      return Boolean(loan) === lent > 0 && out === (loan ? 1 : 0) && won + lost === 1;
    }),
    { numRuns: 30 },
  );
  t.pass();
});
