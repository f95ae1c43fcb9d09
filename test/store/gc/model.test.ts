/** Garbage collection against the model: whatever the interleaving, nothing that is named or attached is lost. */
import fc from 'fast-check';
import t from 'tap';
import type { ListOptions, ObjectInfo, ObjectOptions } from '../../../src/store/objects/object-store.ts';
import type { StoreParts } from '../../../src/store/roots/parts.ts';
import { HookedObjects } from '../../support/hooked-objects.ts';
import { Model } from './model.ts';

/** Runs of the model. Raise it with LAZYDISK_MODEL_RUNS after a change to what the model checks. */
const RUNS = Number(process.env.LAZYDISK_MODEL_RUNS ?? 25);

t.test('no interleaving of builds, tags, removals, drives and collectors loses anything', async (t) => {
  const totals: Record<string, number> = {};
  await fc.assert(
    fc.asyncProperty(fc.integer(), fc.boolean(), fc.boolean(), async (seed, compareAndSet, pauses) => {
      const { faults, done } = await new Model({ seed, compareAndSet, pauses }).run();
      for (const [what, count] of Object.entries(done)) totals[what] = (totals[what] ?? 0) + count;
      if (faults.length > 0)
        throw new Error(`seed ${seed} ${compareAndSet} ${pauses}: ${faults.slice(0, 5).join('\n')}`);
    }),
    // In the example, an image is carried over with more manifests than can be copied in one settle time.
    { numRuns: RUNS, endOnFailure: true, examples: [[100_003, false, false]] },
  );
  t.comment(JSON.stringify(totals));
  for (const what of ['build', 'tag', 'remove', 'rotate', 'sweep', 'purge', 'attach'])
    t.ok(totals[`${what} done`]! >= RUNS, `${what} came to its end`);
  for (const what of ['rotate with movedChunks', 'sweep with sweptChunks', 'sweep with restoredObjects'])
    t.ok(totals[what]! > 0, what);
  for (const what of ['purge with deletedObjects', 'drives longer than any period', 'hostile objects'])
    t.ok(totals[what]! > 0, what);
});

/** Collectors that break a rule on purpose, to see whether the model notices. */
const BROKEN: Record<string, (parts: StoreParts) => StoreParts> = {
  // With leases, and because everything is checked twice, breaking only these two rules loses nothing in so few runs.
  'that know no leases and wait neither for grace nor retention': (parts) => ({
    ...parts,
    policy: { ...parts.policy, graceMs: 1, retentionMs: 1 },
    objects: new Leaseless(parts.objects),
  }),
  'that know no leases': (parts) => ({ ...parts, objects: new Leaseless(parts.objects) }),
  'that destroy what they should put aside': (parts) => ({ ...parts, objects: new Hasty(parts.objects) }),
};

/** Hides everything that hosts write. */
class Leaseless extends HookedObjects {
  override async *list(prefix: string, options?: ListOptions): AsyncIterable<readonly ObjectInfo[]> {
    if (!prefix.startsWith('hosts/')) yield* super.list(prefix, options);
  }
}

/** Claims to have copied what is to be swept, but has not. */
class Hasty extends HookedObjects {
  override async copy(from: string, to: string, options?: ObjectOptions): Promise<boolean> {
    return to.startsWith('trash/') || super.copy(from, to, options);
  }
}

for (const [rule, bend] of Object.entries(BROKEN)) {
  t.test(`the model finds collectors ${rule}`, async (t) => {
    let seed = 1;
    while (seed < 60 && (await new Model({ seed, bend }).run()).faults.length === 0) seed++;
    t.ok(seed < 60, `in run ${seed}`);
  });
}
