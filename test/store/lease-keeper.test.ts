/** How a daemon keeps the store told of what it has attached, in simulated time, while the store fails it in every way. */

import fc from 'fast-check';
import t from 'tap';
import { LazydiskError } from '../../src/errors.ts';
import type { ImageDigest } from '../../src/format/image-digest.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { sealManifest } from '../../src/format/manifest-seal.ts';
import { LeaseKeeper, type LeaseStats, leaseHost } from '../../src/store/lease-keeper.ts';
import { encodeLease, LEASED_IMAGES_MAX, parseLease } from '../../src/store/leases.ts';
import { leaseKey, stateKey } from '../../src/store/roots/layout.ts';
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

/** A keeper on a simulated store, whose requests `before` sees first. */
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
  const stored = () => {
    const found = storage.objects.get(leaseKey('h'));
    return found && { images: parseLease(found.bytes, 'h'), ageMs: sim.nowMs - found.modifiedMs };
  };
  return { sim, storage, parts, finish, keeper, states, pass, stored };
}

t.test('a lease comes back as it was written, and nothing else is one', async (t) => {
  const digest = fc
    .uint8Array({ minLength: 32, maxLength: 32 })
    .map((bytes): ImageDigest => `sha256:${Buffer.from(bytes).toString('hex')}`);
  fc.assert(
    fc.property(fc.uniqueArray(digest), (images) => {
      t.same(parseLease(encodeLease(images), 'x'), [...images].sort());
    }),
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.json().map((text) => Buffer.from(text)),
        fc.uint8Array().map((bytes) => Buffer.from(bytes)),
      ),
      (bytes) => {
        t.throws(() => parseLease(bytes, 'state'), { code: 'CORRUPT', message: /^state is no lease/ });
      },
    ),
  );
  const largest = Array.from(
    { length: LEASED_IMAGES_MAX },
    (_, n) => `sha256:${n.toString(16).padStart(64, '0')}` as ImageDigest,
  );
  t.equal(parseLease(encodeLease(largest), 'x').length, LEASED_IMAGES_MAX);
  t.throws(() => parseLease(encodeLease([...largest, a]), 'x'), {
    code: 'CORRUPT',
    message: /over 16384 images/,
  });
});

t.test('the store is told at once, and again well within the retention, of each image once', async (t) => {
  const { keeper, stored, pass, states } = await newKeeper();
  t.match(keeper.stats(), { state: 'none', images: 0, expiresInMs: null });
  keeper.add(a);
  keeper.add(a);
  keeper.add(b);
  await pass(1_000);
  t.match(stored(), { images: [a, b] });
  for (let day = 1; day <= 30; day++) {
    await pass(DAY_MS);
    t.ok(stored()!.ageMs < DAY_MS / 12);
  }
  t.match(keeper.stats(), { state: 'held', images: 2, unleased: 0, problem: null });
  keeper.release(a);
  keeper.release(b);
  await pass(DAY_MS);
  t.match(stored(), { images: [a] }, 'one is attached still');
  keeper.release(a);
  await pass(DAY_MS);
  t.match(stored(), { images: [] });
  const { ageMs } = stored()!;
  await pass(DAY_MS);
  t.equal(stored()!.ageMs, ageMs + DAY_MS, 'of nothing the store is told once');
  keeper.add(c);
  await pass(1_000);
  t.match(stored(), { images: [c] });
  t.same(
    states.map(({ state }) => state),
    ['held', 'none', 'held'],
  );
});

t.test('a thousand attaches are a few writes', async (t) => {
  let puts = 0;
  const { keeper, stored, pass } = await newKeeper((request) => {
    if (request === 'put') puts++;
  });
  for (let n = 0; n < 1000; n++) {
    keeper.add(`sha256:${n.toString(16).padStart(64, '0')}`);
    await pass(1);
  }
  await pass(1_000);
  t.equal(stored()!.images.length, 1000);
  t.ok(puts < 200, `${puts} writes`);
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
    t.match(stored(), { images: [a, b] });
  },
);

t.test('a write that was given up and comes late does not have the last word', async (t) => {
  let late: (() => void) | undefined;
  const { keeper, parts, stored, pass, finish } = await newKeeper(async (request, [at]) => {
    if (request !== 'put' || late) return;
    late = () => void parts.objects.put(at!, encodeLease([a]));
    throw new LazydiskError('TIMEOUT', 'no answer');
  });
  keeper.add(a);
  await pass(100);
  keeper.add(b);
  await pass(1_000);
  t.match(stored(), { images: [a, b] });
  late!();
  await pass(100);
  t.match(stored(), { images: [a] });
  await pass(parts.policy.settleMs + 1_000);
  t.match(stored(), { images: [a, b] });
  await finish(keeper.close());
});

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
    t.ok(stored()!.images.includes(digest));
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

t.test('a daemon that stops lets go of what it had', async (t) => {
  const { keeper, stored, pass, finish } = await newKeeper();
  keeper.add(a);
  await pass(1_000);
  await finish(keeper.close());
  t.match(stored(), { images: [] });
  const other = await newKeeper((request) => (request === 'put' ? new Promise<void>(() => {}) : undefined));
  other.keeper.add(a);
  await other.pass(1_000);
  await other.finish(other.keeper.close());
  t.equal(other.stored(), undefined, 'and does not wait for a store that hangs');
});

t.test('each daemon has a name of its own, which it has again after a restart', async (t) => {
  const host = await leaseHost('/run/lazydisk');
  t.match(leaseKey(host), /^hosts\/leases\/[A-Za-z0-9_-].*-[0-9a-f]{16}$/);
  t.equal(await leaseHost('/run/lazydisk'), host);
  t.not(await leaseHost('/run/other'), host);
});
