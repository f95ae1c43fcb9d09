/** Errors: their code, and whether asking again can help, through every wrapping. */
import t from 'tap';
import {
  codeOf,
  type ErrorCode,
  isRetryable,
  LazydiskError,
  withContext,
  withMessage,
} from '../src/errors.ts';

t.test('whether asking again can help is said by the code, unless the thrower knows better', async (t) => {
  const codes: ErrorCode[] = ['USAGE', 'NOT_FOUND', 'CORRUPT', 'BUSY', 'NO_SPACE', 'ABORTED', 'INTERNAL'];
  for (const code of codes) t.notOk(new LazydiskError(code, 'x').retryable, code);
  for (const code of ['UNAVAILABLE', 'TIMEOUT', 'OVERLOAD'] as const) {
    t.ok(new LazydiskError(code, 'x').retryable, code);
    t.notOk(new LazydiskError(code, 'x', { retryable: false }).retryable, code);
  }
  t.ok(isRetryable(new Error('ECONNRESET')), 'what the system throws may pass');
});

t.test('context keeps code, retryability, time to wait, and cause', async (t) => {
  const denied = new LazydiskError('UNAVAILABLE', 'access denied', { retryable: false });
  const told = withContext(withContext(denied, 'chunk 1'), 'drive web');
  t.match(told, { code: 'UNAVAILABLE', retryable: false, message: 'drive web: chunk 1: access denied' });
  t.equal((told.cause as Error).cause, denied);
  const later = new LazydiskError('OVERLOAD', 'busy', { retryAfterMs: 5_000 });
  t.match(withContext(later, 'origin'), { code: 'OVERLOAD', retryable: true, retryAfterMs: 5_000 });
  t.match(withMessage(denied, 'no'), { code: 'UNAVAILABLE', retryable: false, message: 'no', cause: denied });
  t.notOk('cause' in new LazydiskError('BUSY', 'x'), 'no cause where there is none');
});

t.test('what is not ours has the code that its place gives it', async (t) => {
  const alien = new TypeError('x is undefined');
  t.equal(codeOf(alien), 'INTERNAL');
  t.equal(codeOf(alien, 'UNAVAILABLE'), 'UNAVAILABLE');
  t.equal(codeOf('thrown text', 'CORRUPT'), 'CORRUPT');
  t.match(withContext(alien, 'here'), {
    code: 'INTERNAL',
    retryable: false,
    message: 'here: x is undefined',
  });
  t.match(withContext(alien, 'here', 'UNAVAILABLE'), { code: 'UNAVAILABLE', retryable: true });
});
