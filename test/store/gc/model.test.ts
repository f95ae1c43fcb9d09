/** Garbage collection against the model: whatever interleaves, nothing that is named or attached is lost. */
import fc from 'fast-check';
import t from 'tap';
import type { ObjectOptions, ObjectStore } from '../../../src/store/objects/object-store.ts';
import type { StoreParts } from '../../../src/store/parts.ts';
import type { Area } from '../../../src/store/view.ts';
import { DyingObjects } from '../../support/dying-objects.ts';
import { withCalls } from '../../support/fsck-store.ts';
import { Model, type ModelOptions } from './model.ts';

/** Runs of the model; more of them with LAZYDISK_MODEL_RUNS, for a change to what it checks. */
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
    // In the example an image comes over with more manifests than can be copied in one settle time.
    { numRuns: RUNS, endOnFailure: true, examples: [[100_003, false, false]] },
  );
  t.comment(JSON.stringify(totals));
  for (const what of ['build', 'tag', 'remove', 'rotate', 'sweep', 'purge', 'attach'])
    t.ok(totals[`${what} done`]! >= RUNS, `${what} came to its end`);
  for (const what of ['rotate with movedChunks', 'sweep with sweptChunks', 'sweep with restoredObjects'])
    t.ok(totals[what]! > 0, what);
  t.ok(totals['purge with deletedObjects']! > 0, 'purge with deletedObjects');
});

/** Collectors that break a rule on purpose, to see that the model would notice. */
const BROKEN: Record<string, (parts: StoreParts) => StoreParts> = {
  'that wait neither for grace nor retention': (parts) => ({
    ...parts,
    policy: { ...parts.policy, graceMs: 1, retentionMs: 1 },
  }),
  'that destroy what they should put aside': (parts) => ({ ...parts, objects: new Hasty(parts.objects) }),
};

/** Says that it has copied what is to be swept, and has not. */
class Hasty extends DyingObjects {
  constructor(inner: ObjectStore) {
    super(inner, Number.POSITIVE_INFINITY);
  }

  override async copy(from: string, to: string, options?: ObjectOptions): Promise<boolean> {
    return to.startsWith('trash/') || super.copy(from, to, options);
  }
}

/** The same by everybody, where processes are stopped. */
const CARELESS: Record<string, Pick<ModelOptions, 'bend' | 'bendObjects'>> = {
  'that take a trash whose sweep has not ended for complete': { bend: closingTrash },
  'who do not look at the time when a name is written': {
    bendObjects: (objects) => {
      const atStart = objects.nowMs();
      return withCalls(objects, { nowMs: () => atStart });
    },
  },
};

/** As if a sweep that has not said its end were over after the time of a build. */
function closingTrash(parts: StoreParts): StoreParts {
  const { views, policy } = parts;
  const close = (area: Area): Area =>
    area.path.startsWith('trash/') && area.closedMs === undefined
      ? { ...area, closedMs: area.openedMs + policy.buildMs }
      : area;
  const closing = async (ageMsMax: number) => {
    const view = await views.newerThan(ageMsMax);
    return { ...view, trash: view.trash.map(close), areas: view.areas.map(close) };
  };
  return { ...parts, views: Object.assign(Object.create(views), { newerThan: closing }) };
}

for (const [rule, bends] of Object.entries(CARELESS)) {
  t.test(`the model finds users ${rule}`, async (t) => {
    let seed = 1;
    const isFound = async () => {
      const { faults } = await new Model({ seed, pauses: true, ...bends }).run();
      return faults.length > 0;
    };
    while (seed < 60 && !(await isFound())) seed++;
    t.ok(seed < 60, `in run ${seed}`);
  });
}

for (const [rule, bend] of Object.entries(BROKEN)) {
  t.test(`the model finds collectors ${rule}`, async (t) => {
    let seed = 1;
    while (seed < 60 && (await new Model({ seed, bend }).run()).faults.length === 0) seed++;
    t.ok(seed < 60, `in run ${seed}`);
  });
}
