/** Retries: when a failed call is tried again, and how often. */
import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import fc from 'fast-check';
import t from 'tap';
import { Backoff, type Pauses, pauseAfterMs, pausesTotalMs, retrying } from '../../src/async/backoff.ts';
import { LazydiskError } from '../../src/errors.ts';

const NONE: Pauses = { firstMs: 0, longestMs: 0 };
const LONG: Pauses = { firstMs: 60_000, longestMs: 60_000 };
const away = () => new LazydiskError('UNAVAILABLE', 'away');

/** Fails `failures` times with `error`. */
function failing(failures: number, error: () => Error = away) {
  const state = { calls: 0 };
  const attempt = async () => {
    if (state.calls++ < failures) throw error();
    return 'done';
  };
  return { state, attempt };
}

t.test('property: pauses double up to the longest one, and their total is their sum', async (t) => {
  const pauses = fc.record({ firstMs: fc.nat(1_000), longestMs: fc.nat(10_000) });
  fc.assert(
    fc.property(pauses, fc.integer({ min: 1, max: 40 }), (pauses, tries) => {
      let totalMs = 0;
      let expectedMs = pauses.firstMs;
      for (let failures = 1; failures < tries; failures++) {
        const pauseMs = pauseAfterMs(failures, pauses);
        assert.equal(pauseMs, Math.min(expectedMs, pauses.longestMs));
        totalMs += pauseMs;
        expectedMs *= 2;
      }
      assert.equal(pausesTotalMs(tries, pauses), totalMs);
    }),
  );
  t.pass();
});

t.test(
  'property: a call is retried until it succeeds, within limits, and only if that can help',
  async (t) => {
    const world = fc.record({
      tries: fc.integer({ min: 1, max: 6 }),
      failures: fc.nat(8),
      retryable: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(world, async ({ tries, failures, retryable }) => {
        const { state, attempt } = failing(
          failures,
          () => new LazydiskError('UNAVAILABLE', 'no', { retryable }),
        );
        const result = await retrying({ tries, pauses: NONE }, attempt).catch(
          (error: LazydiskError) => error,
        );
        const callsMax = retryable ? tries : 1;
        assert.equal(state.calls, Math.min(failures + 1, callsMax));
        if (failures < callsMax) return assert.equal(result, 'done');
        assert.ok(result instanceof LazydiskError && result.retryable === retryable);
        assert.equal(result.message, callsMax > 1 ? `no (tried ${callsMax} times)` : 'no');
      }),
    );
    t.pass();
  },
);

t.test('patience outlasts the number of tries, and ends with the last try', async (t) => {
  const patient = failing(50);
  t.equal(await retrying({ tries: 1, pauses: NONE, patienceMs: 60_000 }, patient.attempt), 'done');
  t.equal(patient.state.calls, 51);
  const short = failing(Number.POSITIVE_INFINITY);
  const options = { tries: 2, pauses: { firstMs: 1, longestMs: 1 }, patienceMs: 20 };
  await t.rejects(retrying(options, short.attempt), { code: 'UNAVAILABLE', message: /tried \d+ times/ });
  t.ok(short.state.calls >= 2);
});

t.test('no pause goes beyond the deadline, which is read again after each failure', async (t) => {
  const { state, attempt } = failing(Number.POSITIVE_INFINITY);
  const deadline = () => (state.calls < 3 ? Number.POSITIVE_INFINITY : 0);
  await t.rejects(retrying({ tries: 100, pauses: NONE, deadline }, attempt), {
    message: 'away (tried 3 times)',
  });
});

t.test(
  'a cancelled wait ends at once, names the error that it waited for, and leaves no listener',
  async (t) => {
    const controller = new AbortController();
    const { signal } = controller;
    const { state, attempt } = failing(Number.POSITIVE_INFINITY);
    const waiting = retrying({ tries: 100, pauses: LONG, signal }, attempt);
    await new Promise(setImmediate);
    controller.abort();
    await t.rejects(waiting, { code: 'ABORTED', message: 'away (cancelled after 1 tries)' });
    t.equal(getEventListeners(signal, 'abort').length, 0);
    await t.rejects(retrying({ tries: 100, pauses: LONG, signal }, attempt), { code: 'ABORTED' });
    t.equal(state.calls, 2, 'a call that is already cancelled does not wait');
    const denied = new LazydiskError('KEY', 'the wrong key');
    await t.rejects(
      retrying({ tries: 100, pauses: LONG, signal }, () => Promise.reject(denied)),
      denied,
    );
  },
);

t.test('the caller is told of each wait before it begins, and of no other', async (t) => {
  const backoff = new Backoff({ tries: 2, pauses: NONE });
  let told = 0;
  const tell = () => told++;
  await backoff.failed(away(), tell);
  await t.rejects(backoff.failed(away(), tell), { message: 'away (tried 2 times)' });
  t.equal(told, 1);
});

t.test('an error that is not a LazydiskError is retried, and becomes UNAVAILABLE in the end', async (t) => {
  const { state, attempt } = failing(9, () => new Error('ECONNRESET'));
  await t.rejects(retrying({ tries: 3, pauses: NONE }, attempt), {
    code: 'UNAVAILABLE',
    message: 'ECONNRESET (tried 3 times)',
  });
  t.equal(state.calls, 3);
});

t.test('a server that says when to retry is not asked earlier', async (t) => {
  const later = () => new LazydiskError('OVERLOAD', 'busy', { retryAfterMs: 60 });
  const { attempt } = failing(1, later);
  const sinceMs = performance.now();
  t.equal(await retrying({ tries: 2, pauses: { firstMs: 0, longestMs: 100 } }, attempt), 'done');
  // Timers may fire a fraction of a millisecond early.
  t.ok(performance.now() - sinceMs > 58);
});

t.test('a longer wait than patience and pauses allow is refused at once', async (t) => {
  const later = () => new LazydiskError('OVERLOAD', 'busy', { retryAfterMs: 3_600_000 });
  for (const patienceMs of [0, 60_000]) {
    const { state, attempt } = failing(1, later);
    await t.rejects(retrying({ tries: 5, pauses: NONE, patienceMs }, attempt), { message: 'busy' });
    t.equal(state.calls, 1);
  }
});
