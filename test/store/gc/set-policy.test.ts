/** Changing the store's times: whoever opens the store next uses them, and the journal records the change. */
import { join } from 'node:path';
import t from 'tap';
import { lastEntries } from '../../../src/store/gc/journal.ts';
import { setPolicy } from '../../../src/store/gc/set-policy.ts';
import { DEFAULT_POLICY } from '../../../src/store/roots/policy.ts';
import { openDirStore } from '../../support/dir-store.ts';

t.test('the next to open the store has the new times, and the others as they were', async (t) => {
  const dir = join(t.testdir(), 'store');
  const store = await openDirStore(dir);
  t.teardown(() => store.close());
  const graceMs = DEFAULT_POLICY.graceMs * 2;
  t.same(await setPolicy(store.parts, { graceMs }), { ...DEFAULT_POLICY, graceMs });
  t.same(store.parts.policy, DEFAULT_POLICY, 'a process keeps the times that it began with');
  const next = await openDirStore(dir);
  t.teardown(() => next.close());
  t.same(next.parts.policy, { ...DEFAULT_POLICY, graceMs });
  t.match(await lastEntries(store.parts.objects, 10), [
    { command: 'policy', state: 'done', details: { graceMs } },
  ]);
});

t.test('times that would not make deletion safe change nothing', async (t) => {
  const dir = join(t.testdir(), 'store');
  const store = await openDirStore(dir);
  t.teardown(() => store.close());
  await t.rejects(setPolicy(store.parts, { graceMs: DEFAULT_POLICY.buildMs }), { code: 'USAGE' });
  const next = await openDirStore(dir);
  t.teardown(() => next.close());
  t.same(next.parts.policy, DEFAULT_POLICY);
  t.same(await lastEntries(store.parts.objects, 10), []);
});
