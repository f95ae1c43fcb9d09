/** Waits that end at a deadline or a signal, whichever comes first, and derived contexts. */
import { getEventListeners } from 'node:events';
import t from 'tap';
import { deadlineError, type Ended, onDeadline, withDeadline } from '../../src/async/deadline.ts';
import { type ReadContext, withNearerDeadline, withSignal } from '../../src/async/read-context.ts';

const soon = (ms = 5) => performance.now() + ms;
const never = new Promise<never>(() => {});
const FAR = Number.POSITIVE_INFINITY;

t.test('a wait ends at its deadline with an error that names it', async (t) => {
  await t.rejects(withDeadline(never, { deadline: soon() }, 'no answer'), {
    code: 'TIMEOUT',
    message: 'no answer before the deadline',
  });
  await t.rejects(withDeadline(never, { deadline: performance.now() - 1 }, 'late'), { code: 'TIMEOUT' });
});

t.test('a wait ends when it is cancelled, even in advance, and leaves no listener', async (t) => {
  const controller = new AbortController();
  const { signal } = controller;
  const cancelled = withDeadline(never, { deadline: FAR, signal }, 'no answer');
  t.equal(getEventListeners(signal, 'abort').length, 1);
  controller.abort();
  await t.rejects(cancelled, { code: 'ABORTED' });
  t.equal(getEventListeners(signal, 'abort').length, 0);
  await t.rejects(withDeadline(never, { deadline: FAR, signal }, 'no answer'), { code: 'ABORTED' });
  const { signal: calm } = new AbortController();
  t.equal(await withDeadline(Promise.resolve(7), { deadline: FAR, signal: calm }, 'seven'), 7);
  const failing = withDeadline(Promise.reject(new Error('its own')), { deadline: FAR, signal: calm }, 'it');
  await t.rejects(failing, { message: 'its own' });
  t.equal(getEventListeners(calm, 'abort').length, 0);
});

t.test('a deadline that moves during the wait is kept', async (t) => {
  const ctx = { deadline: soon(1) };
  const ended = new Promise<Ended>((resolve) => onDeadline(ctx, resolve));
  const movedTo = soon(40);
  ctx.deadline = movedTo;
  t.equal(await ended, 'deadline');
  t.ok(performance.now() >= movedTo);
});

t.test('a value that arrives too late is given back', async (t) => {
  const { promise, resolve } = Promise.withResolvers<string>();
  const returned: string[] = [];
  const waiting = withDeadline(promise, { deadline: soon() }, 'no loan', (loan) => returned.push(loan));
  await t.rejects(waiting, { code: 'TIMEOUT' });
  resolve('loan');
  await promise;
  t.same(returned, ['loan']);
});

t.test('the callback runs neither before the watch has begun nor after it was stopped', async (t) => {
  let calls = 0;
  const stop = onDeadline({ deadline: FAR, signal: AbortSignal.abort() }, () => calls++);
  t.equal(calls, 0, 'not before it has returned');
  stop();
  await new Promise(setImmediate);
  t.equal(calls, 0);
  t.match(deadlineError('signal', 'x'), { code: 'ABORTED', retryable: false });
  t.match(deadlineError('deadline', 'x'), { code: 'TIMEOUT', retryable: true });
});

t.test('a derived context follows the changes of its origin', async (t) => {
  const listeners = new Set<() => void>();
  const origin = {
    class: 'prefetch' as ReadContext['class'],
    deadline: 100,
    drive: 'web',
    drives: new Set(['web']),
    onPromote: (listener: () => void) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
  const near = withNearerDeadline(origin, 50);
  const { signal } = new AbortController();
  const other = withSignal(near, signal);
  t.match([near.deadline, other.deadline, near.signal], [50, 50, undefined]);
  origin.class = 'demand';
  origin.deadline = 20;
  origin.drives.add('db');
  for (const ctx of [near, other]) {
    t.match(ctx, { class: 'demand', deadline: 20, drive: 'web' });
    t.equal(ctx.drives?.size, 2);
    t.ok(ctx.onPromote?.(() => {}));
  }
  t.equal(other.signal, signal);
  t.equal(listeners.size, 2);
});
