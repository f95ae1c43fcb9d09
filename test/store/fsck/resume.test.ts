/** A run that was stopped resumes where it was, reports the same in the end, and reads nothing twice. */
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import { type FsckOptions, fsck } from '../../../src/store/fsck/fsck.ts';
import { storeSource } from '../../../src/store/fsck/source.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { DAMAGES, damage, FsckStore, idsOf, withCalls } from '../../support/fsck-store.ts';

async function damagedStore(t: Test) {
  const dir = t.testdir();
  const place = await FsckStore.open(t, join(dir, 'store'));
  const image = await place.put(
    'app',
    Array.from({ length: 60 }, (_, n) => `chunk ${n}`),
  );
  const ids = idsOf(image);
  for (const [at, how] of [...DAMAGES, ...DAMAGES].entries())
    damage(place.chunk(ids[at + 1]!), how, place.chunk(ids[0]!));
  writeFileSync(place.path('roots/1/chunks/ab.stray'), 'x');
  return { place, ids, image, resume: join(dir, 'state') };
}

/** Runs fsck, but stops it after `calls` reads of chunks; then the report is undefined. */
async function stoppedAfter(place: FsckStore, calls: number, options: Partial<FsckOptions>) {
  const { objects } = place.store.parts;
  const reads: string[] = [];
  const get: typeof objects.get = async (key, bytesMax, given) => {
    if (key.includes('/chunks/') && reads.push(key) > calls) throw new LazydiskError('TIMEOUT', 'stopped');
    return objects.get(key, bytesMax, given);
  };
  const parts = { ...place.store.parts, objects: withCalls(objects, { get }) };
  const report = await fsck(parts, { sample: 1, ...options }).catch((error) => {
    if (error.message !== 'stopped') throw error;
    return undefined;
  });
  return { report, reads };
}

t.test('stopped at any moment, and run again to the end', async (t) => {
  const { place, resume } = await damagedStore(t);
  const whole = await place.check();
  t.equal(whole.damagedChunks, 10);
  for (const calls of [0, 5, 17, 40, 55, 62, 70]) {
    const { report, reads } = await stoppedAfter(place, calls, { resume });
    t.equal(report, undefined, `stopped after ${calls}`);
    const done = Object.keys(JSON.parse(readFileSync(resume, 'utf8')).shards).length;
    const again = await stoppedAfter(place, 1e9, { resume });
    t.strictSame(again.report, { ...whole, seed: again.report!.seed }, `after ${calls} calls`);
    t.notOk(existsSync(resume), 'and the state is gone');
    t.comment(`${done} of 256 folders, ${reads.length} and ${again.reads.length} reads`);
    if (calls === 55) t.ok(again.reads.length < 60, 'what was read before is not read again');
  }
});

t.test('stopped again and again', async (t) => {
  const { place, resume } = await damagedStore(t);
  const whole = await place.check();
  let report: typeof whole | undefined;
  // Each run first checks the suspects again, so it needs more reads than the last one to get further.
  for (let runs = 0; !report; runs++) {
    ({ report } = await stoppedAfter(place, 12 + runs, { resume }));
    if (runs > 200) throw new Error('it never comes to an end');
  }
  t.strictSame(report, { ...whole, seed: report.seed });
});

t.test('what was mended before a stop is in the report after it', async (t) => {
  const { place, ids, resume } = await damagedStore(t);
  const other = await FsckStore.open(t, join(t.testdirName, 'other'), place.key);
  await other.put(
    'app',
    Array.from({ length: 60 }, (_, n) => `chunk ${n}`),
  );
  const repair = { sources: [storeSource(other.store)] };
  let mendings = 0;
  const stopping = {
    sources: [
      {
        ...repair.sources[0]!,
        get: async (id: (typeof ids)[number]) => {
          if (++mendings > 5) controller.abort(new LazydiskError('ABORTED', 'stopped'));
          return other.store.getChunk(id);
        },
      },
    ],
  };
  const controller = new AbortController();
  const { signal } = controller;
  await t.rejects(place.check({ repair: stopping, resume, signal }), { code: 'ABORTED' });
  const { mended } = JSON.parse(readFileSync(resume, 'utf8'));
  t.ok(mended.chunks >= 5 && mended.chunks <= 10, `${mended.chunks} were mended`);
  const report = await place.check({ repair, resume });
  t.match(report, { damagedChunks: 10, remaining: 0, repair: { chunks: 10 } });
  t.equal(report.damaged.length, 10);
  t.match(await place.check(), { damagedChunks: 0 });
});

t.test('what is named meanwhile is looked for, in folders that were done, too', async (t) => {
  const { place, resume } = await damagedStore(t);
  await stoppedAfter(place, 65, { resume });
  const late = await place.put(
    'late',
    Array.from({ length: 20 }, (_, n) => `late ${n}`),
  );
  for (const id of idsOf(late).slice(0, 4)) rmSync(place.chunk(id));
  t.match(await place.check({ resume }), { damagedChunks: 14, liveChunks: 80 });
});

t.test('a state of another run, or of none, is refused', async (t) => {
  const { place, resume } = await damagedStore(t);
  await stoppedAfter(place, 20, { resume });
  const other = await FsckStore.open(t, join(t.testdirName, 'other'));
  const refusal = (text: RegExp) => ({ code: 'USAGE', message: text });
  await t.rejects(other.check({ resume }), refusal(/run with store/));
  await t.rejects(place.check({ resume, sample: 0.5 }), refusal(/run with sample 1/));
  await t.rejects(place.check({ resume, seed: 3 }), refusal(/run with seed/));
  const before = readFileSync(resume);
  for (const text of ['', '{}', before.toString().replace('"version":3', '"version":2')]) {
    writeFileSync(resume, text);
    await t.rejects(place.check({ resume }), refusal(/not what fsck has written/));
  }
  writeFileSync(resume, before);
  for (const file of [place.path('roots/1/references/app%3Alatest.json')]) rmSync(file);
  await rotate(place.store.parts);
  await t.rejects(place.check({ resume }), refusal(/run with roots roots\/1/));
  await t.rejects(place.check({ resume: t.testdirName }), { code: 'UNAVAILABLE' });
});
