import { setImmediate as tick } from 'node:timers/promises';
import t from 'tap';
import type { ReadContext } from '../../../src/async/read-context.ts';
import type { ChunkTier, SealedLoan } from '../../../src/chunk/tier.ts';
import { LimitTier } from '../../../src/chunk/wrappers/limit.ts';
import { RetryTier } from '../../../src/chunk/wrappers/retry.ts';
import { type ErrorCode, LazydiskError } from '../../../src/errors.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import { contextOf, demand, FaultTier, MapTier } from '../../support/tiers.ts';

const ID = 'ab'.repeat(32) as ChunkId;

/** A tier whose reads the test answers. */
class ManualTier implements ChunkTier {
  readonly name = 'origin';
  readonly pending: { id: ChunkId; ctx: ReadContext; answer: (loan?: SealedLoan) => void }[] = [];

  get(id: ChunkId, _sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    return new Promise((resolve) => this.pending.push({ id, ctx, answer: resolve }));
  }

  async put(): Promise<boolean> {
    return false;
  }
  discard(): void {}
  async close(): Promise<void> {}
}

/** Fails `times` times with `code`; then every read is a miss. */
function failing(times: number, code: ErrorCode = 'UNAVAILABLE') {
  const tier = new FaultTier(new MapTier('origin'));
  const state = { tier, calls: 0 };
  tier.fault = () =>
    state.calls++ < times ? { kind: 'error', error: new LazydiskError(code, 'made to fail') } : undefined;
  return state;
}

/** Tries three times, with hardly a pause. */
function retryOf(tier: ChunkTier): RetryTier {
  return new RetryTier(tier, { tries: 3, tryTimeoutMs: 1000, pauses: { firstMs: 1, longestMs: 1 } });
}

t.test('retry: an error is retried, but a miss is an answer', async (t) => {
  const state = failing(2);
  const tier = retryOf(state.tier);
  t.equal(await tier.get(ID, 100, demand()), undefined);
  t.equal(state.calls, 3);
  await tier.get(ID, 100, demand());
  t.equal(state.calls, 4);
});

t.test('retry: after the last try the error is reported with the number of tries', async (t) => {
  const state = failing(100);
  const tier = retryOf(state.tier);
  await t.rejects(tier.get(ID, 100, demand()), {
    code: 'UNAVAILABLE',
    message: 'made to fail (tried 3 times)',
  });
  t.equal(state.calls, 3);
});

t.test('retry: an error that would only repeat is not retried', async (t) => {
  for (const code of ['CORRUPT', 'KEY', 'USAGE', 'NOT_FOUND'] as const) {
    const state = failing(100, code);
    const tier = retryOf(state.tier);
    await t.rejects(tier.get(ID, 100, demand()), { code, message: 'made to fail' });
    t.equal(state.calls, 1);
  }
});

t.test('retry: a hung try is abandoned for the next one', async (t) => {
  const tier = new FaultTier(new MapTier('origin'));
  let calls = 0;
  tier.fault = () => (calls++ === 0 ? { kind: 'slow', delayMs: 60_000 } : undefined);
  const retry = new RetryTier(tier, { tries: 2, tryTimeoutMs: 20, pauses: { firstMs: 1, longestMs: 1 } });
  t.equal(await retry.get(ID, 100, demand()), undefined);
  t.equal(calls, 2);
});

t.test('retry: no pause exceeds the deadline of the read, and cancelling ends the pause', async (t) => {
  const state = failing(100);
  const tier = new RetryTier(state.tier, {
    tries: 100,
    tryTimeoutMs: 1000,
    pauses: { firstMs: 60_000, longestMs: 60_000 },
  });
  await t.rejects(tier.get(ID, 100, demand(500)), { code: 'UNAVAILABLE', message: 'made to fail' });
  t.equal(state.calls, 1, 'a pause longer than the remaining time does not begin');
  const controller = new AbortController();
  const waiting = tier.get(ID, 100, demand(200_000, controller.signal));
  await tick();
  controller.abort();
  await t.rejects(waiting, { code: 'ABORTED' });
});

t.test('limit: reads never exceed the limit, and go in order, demand first', async (t) => {
  const inner = new ManualTier();
  const tier = new LimitTier(inner, { concurrency: 2 });
  const ids = Array.from({ length: 6 }, (_, n) => `${n}`.repeat(64) as ChunkId);
  const classes = ['demand', 'demand', 'readahead', 'demand', 'prefetch', 'demand'] as const;
  const reads = ids.map((id, n) => tier.get(id, 1, contextOf(classes[n]!)));
  t.same(tier.stats(), { active: 2, queued: 4 });
  await tick();
  for (let n = 0; n < 6; n++) {
    inner.pending[n]?.answer();
    await tick();
    t.ok(tier.stats().active <= 2);
  }
  await Promise.all(reads);
  t.same(
    inner.pending.map(({ id }) => id[0]),
    ['0', '1', '3', '5', '2', '4'],
  );
});

t.test('limit: places are kept for demand', async (t) => {
  const inner = new ManualTier();
  const tier = new LimitTier(inner, { concurrency: 8, backgroundMax: 4, prefetchMax: 2 });
  const classes = ['prefetch', 'readahead'] as const;
  const reads = Array.from({ length: 16 }, (_, n) => tier.get(ID, 1, contextOf(classes[n % 2]!)));
  await tick();
  const active = (readClass: string) => inner.pending.filter(({ ctx }) => ctx.class === readClass).length;
  t.same([active('prefetch'), active('readahead')], [2, 2]);
  // From another drive, because one drive never gets all places.
  reads.push(...Array.from({ length: 6 }, () => tier.get(ID, 1, { ...demand(), drive: 'other' })));
  await tick();
  t.equal(active('demand'), 3, 'all remaining places except one, for the next drive');
  for (let n = 0; n < reads.length; n++) {
    inner.pending[n]?.answer();
    await tick();
  }
  await Promise.all(reads);
  t.same(tier.stats(), { active: 0, queued: 0 });
});

t.test('limit: a place is held until the loan is returned', async (t) => {
  const inner = new MapTier('origin');
  await inner.put(ID, Buffer.alloc(10));
  const tier = new LimitTier(inner, { concurrency: 1 });
  const first = await tier.get(ID, 10, demand());
  const second = tier.get(ID, 10, demand());
  await tick();
  t.same([inner.asked.length, inner.loans], [1, 1]);
  first?.release();
  (await second)?.release();
  t.equal(inner.loans, 0);
});

t.test('limit: when the queue is full the least urgent is refused', async (t) => {
  const inner = new ManualTier();
  const tier = new LimitTier(inner, { concurrency: 1, queueMax: 2 });
  const running = tier.get(ID, 1, demand());
  const readahead = tier.get(ID, 1, contextOf('readahead'));
  const first = tier.get(ID, 1, demand());
  const second = tier.get(ID, 1, demand());
  await t.rejects(readahead, { code: 'OVERLOAD' }, 'the readahead, although it came first');
  await t.rejects(tier.get(ID, 1, demand()), { code: 'OVERLOAD' });
  for (let n = 0; n < 3; n++) {
    inner.pending[n]?.answer();
    await tick();
  }
  await Promise.all([running, first, second]);
});

t.test('limit: a wait for a place ends at the deadline, and when it is cancelled', async (t) => {
  const inner = new ManualTier();
  const tier = new LimitTier(inner, { concurrency: 1 });
  const running = tier.get(ID, 1, demand());
  const controller = new AbortController();
  const cancelled = tier.get(ID, 1, demand(20_000, controller.signal));
  await t.rejects(tier.get(ID, 1, demand(15)), { code: 'TIMEOUT', message: /no place among 1 reads/ });
  controller.abort();
  await t.rejects(cancelled, { code: 'ABORTED' });
  t.same(tier.stats(), { active: 1, queued: 0 });
  inner.pending[0]?.answer();
  await running;
});

t.test('limit: a read that fails or misses frees its place', async (t) => {
  const inner = new FaultTier(new MapTier('origin'));
  const tier = new LimitTier(inner, { concurrency: 1 });
  inner.fault = { kind: 'error' };
  await t.rejects(tier.get(ID, 1, demand()), { code: 'UNAVAILABLE' });
  inner.fault = { kind: 'missing' };
  t.equal(await tier.get(ID, 1, demand()), undefined);
  t.same(tier.stats(), { active: 0, queued: 0 });
});

t.test('limit: a drive with a thousand slow reads delays no other', async (t) => {
  const inner = new ManualTier();
  const tier = new LimitTier(inner, { concurrency: 8 });
  const greedy = Array.from({ length: 1000 }, () => tier.get(ID, 1, { ...demand(), drive: 'greedy' }));
  await tick();
  t.same(tier.stats(), { active: 6, queued: 994 }, 'three quarters of the places');
  for (let n = 0; n < 50; n++) {
    const read = tier.get(ID, 1, { ...demand(), drive: 'modest' });
    await tick();
    const asked = inner.pending.find(({ ctx }) => ctx.drive === 'modest');
    t.ok(asked, 'asked at once, although nothing was answered');
    asked?.answer();
    inner.pending.splice(inner.pending.indexOf(asked!), 1);
    await read;
  }
  while (inner.pending.length > 0) {
    inner.pending.shift()?.answer();
    await tick();
  }
  await Promise.all(greedy);
});

t.test('limit: the place is freed when only others still need the bytes', async (t) => {
  const inner = new MapTier('origin');
  await inner.put(ID, Buffer.alloc(10));
  const tier = new LimitTier(inner, { concurrency: 1 });
  const first = await tier.get(ID, 10, demand());
  first?.freePlace?.();
  t.same(tier.stats(), { active: 0, queued: 0 });
  const second = await tier.get(ID, 10, demand());
  t.equal(inner.loans, 2, 'the bytes stay on loan');
  first?.release();
  t.same(tier.stats(), { active: 1, queued: 0 }, 'and the place is not freed twice');
  second?.release();
  t.equal(inner.loans, 0);
});
