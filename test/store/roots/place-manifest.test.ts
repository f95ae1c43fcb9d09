/** Writes with a time limit, which are retried while there is patience for the store. */
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import { systemClock } from '../../../src/store/roots/clock.ts';
import { boundedWrites } from '../../../src/store/roots/place-manifest.ts';
import { DEFAULT_POLICY } from '../../../src/store/roots/policy.ts';
import { openDirStore } from '../../support/dir-store.ts';

async function boundedIn(dir: string, retryForMs: number, checkTime = () => {}) {
  const { parts } = await openDirStore(dir);
  const objects = Object.create(parts.objects, { retryForMs: { value: retryForMs } }) as typeof parts.objects;
  const policy = { ...DEFAULT_POLICY, settleMs: 20 };
  return boundedWrites({ objects, policy, clock: systemClock }, 'a write', checkTime);
}

/** A write that hangs the first `times` times, then finishes at once. */
function hanging(times: number) {
  const write = async ({ signal }: { signal?: AbortSignal }) => {
    write.calls++;
    if (write.calls > times) return;
    // The timer stands for the request in flight, because a signal's own timer does not keep the process alive.
    await delay(60_000, undefined, { signal: signal! }).catch((cause) => {
      throw new LazydiskError('ABORTED', 'given up', { cause });
    });
  };
  write.calls = 0;
  return write;
}

t.test('a write that is not done in time is given up, and tried again while there is patience', async (t) => {
  const impatient = await boundedIn(t.testdir(), 0);
  await t.rejects(impatient(hanging(1)), { code: 'TIMEOUT', message: /a write was not done within 20 ms/ });
  const patient = await boundedIn(t.testdir(), 60_000);
  const write = hanging(3);
  await patient(write);
  t.equal(write.calls, 4);
  await t.rejects(
    patient(async () => {
      throw new LazydiskError('NO_SPACE', 'full');
    }),
    { code: 'NO_SPACE' },
  );
});

t.test('the time that is left is looked at before each try', async (t) => {
  let left = 2;
  const bounded = await boundedIn(t.testdir(), 60_000, () => {
    if (left-- === 0) throw new LazydiskError('TIMEOUT', 'too late');
  });
  const write = hanging(9);
  await t.rejects(bounded(write), { message: 'too late' });
  t.equal(write.calls, 2);
});
