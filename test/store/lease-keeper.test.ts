/** How a daemon tells the store what it has attached, in simulated time, while the store fails in every way. */
import t from 'tap';
import { LazydiskError } from '../../src/errors.ts';
import type { ImageDigest } from '../../src/format/image-digest.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { sealManifest } from '../../src/format/manifest-seal.ts';
import { LeaseKeeper, type LeaseStats } from '../../src/store/lease-keeper.ts';
import { LEASES_PREFIX, meaningOf, stateKey } from '../../src/store/roots/layout.ts';
import { RootStore } from '../../src/store/roots/root-store.ts';
import { sampleParts } from '../format/samples.ts';
import { HookedObjects, type RequestHook } from '../support/hooked-objects.ts';
import { SimObjects, SimStorage, Simulation } from '../support/sim-store.ts';

const DAY_MS = 24 * 60 * 60 * 1000;
const MINUTE_MS = 60_000;
const [a, b, c] = ['a', 'b', 'c'].map((digit) => `sha256:${digit.repeat(64)}` as ImageDigest) as [
  ImageDigest,
  ImageDigest,
  ImageDigest,
];

/** A keeper on a simulated store; `before` sees its requests first. */
async function newKeeper(before: RequestHook = () => {}) {
  const sim = new Simulation(1);
  const storage = new SimStorage();
  const user = new SimObjects(sim, storage, { latencyMs: 20, lagMs: 0 });
  const finish = async <T>(promise: Promise<T>): Promise<T> => {
    let isSettled = false;
    const settle = () => {
      isSettled = true;
    };
    promise.then(settle, settle);
    while (!isSettled) await sim.run(sim.nowMs + 10, () => undefined);
    return promise;
  };
  const { parts } = await finish(RootStore.open(user, { create: true, clock: user.clock }));
  const objects = new HookedObjects(user, before);
  const states: LeaseStats[] = [];
  const keeper = new LeaseKeeper(
    { ...parts, objects },
    { host: 'h', onChange: (stats) => states.push(stats) },
  );
  const pass = (ms: number) => sim.run(sim.nowMs + ms, () => undefined);
  /** The images that the store knows of, and the age of the youngest lease of each. */
  const stored = () => {
    const ages: Record<ImageDigest, number> = {};
    for (const [at, { modifiedMs }] of storage.objects) {
      const meaning = meaningOf(at);
      if (meaning?.kind !== 'lease') continue;
      ages[meaning.image] = Math.min(sim.nowMs - modifiedMs, ages[meaning.image] ?? Number.POSITIVE_INFINITY);
    }
    return ages;
  };
  return { sim, storage, parts, finish, keeper, states, pass, stored };
}

t.test('the store is told at once, and again well within the retention, of each image once', async (t) => {
  let puts = 0;
  const { keeper, stored, pass, states, storage } = await newKeeper((request) => {
    if (request === 'put') puts++;
  });
  t.match(keeper.stats(), { state: 'none', images: 0, expiresInMs: null });
  keeper.add(a);
  keeper.add(a);
  keeper.add(b);
  await pass(1_000);
  t.same(Object.keys(stored()).sort(), [a, b]);
  t.equal(puts, 2);
  for (let day = 1; day <= 30; day++) {
    await pass(DAY_MS);
    for (const ageMs of Object.values(stored())) t.ok(ageMs < (7 * DAY_MS) / 8 + MINUTE_MS);
  }
  t.ok(puts < 2 * 36, `${puts} writes in a month`);
  t.equal([...storage.objects.keys()].filter((at) => at.startsWith(LEASES_PREFIX)).length, 2);
  t.match(keeper.stats(), { state: 'held', images: 2, unleased: 0, problem: null });
  keeper.release(a);
  keeper.release(b);
  await pass(2 * DAY_MS);
  t.ok(stored()[a]! < DAY_MS, 'one is attached still');
  t.ok(stored()[b]! > DAY_MS);
  keeper.release(a);
  puts = 0;
  await pass(30 * DAY_MS);
  t.equal(puts, 0, 'of nothing the store is told nothing');
  keeper.add(c);
  await pass(1_000);
  t.ok(stored()[c]! < MINUTE_MS);
  t.same(
    states.map(({ state }) => state),
    ['held', 'none', 'held'],
  );
});

t.test('an image that is attached again and again is one write', async (t) => {
  let puts = 0;
  const { keeper, pass } = await newKeeper((request) => {
    if (request === 'put') puts++;
  });
  for (let n = 0; n < 1000; n++) {
    keeper.add(a);
    await pass(1_000);
    keeper.release(a);
  }
  t.equal(puts, 1);
});

t.test('a lease that a purge may be taking away is not written again, but anew', async (t) => {
  const { keeper, stored, pass, storage, parts, finish } = await newKeeper();
  const leases = () => [...storage.objects.keys()].filter((at) => at.startsWith(LEASES_PREFIX));
  keeper.add(a);
  await pass(1_000);
  keeper.release(a);
  const [first] = leases();
  await pass(8 * DAY_MS);
  keeper.add(a);
  await pass(1_000);
  await finish(parts.objects.delete([first!]));
  t.ok(stored()[a]! < MINUTE_MS);
  t.not(leases()[0], first);
});

t.test('leases that were over before they could be renewed are written anew', async (t) => {
  let isAway = false;
  const { keeper, stored, pass, storage, parts, finish } = await newKeeper((request) => {
    if (isAway && request === 'put') throw new LazydiskError('UNAVAILABLE', '503 SlowDown');
  });
  keeper.add(a);
  await pass(1_000);
  const first = [...storage.objects.keys()].find((at) => at.startsWith(LEASES_PREFIX))!;
  isAway = true;
  await pass(7 * DAY_MS + MINUTE_MS);
  isAway = false;
  await pass(2 * MINUTE_MS);
  await finish(parts.objects.delete([first]));
  t.ok(stored()[a]! < 2 * MINUTE_MS);
  t.match(keeper.stats(), { state: 'held', unleased: 0 });
});

t.test(
  'a store that cannot be told is an alarm in a moment for what is new, in days for what is known',
  async (t) => {
    let isAway = false;
    const { keeper, stored, pass, states } = await newKeeper((request) => {
      if (isAway && request === 'put') throw new LazydiskError('UNAVAILABLE', '503 SlowDown');
    });
    keeper.add(a);
    await pass(1_000);
    isAway = true;
    await pass(DAY_MS);
    t.match(keeper.stats(), { state: 'held', unleased: 0, problem: '503 SlowDown' });
    await pass(DAY_MS);
    t.match(states.at(-1), { state: 'late', unleased: 0 });
    t.ok(states.at(-1)!.expiresInMs! > 5 * DAY_MS, 'long before anything is deleted');
    isAway = false;
    await pass(2 * MINUTE_MS);
    t.match(states.at(-1), { state: 'held', problem: null });
    isAway = true;
    keeper.add(b);
    await pass(1_000);
    t.match(states.at(-1), { state: 'late', images: 2, unleased: 1 });
    await pass(10 * DAY_MS);
    t.match(keeper.stats(), { state: 'late', unleased: 2, expiresInMs: 0 }, 'by now it is too late');
    isAway = false;
    await pass(2 * MINUTE_MS);
    t.match(keeper.stats(), { state: 'held', unleased: 0 });
    t.same(Object.keys(stored()).sort(), [a, b]);
  },
);

t.test('a store that is only read is said to be so, and asked no more than now and then', async (t) => {
  let puts = 0;
  let isRefused = true;
  const { keeper, pass, states, finish } = await newKeeper((request) => {
    if (request !== 'put') return;
    puts++;
    if (isRefused) throw new LazydiskError('UNAVAILABLE', 'access denied to PutObject', { retryable: false });
  });
  await finish(keeper.hold(a));
  t.match(states.at(-1), { state: 'read-only', images: 1, unleased: 1, problem: /access denied/ });
  await finish(keeper.hold(b));
  await pass(60 * MINUTE_MS);
  t.ok(puts < 80, `${puts} writes in an hour`);
  isRefused = false;
  await pass(2 * MINUTE_MS);
  t.match(states.at(-1), { state: 'held', unleased: 0 }, 'until somebody changes that');
});

t.test(
  'an image that is asked for by its digest is leased before it is attached, or not attached',
  async (t) => {
    let isAway = true;
    const { keeper, storage, parts, stored, finish, sim } = await newKeeper((request) => {
      if (isAway && request === 'put') throw new LazydiskError('UNAVAILABLE', '503 SlowDown');
    });
    await t.rejects(finish(keeper.hold(a)), {
      code: 'UNAVAILABLE',
      message: /cannot be told that image .* 503/,
    });
    t.equal(keeper.stats().images, 0);
    isAway = false;
    await t.rejects(finish(keeper.hold(a)), { code: 'NOT_FOUND', message: /no image sha256:a/ });

    const key = TenantKey.generate();
    const { digest, bytes } = sealManifest(sampleParts(key));
    const put = (area: string) =>
      storage.set(
        `${area}/manifests/sha256/${digest.slice('sha256:'.length)}/${key.id}`,
        bytes,
        sim.nowMs,
        0,
      );
    storage.set(stateKey('trash/1-a', 'opened'), Buffer.alloc(0), sim.nowMs, 0);
    put('trash/1-a');
    await t.rejects(finish(keeper.hold(digest)), {
      code: 'NOT_FOUND',
      message: /put aside.*lazydisk tag sha256:/,
    });
    put('roots/1');
    await finish(keeper.hold(digest));
    t.ok(stored()[digest] !== undefined);
    keeper.release(digest);

    storage.set(stateKey('roots/2', 'opened'), Buffer.alloc(0), sim.nowMs, 0);
    storage.set(stateKey('roots/1', 'retired'), Buffer.alloc(0), sim.nowMs, 0);
    await finish(keeper.hold(digest));
    keeper.release(digest);
    storage.set(stateKey('roots/1', 'deleting'), Buffer.alloc(0), sim.nowMs, 0);
    await t.rejects(finish(keeper.hold(digest)), { code: 'NOT_FOUND' }, 'its root is going');
    t.equal(keeper.stats().images, 0);
    t.equal(parts.policy.settleMs, MINUTE_MS);
  },
);

t.test('a daemon that stops waits for no store, and its leases run out', async (t) => {
  const { keeper, stored, pass, finish } = await newKeeper();
  keeper.add(a);
  await pass(1_000);
  await finish(keeper.close());
  await pass(8 * DAY_MS);
  t.ok(stored()[a]! > 7 * DAY_MS);
  const other = await newKeeper((request) => (request === 'put' ? new Promise<void>(() => {}) : undefined));
  other.keeper.add(a);
  await other.pass(1_000);
  await other.finish(other.keeper.close());
  t.same(other.stored(), {});
});
