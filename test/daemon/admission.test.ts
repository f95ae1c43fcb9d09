/** Admission of starts: with a clock controlled by the test, and with an origin that many starts would overwhelm. */
import t from 'tap';
import { Admission, type Admitted, type StartingDrive } from '../../src/daemon/admission.ts';

/** A drive whose progress the test controls. */
function fakeDrive(name: string): StartingDrive & { reads: number; chunks: number; waits: number } {
  const drive = {
    name,
    reads: 0,
    chunks: 0,
    waits: 0,
    progress: () => ({ reads: drive.reads, originChunks: drive.chunks, inFlight: drive.waits }),
  };
  return drive;
}

function setUp(strained: boolean, options: { startsMax?: number; queueMax?: number } = {}) {
  const state = { nowMs: 1_000, strained };
  const admission = new Admission({
    startsMax: 2,
    waitMs: 10_000,
    ...options,
    isStrained: () => state.strained,
    now: () => state.nowMs,
  });
  const pass = (ms: number) => {
    for (const end = state.nowMs + ms; state.nowMs < end; ) {
      state.nowMs = Math.min(end, state.nowMs + 250);
      admission.tick();
    }
  };
  return { admission, state, pass };
}

t.test('without strain a crowd starts, in waves that grow while the ones before get on', async (t) => {
  const { admission, state } = setUp(false);
  t.teardown(() => admission.close());
  const drives: ReturnType<typeof fakeDrive>[] = [];
  const attach = async () => {
    const admitted = await admission.admit();
    const drive = fakeDrive(`d${drives.length}`);
    // It has a read in flight, and nobody knows yet whether it will be answered.
    drive.waits = 1;
    admitted.started(drive);
    drives.push(drive);
  };
  const all = Array.from({ length: 20 }, attach);
  const tick = async () => {
    state.nowMs += 250;
    admission.tick();
    await new Promise((resolve) => setImmediate(resolve));
  };
  for (const started of [2, 2, 6, 14, 20]) {
    await tick();
    t.equal(drives.length, started);
    if (state.nowMs > 1_250) for (const drive of drives) drive.reads = 1;
  }
  await Promise.all(all);
  t.match(admission.stats(), { starting: 20, waiting: 0, waited: 18, refused: 0, strained: false });
});

t.test('without strain drives that read nothing yet hold nobody up for long', async (t) => {
  const { admission, pass } = setUp(false);
  t.teardown(() => admission.close());
  const attach = async (_: unknown, n: number) => (await admission.admit()).started(fakeDrive(`d${n}`));
  const all = Array.from({ length: 6 }, attach);
  for (let n = 0; n < 8; n++) {
    pass(250);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await Promise.all(all);
  t.match(admission.stats(), { waiting: 0, refused: 0 });
});

t.test('under strain only so many start, and the next when one has started', async (t) => {
  const { admission, pass } = setUp(true);
  t.teardown(() => admission.close());
  const first = fakeDrive('first');
  const second = fakeDrive('second');
  (await admission.admit()).started(first);
  (await admission.admit()).started(second);
  let third: Admitted | undefined;
  void admission.admit().then((admitted) => {
    third = admitted;
  });
  for (let n = 0; n < 12; n++) {
    first.chunks++;
    second.waits = 1;
    pass(500);
  }
  await null;
  t.equal(third, undefined, 'both still read from the origin');
  t.match(admission.stats(), { starting: 2, waiting: 1, waited: 1 });
  for (let n = 0; n < 4; n++) {
    second.chunks++;
    pass(750);
  }
  await null;
  t.ok(third, 'the first has had nothing for a while');
  t.equal(admission.stats().starting, 2);
});

t.test('who never becomes quiet does not hold its place for ever', async (t) => {
  const { admission, pass } = setUp(true, { startsMax: 1 });
  t.teardown(() => admission.close());
  const drive = fakeDrive('busy');
  drive.waits = 1;
  (await admission.admit()).started(drive);
  pass(59_000);
  t.equal(admission.stats().starting, 1);
  pass(2_000);
  t.equal(admission.stats().starting, 0);
});

t.test('who waits too long, or finds too many waiting, is refused by name of the cause', async (t) => {
  const { admission, pass } = setUp(true, { startsMax: 1, queueMax: 2 });
  t.teardown(() => admission.close());
  const drive = fakeDrive('busy');
  drive.waits = 1;
  (await admission.admit()).started(drive);
  const waiting = [admission.admit(), admission.admit()].map((entry) =>
    entry.catch((error: unknown) => error),
  );
  await t.rejects(admission.admit(), {
    code: 'OVERLOAD',
    message: /origin is slow: 1 drives are starting \(of 1.*2 wait/,
  });
  pass(11_000);
  for (const error of await Promise.all(waiting)) t.match(error, { code: 'OVERLOAD' });
  t.match(admission.stats(), { refused: 3, waiting: 0, starting: 1 });
});

t.test('a failed attach gives its place back, and the end of strain lets all in', async (t) => {
  const { admission, state, pass } = setUp(true, { startsMax: 1 });
  t.teardown(() => admission.close());
  const failed = await admission.admit();
  const next = admission.admit();
  const later = [admission.admit(), admission.admit()];
  failed.cancel();
  failed.cancel();
  (await next).started({
    ...fakeDrive('next'),
    progress: () => ({ reads: 1, originChunks: 0, inFlight: 1 }),
  });
  t.equal(admission.stats().waiting, 2);
  state.strained = false;
  pass(6_000);
  await Promise.all(later);
  t.equal(admission.stats().starting, 3);
});

t.test('whoever goes while it waits leaves the queue, and takes nobody with it', async (t) => {
  const { admission, pass } = setUp(true, { startsMax: 1 });
  t.teardown(() => admission.close());
  const first = await admission.admit();
  const gone = new AbortController();
  const left = admission.admit(gone.signal);
  const stays = admission.admit();
  gone.abort();
  await t.rejects(left, { code: 'ABORTED' });
  await t.rejects(admission.admit(gone.signal), { code: 'ABORTED' });
  t.match(admission.stats(), { waiting: 1, starting: 1 });
  first.cancel();
  (await stays).cancel();
  pass(1_000);
  t.match(admission.stats(), { waiting: 0, starting: 0, refused: 0 });
});

t.test('a daemon that stops refuses who waits', async (t) => {
  const { admission } = setUp(true, { startsMax: 1 });
  (await admission.admit()).started(fakeDrive('a'));
  const waiting = admission.admit();
  admission.close();
  await t.rejects(waiting, { code: 'UNAVAILABLE' });
});

/**
 * Simulates a cold fleet and an origin of fixed capacity, in steps of 100 ms. Each of `drives` starts needs 40 chunks
 * and requests 8 at once. A request not served within 2 s fails the start, which begins again from nothing, while its
 * earlier requests stay in the origin's queue (nobody takes work back from a server). Returns the starts finished in a
 * minute.
 */
async function simulate(
  drives: number,
  startsMax: number | undefined,
  attachesPerStep: number,
): Promise<number> {
  const CHUNKS = 40;
  const PARALLEL = 8;
  const SERVED_PER_STEP = 20;
  const DEADLINE_MS = 2_000;
  let nowMs = 0;
  const queue: { start: Run; askedMs: number; attempt: number }[] = [];
  interface Run {
    attempt: number;
    got: number;
    asked: number;
    total: number;
    done: boolean;
    admitted: boolean;
  }
  const admission = new Admission({
    startsMax: startsMax ?? Number.POSITIVE_INFINITY,
    queueMax: drives,
    waitMs: Number.POSITIVE_INFINITY,
    isStrained: () => queue.length > SERVED_PER_STEP,
    now: () => nowMs,
  });
  const runs: Run[] = Array.from({ length: drives }, () => ({
    attempt: 0,
    got: 0,
    asked: 0,
    total: 0,
    done: false,
    admitted: false,
  }));
  const begin = async (run: Run, n: number) => {
    const admitted = await admission.admit();
    run.admitted = true;
    admitted.started({
      name: `d${n}`,
      progress: () => ({
        reads: run.total,
        originChunks: run.total,
        inFlight: run.done ? 0 : run.asked - run.got,
      }),
    });
  };
  let finished = 0;
  let next = 0;
  for (; nowMs < 60_000; nowMs += 100) {
    // More arrives than the origin can feed. Attaches still waiting at the end are refused.
    for (let n = 0; n < attachesPerStep && next < drives; n++) begin(runs[next]!, next++).catch(() => {});
    await new Promise((resolve) => setImmediate(resolve));
    for (const start of runs) {
      if (!start.admitted || start.done) continue;
      while (start.asked < CHUNKS && start.asked - start.got < PARALLEL) {
        start.asked++;
        queue.push({ start, askedMs: nowMs, attempt: start.attempt });
      }
    }
    for (const { start, askedMs, attempt } of queue) {
      if (attempt !== start.attempt || nowMs - askedMs < DEADLINE_MS) continue;
      // The guest's root drive failed, so the guest is started again.
      Object.assign(start, { attempt: start.attempt + 1, got: 0, asked: 0 });
    }
    for (const { start, attempt } of queue.splice(0, SERVED_PER_STEP)) {
      if (attempt !== start.attempt || start.done) continue;
      start.got++;
      start.total++;
      if (start.got < CHUNKS) continue;
      start.done = true;
      finished++;
    }
    admission.tick();
  }
  admission.close();
  return finished;
}

for (const [how, attachesPerStep] of [
  ['one after the other', 5],
  ['all at once', 400],
] as const) {
  t.test(
    `a slow origin under a crowd of starts, ${how}, goes on finishing them, where it would finish none`,
    async (t) => {
      const drives = 400;
      const unbounded = await simulate(drives, undefined, attachesPerStep);
      const bounded = await simulate(drives, 16, attachesPerStep);
      t.comment(`finished of ${drives} in a minute: ${unbounded} unbounded, ${bounded} with 16 at once`);
      // The origin can feed 200 chunks a second, so 300 starts of 40 chunks a minute.
      t.ok(bounded >= 270, `${bounded} finish`);
      t.ok(unbounded < 30, `${unbounded} finish without`);
    },
  );
}
