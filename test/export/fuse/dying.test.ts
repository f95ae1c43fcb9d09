/** Which pending signals kill a thread, according to /proc. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import t from 'tap';
import { hasDeadlySignal, isDying } from '../../../src/export/fuse/dying.ts';

const { SIGALRM, SIGKILL, SIGSEGV, SIGTERM, SIGURG, SIGTSTP } = constants.signals;
const set = (...signals: number[]) =>
  signals
    .reduce((bits, signal) => bits | (1n << BigInt(signal - 1)), 0n)
    .toString(16)
    .padStart(16, '0');

function status(masks: {
  shared?: string;
  own?: string;
  blocked?: string;
  ignored?: string;
  caught?: string;
}) {
  const none = set();
  const { own = none, shared = none, blocked = none, ignored = none, caught = none } = masks;
  return `Name:\tdd\nSigQ:\t1/31\nSigPnd:\t${own}\nShdPnd:\t${shared}\nSigBlk:\t${blocked}\nSigIgn:\t${ignored}\nSigCgt:\t${caught}\n`;
}

t.test('a signal kills unless it is blocked, ignored, caught or harmless by default', async (t) => {
  for (const where of ['own', 'shared']) {
    for (const signal of [SIGTERM, SIGALRM, SIGSEGV, 64]) {
      t.equal(hasDeadlySignal(status({ [where]: set(signal) })), true, `${signal} ${where}`);
      for (const how of ['blocked', 'ignored', 'caught'])
        t.equal(
          hasDeadlySignal(status({ [where]: set(signal), [how]: set(signal) })),
          false,
          `${signal} ${how}`,
        );
    }
    for (const signal of [SIGURG, SIGTSTP]) t.equal(hasDeadlySignal(status({ [where]: set(signal) })), false);
    t.equal(
      hasDeadlySignal(status({ [where]: set(SIGALRM, SIGTERM), caught: set(SIGALRM) })),
      true,
      'one of two',
    );
    t.equal(hasDeadlySignal(status({ [where]: set(SIGKILL), caught: set(SIGKILL) })), true);
  }
  t.equal(hasDeadlySignal(''), false);
});

t.test('a living process, and one that cannot be seen, are not dying', async (t) => {
  t.equal(isDying(process.pid), false);
  t.equal(isDying(0), false);
  const child = spawn('true');
  await once(child, 'exit');
  t.equal(isDying(child.pid!), false);
});
