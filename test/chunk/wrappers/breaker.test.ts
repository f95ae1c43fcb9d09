import fc from 'fast-check';
import t from 'tap';
import type { ChunkTier } from '../../../src/chunk/tier.ts';
import { BREAKER_DEFAULTS, BreakerTier } from '../../../src/chunk/wrappers/breaker.ts';
import { RetryTier } from '../../../src/chunk/wrappers/retry.ts';
import { LazydiskError } from '../../../src/errors.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import { demand, FaultTier, MapTier, makeImage } from '../../support/tiers.ts';
import { tierSuite } from '../tier-suite.ts';

t.test('it fulfils the contract of a tier', async (t) => {
  tierSuite(t, async () => ({ tier: new BreakerTier(new MapTier('origin')) }));
});

const idOf = (n: number) => n.toString(16).padStart(64, '0') as ChunkId;

async function setUp() {
  const { chunks } = await makeImage('a');
  const { sealed } = chunks[0]!;
  const map = new MapTier('origin', chunks);
  const fault = new FaultTier(map);
  const clock = { nowMs: 0 };
  const breaker = new BreakerTier(
    fault,
    {},
    () => clock.nowMs,
    () => 0.5,
  );
  let asked = 0;
  /** Reads a new object unless an id is given. */
  const read = async (drive = 'web', id = idOf(++asked)) =>
    (await breaker.get(id, sealed.length, { ...demand(), drive }))?.release();
  const fail = (drive?: string, id?: ChunkId) =>
    read(drive, id).then(
      () => 'ok',
      (error: LazydiskError) => error,
    );
  const open = async (drive?: string) => {
    for (let n = 0; n < BREAKER_DEFAULTS.failuresInRow; n++) await fail(drive);
  };
  return { map, fault, clock, breaker, read, fail, open };
}

t.test(
  'it opens after consecutive failures, names the cause in refusals, and closes after one good probe',
  async (t) => {
    const { map, fault, clock, breaker, read, fail } = await setUp();
    fault.fault = { kind: 'error', error: new LazydiskError('UNAVAILABLE', 'the store burns') };
    for (let n = 0; n < BREAKER_DEFAULTS.failuresInRow; n++)
      t.match(await fail(), { message: 'the store burns' });
    t.match(breaker.stats(), { state: 'open', opened: 1, refused: 0 });
    t.match(await fail(), {
      code: 'UNAVAILABLE',
      message: /^origin: not asked, it has failed since 20.*the store burns/,
    });
    t.equal(breaker.stats().refused, 1);

    fault.fault = undefined;
    const asked = map.asked.length;
    t.match(await fail(), { code: 'UNAVAILABLE' }, 'healthy again, but not probed yet');
    t.equal(map.asked.length, asked);
    clock.nowMs += BREAKER_DEFAULTS.probeMinMs * 1.5;
    await read();
    t.match(breaker.stats(), { state: 'closed' });
    await read();
    t.equal(map.asked.length, asked + 2);
  },
);

t.test('while it is half-open, one read is let through, and its failure keeps it open', async (t) => {
  const { fault, clock, breaker, fail, open } = await setUp();
  fault.fault = { kind: 'error' };
  await open();
  clock.nowMs += BREAKER_DEFAULTS.probeMinMs * 1.5;
  fault.fault = { kind: 'slow', delayMs: 30 };
  const probe = fail();
  t.equal(breaker.stats().state, 'half-open');
  t.match(await fail(), { message: /not asked/ });
  t.equal(await probe, 'ok');
  t.equal(breaker.stats().state, 'closed');
});

t.test('a refusal is not retried', async (t) => {
  const { map, fault, breaker, read, open } = await setUp();
  fault.fault = { kind: 'error' };
  await open();
  const asked = map.asked.length;
  const retry = new RetryTier(breaker, { tries: 5, tryTimeoutMs: 1_000 });
  const ctx = { ...demand(), drive: 'web' };
  await t.rejects(retry.get('00' as never, 1, ctx), { code: 'UNAVAILABLE', message: /not asked/ });
  t.equal(breaker.stats().refused, 1);
  t.equal(map.asked.length, asked);
  await t.rejects(read());
});

t.test('misses are answers, and cancelled reads say nothing about the tier', async (t) => {
  const { fault, breaker, fail } = await setUp();
  fault.fault = { kind: 'missing' };
  for (let n = 0; n < 50; n++) t.equal(await fail(), 'ok');
  for (const code of ['ABORTED', 'OVERLOAD', 'NOT_FOUND'] as const) {
    fault.fault = { kind: 'error', error: new LazydiskError(code, 'not of the tier') };
    for (let n = 0; n < 50; n++) await fail();
  }
  t.match(breaker.stats(), { state: 'closed', opened: 0 });
});

t.test(
  'property: whatever failed before, a healthy tier is asked within the longest probe interval',
  async (t) => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.record({ fails: fc.boolean(), waitMs: fc.integer({ min: 0, max: 3_000 }) }), {
          maxLength: 60,
        }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.integer({ min: 1, max: 20 }),
        async (steps, random, objects) => {
          const clock = { nowMs: 0 };
          let fails = false;
          const inner: ChunkTier = {
            name: 'origin',
            put: async () => false,
            discard() {},
            close: async () => {},
            get: async () => {
              if (fails) throw new LazydiskError('TIMEOUT', 'slow');
              return undefined;
            },
          };
          const breaker = new BreakerTier(
            inner,
            {},
            () => clock.nowMs,
            () => random,
          );
          let asked = 0;
          const ask = () =>
            breaker.get(idOf(asked++ % objects), 1, demand()).then(
              () => true,
              () => false,
            );
          for (const step of steps) {
            fails = step.fails;
            clock.nowMs += step.waitMs;
            await ask();
          }
          fails = false;
          clock.nowMs += BREAKER_DEFAULTS.probeMaxMs * 1.25 + 1;
          return ask();
        },
      ),
    );
    t.pass();
  },
);

t.test('reads that arrived with no time left do not open it', async (t) => {
  const late = new LazydiskError('TIMEOUT', 'late');
  const origin = new FaultTier(new MapTier('origin'), { kind: 'error', error: late });
  const breaker = new BreakerTier(origin);
  for (let n = 0; n < 50; n++) await t.rejects(breaker.get(idOf(n), 100, demand(5)), { code: 'TIMEOUT' });
  t.equal(breaker.stats().state, 'closed');
  for (let n = 0; n < 50; n++) await t.rejects(breaker.get(idOf(n), 100, demand()));
  t.equal(breaker.stats().state, 'open');
});

t.test('an object that cannot be read does not open it, however often it is asked for', async (t) => {
  const { fault, clock, breaker, fail } = await setUp();
  const bad = idOf(0xbad);
  fault.fault = (id) => (id === bad ? { kind: 'error' } : undefined);
  for (let n = 0; n < 500; n++) {
    t.match(await fail('sick', bad), { message: /made to fail/ });
    clock.nowMs += 20;
    if (n % 100 === 0) t.equal(await fail('sick'), 'ok', 'its other objects are read');
  }
  t.match(breaker.stats(), { state: 'closed', opened: 0, refused: 0 });
});

t.test('a drive whose objects are all bad is refused alone', async (t) => {
  const { fault, clock, breaker, fail, open } = await setUp();
  const bad = new Set<ChunkId>();
  fault.fault = (id) => (id.startsWith('0') || bad.has(id) ? { kind: 'error' } : undefined);
  await open('sick');
  t.match(await fail('sick'), { message: /not asked/ });
  for (let n = 0; n < 200; n++) {
    clock.nowMs += 25;
    await fail('sick');
    t.equal(await fail('well', `a${idOf(n).slice(1)}` as ChunkId), 'ok');
  }
  t.match(breaker.stats(), { state: 'closed', opened: 1 }, 'the tier is healthy, as another drive shows');
});

t.test('an object that is known to be bad is not used as a probe', async (t) => {
  const { fault, map, clock, breaker, fail, open } = await setUp();
  const bad = idOf(0xbad);
  fault.fault = { kind: 'error' };
  await fail('web', bad);
  await open('web');
  clock.nowMs += BREAKER_DEFAULTS.probeMinMs * 1.5;
  fault.fault = (id) => (id === bad ? { kind: 'error' } : undefined);
  t.match(await fail('web', bad), { message: /not asked/ }, 'it would only fail again');
  t.equal(map.asked.length, 0);
  t.equal(await fail('web'), 'ok', 'another object is the probe');
  t.equal(breaker.stats().state, 'closed');
});

t.test('the success of one drive lets all others probe at once', async (t) => {
  const { fault, clock, breaker, fail, open } = await setUp();
  fault.fault = { kind: 'error' };
  for (const drive of ['a', 'b']) await open(drive);
  t.equal(breaker.stats().state, 'open');
  fault.fault = undefined;
  clock.nowMs += BREAKER_DEFAULTS.probeMinMs * 0.5;
  t.match(await fail('a'), { message: /not asked/ });
  t.equal(await fail('c'), 'ok', 'a drive without failures is let through');
  t.equal(await fail('a'), 'ok');
  t.equal(await fail('b'), 'ok');
});
