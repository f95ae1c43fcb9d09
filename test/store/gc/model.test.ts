/** Garbage collection against the model: whatever interleaves, nothing that is named or attached is lost. */
import fc from 'fast-check';
import t from 'tap';
import { Model } from './model.ts';

const RUNS = Number(process.env.LAZYDISK_MODEL_RUNS ?? 40);

t.test('no interleaving of builds, tags, removals, drives and collectors loses anything', async (t) => {
  const totals: Record<string, number> = {};
  await fc.assert(
    fc.asyncProperty(fc.integer(), fc.boolean(), async (seed, compareAndSet) => {
      const { faults, done } = await new Model({ seed, compareAndSet }).run();
      for (const [what, count] of Object.entries(done)) totals[what] = (totals[what] ?? 0) + count;
      if (faults.length > 0) throw new Error(`seed ${seed}: ${faults.slice(0, 5).join('\n')}`);
    }),
    { numRuns: RUNS, endOnFailure: true },
  );
  t.comment(JSON.stringify(totals));
  for (const what of ['build', 'tag', 'remove', 'rotate', 'sweep', 'purge', 'attach'])
    t.ok(totals[`${what} done`]! >= RUNS, `${what} came to its end`);
});
