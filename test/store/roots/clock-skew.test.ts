/** How far the store's clock and this host's differ, and when that is reported. */
import t from 'tap';
import { clockSkewMs, skewProblem } from '../../../src/store/roots/clock-skew.ts';
import type { StoreParts } from '../../../src/store/roots/parts.ts';
import { DEFAULT_POLICY } from '../../../src/store/roots/policy.ts';
import { withCalls } from '../../support/fsck-store.ts';
import { MapObjects } from '../../support/map-objects.ts';

const HOUR_MS = 60 * 60 * 1000;

/** A store whose clock returns `toldMs` of the correct time. */
function storeAt(toldMs: (nowMs: number) => number) {
  return withCalls(new MapObjects(), { nowMs: async () => toldMs(Date.now()) });
}

t.test('a store that tells whole seconds of the right time is not off', async (t) => {
  for (let asked = 0; asked < 20; asked++)
    t.equal(await clockSkewMs(storeAt((nowMs) => Math.floor(nowMs / 1000) * 1000)), 0);
  t.equal(await clockSkewMs(storeAt((nowMs) => nowMs)), 0);
});

t.test('the time that the question takes is not held against the store', async (t) => {
  const slow = withCalls(new MapObjects(), {
    nowMs: async () => {
      const toldMs = Date.now();
      while (Date.now() < toldMs + 20) await new Promise(setImmediate);
      return toldMs;
    },
  });
  t.equal(await clockSkewMs(slow), 0);
});

t.test('a clock that is off is off by that, whichever way', async (t) => {
  const aheadMs = await clockSkewMs(storeAt((nowMs) => nowMs + HOUR_MS));
  t.ok(aheadMs <= HOUR_MS && aheadMs > HOUR_MS / 2);
  const behindMs = await clockSkewMs(storeAt((nowMs) => nowMs - HOUR_MS));
  t.ok(behindMs < -HOUR_MS / 2 && behindMs > -HOUR_MS);
});

t.test('what is more than the settle time is said, with both clocks and the way it is off', async (t) => {
  const { url } = new MapObjects();
  const parts = { objects: { url }, policy: DEFAULT_POLICY } as StoreParts;
  for (const skewMs of [0, DEFAULT_POLICY.settleMs, -DEFAULT_POLICY.settleMs])
    t.equal(skewProblem(skewMs, parts), null);
  t.equal(
    skewProblem(DEFAULT_POLICY.settleMs + 1, parts),
    `the clock of ${url} is 60 s ahead of this host's, more than the settle time of 60 s: set the clock that is wrong`,
  );
  t.match(skewProblem(-HOUR_MS, parts), /is 1 h 0 min behind this host's/);
});
