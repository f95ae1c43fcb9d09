/** Garbage collection against the model: whatever interleaves, nothing that is named or attached is lost. */
import fc from 'fast-check';
import t from 'tap';
import type { StorePolicy } from '../../../src/store/policy.ts';
import { Model } from './model.ts';

/** Runs of the model; more of them with LAZYDISK_MODEL_RUNS, for a change to what it checks. */
const RUNS = Number(process.env.LAZYDISK_MODEL_RUNS ?? 25);

t.test('no interleaving of builds, tags, removals, drives and collectors loses anything', async (t) => {
  const totals: Record<string, number> = {};
  await fc.assert(
    fc.asyncProperty(fc.integer(), fc.boolean(), async (seed, compareAndSet) => {
      const { faults, done } = await new Model({ seed, compareAndSet }).run();
      for (const [what, count] of Object.entries(done)) totals[what] = (totals[what] ?? 0) + count;
      if (faults.length > 0) throw new Error(`seed ${seed}: ${faults.slice(0, 5).join('\n')}`);
    }),
    // In the example an image comes over with more manifests than can be copied in one settle time.
    { numRuns: RUNS, endOnFailure: true, examples: [[100_003, false]] },
  );
  t.comment(JSON.stringify(totals));
  for (const what of ['build', 'tag', 'remove', 'rotate', 'sweep', 'purge', 'attach'])
    t.ok(totals[`${what} done`]! >= RUNS, `${what} came to its end`);
  for (const what of ['rotate with movedChunks', 'sweep with sweptChunks', 'sweep with restoredObjects'])
    t.ok(totals[what]! > 0, what);
  t.ok(totals['purge with deletedObjects']! > 0, 'purge with deletedObjects');
});

/** Rules that are broken on purpose, to see that the model would notice. */
const BROKEN: Record<string, Partial<StorePolicy>> = {
  'collectors that wait neither for grace nor retention': { graceMs: 1, retentionMs: 1 },
  'a rotation that does not wait for listings to settle': { settleMs: 0 },
};

for (const [rule, policy] of Object.entries(BROKEN)) {
  t.test(`the model finds ${rule}`, async (t) => {
    const isFound = async (seed: number) => {
      const bend = {
        bend: <P extends { policy: StorePolicy }>(parts: P) => ({
          ...parts,
          policy: { ...parts.policy, ...policy },
        }),
      };
      return (await new Model({ seed, ...bend }).run()).faults.length > 0;
    };
    let seed = 1;
    while (seed < 60 && !(await isFound(seed))) seed++;
    t.ok(seed < 60, `in run ${seed}`);
  });
}
