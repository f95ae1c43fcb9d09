import fc from 'fast-check';
import t from 'tap';
import { EXIT_CODES, exitCodeOf, exitCodesHelp } from '../../src/cli/exit-codes.ts';
import { outageText, Progress, progressLine } from '../../src/cli/progress.ts';
import { list, printable, table } from '../../src/cli/table.ts';
import { type ErrorCode, LazydiskError } from '../../src/errors.ts';

t.test('exit codes are what they always were', async (t) => {
  t.same(EXIT_CODES, {
    INTERNAL: 1,
    USAGE: 2,
    NOT_FOUND: 3,
    EXISTS: 4,
    KEY: 5,
    CORRUPT: 6,
    UNSUPPORTED: 7,
    NO_SPACE: 8,
    TIMEOUT: 9,
    UNAVAILABLE: 10,
    OVERLOAD: 11,
    BUSY: 12,
    ABORTED: 13,
  });
  t.equal(exitCodeOf(new LazydiskError('KEY', 'x')), 5);
  t.equal(exitCodeOf(new TypeError('x')), 1);
  t.equal(exitCodeOf('x'), 1);
  for (const [code, exit] of Object.entries(EXIT_CODES)) {
    t.match(exitCodesHelp(), new RegExp(`^ +${exit}  ${code as ErrorCode} `, 'm'));
  }
});

t.test('columns line up, numbers to the right', async (t) => {
  const text = table(
    [{ title: 'name' }, { title: 'size', align: 'right' }],
    [
      ['a', '10 GiB'],
      ['longer', '1 B'],
    ],
  );
  t.equal(text, 'NAME      SIZE\na       10 GiB\nlonger     1 B\n');
  t.equal(
    list([
      ['a', '1'],
      ['bcd', ['2', '3']],
      ['e', []],
    ]),
    'a    1\nbcd  2\n     3\ne    –\n',
  );
});

t.test('text from elsewhere does not drive the terminal', async (t) => {
  t.equal(printable('a\x1b[2Jb\nc\u009bd'), 'a\\x1b[2Jb\\x0ac\\x9bd');
  fc.assert(
    fc.property(fc.array(fc.string({ unit: 'binary' }), { minLength: 1, maxLength: 4 }), (cells) => {
      const text = table(
        [{ title: 'x' }],
        cells.map((cell) => [cell]),
      );
      return text.split('\n').length === cells.length + 2 && !/\p{Cc}/u.test(text.replaceAll('\n', ''));
    }),
  );
});

class Screen {
  isTTY = true;
  columns = 60;
  text = '';
  write(text: string): void {
    this.text += text;
  }
}

t.test('progress shows after a second, fits the terminal and goes away', async (t) => {
  const screen = new Screen();
  const progress = new Progress('build app', screen);
  const start = performance.now();
  progress.update({ doneBytes: 50 * 1024 ** 2, totalBytes: 100 * 1024 ** 2, stage: 'layer 1 of 2' });
  progress.draw(start + 900);
  t.equal(screen.text, '');
  progress.draw(start + 2000);
  t.match(screen.text, /build app {2}50 % {2}50 MiB of 100 MiB/);
  for (const line of screen.text.split('\r')) t.ok([...line.replace('\x1b[K', '')].length < 60, line);
  progress.end();
  t.ok(screen.text.endsWith('\r\x1b[K'));
});

t.test('progress says nothing where there is no terminal or no time to', async (t) => {
  const screen = new Screen();
  new Progress('x', screen).end();
  t.equal(screen.text, '');
});

t.test('a line of progress', async (t) => {
  const mib = 1024 ** 2;
  t.equal(
    progressLine('build', { doneBytes: 10 * mib, totalBytes: 40 * mib, stage: 'layer 1 of 3' }, 2000),
    'build  25 %  10 MiB of 40 MiB  5 MiB/s  6 s left  layer 1 of 3',
  );
  t.equal(progressLine('build', { doneBytes: 10 * mib }, 2000), 'build  10 MiB  5 MiB/s');
  t.match(progressLine('x', { doneBytes: 0, totalBytes: 5 }, 1000), /0 % {2}0 B of 5 B/);
});

t.test('an outage is told in the place of progress, and to a log when it lasts', async (t) => {
  const outage = { peer: 'store', sinceMs: 1_000, untilMs: 301_000, reason: 'connection\nrefused' };
  t.match(
    outageText(outage, 41_000),
    /^store unreachable for 40 s \(connection.*refused\), retrying until \d\d:\d\d:\d\d$/,
  );
  const screen = new Screen();
  const progress = new Progress('copy', screen);
  const start = performance.now();
  progress.outage({ ...outage, sinceMs: start });
  progress.draw(start + 3_000);
  t.match(screen.text, /copy {2}store unreachable for [23] s/);
  progress.outage(undefined);
  progress.draw(start + 4_000);
  t.match(screen.text, /copy {2}0 B {2}0 B\/s/);
  progress.end();

  const log = { text: '', write: (text: string) => (log.text += text) };
  const logged = new Progress('copy', log);
  logged.outage(outage, 2_000);
  logged.outage(undefined, 2_100);
  t.equal(log.text, '', 'not of a short one');
  for (const nowMs of [1_000, 7_000, 9_000]) logged.outage(outage, nowMs);
  logged.outage(undefined, 21_000);
  t.match(log.text, /^lazydisk: copy: store unreachable for 6 s \(.*\n.*answers again, after 20 s\n$/);
});
