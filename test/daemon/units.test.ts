import fc from 'fast-check';
import t from 'tap';
import {
  formatDuration,
  formatShare,
  formatSize,
  parseDuration,
  parseShare,
  parseSize,
} from '../../src/units.ts';

t.test('sizes are powers of 1024', async (t) => {
  t.equal(parseSize('0'), 0);
  t.equal(parseSize('4096'), 4096);
  t.equal(parseSize('4096B'), 4096);
  t.equal(parseSize('512M'), 512 * 1024 ** 2);
  t.equal(parseSize('512MiB'), 512 * 1024 ** 2);
  t.equal(parseSize('1.5g'), 1.5 * 1024 ** 3);
  t.equal(parseSize(' 10 GB '), 10 * 1024 ** 3);
});

t.test('what is no size is refused', async (t) => {
  for (const text of ['', 'G', '-1', '1e3', '10X', '1.5', '10G10', 'NaN', '99999999P', '1..5G', '0x10']) {
    t.throws(() => parseSize(text), { code: 'USAGE' }, JSON.stringify(text));
  }
});

t.test('durations need a unit', async (t) => {
  t.equal(parseDuration('250ms'), 250);
  t.equal(parseDuration('1.5s'), 1500);
  t.equal(parseDuration('2 m'), 120_000);
  t.equal(parseDuration('12h'), 12 * 3_600_000);
  t.equal(parseDuration('1.5d'), 36 * 3_600_000);
  for (const text of ['', '10', 's', '-1s', '1w', '1D', '1s1s']) {
    t.throws(() => parseDuration(text), { code: 'USAGE' }, JSON.stringify(text));
  }
});

t.test('sizes for people keep three digits', async (t) => {
  t.equal(formatSize(0), '0 B');
  t.equal(formatSize(999), '999 B');
  t.equal(formatSize(1000), '0.98 KiB');
  t.equal(formatSize(1536), '1.5 KiB');
  t.equal(formatSize(10 * 1024 ** 3), '10 GiB');
  t.equal(formatSize(100 * 1024), '100 KiB');
  t.equal(formatSize(2.9 * 1024 ** 4), '2.9 TiB');
});

t.test('durations and shares for people', async (t) => {
  t.equal(formatDuration(0.42), '0.42 ms');
  t.equal(formatDuration(1500), '1.5 s');
  t.equal(formatDuration(90_000), '90 s');
  t.equal(formatDuration(125_000), '2 min 5 s');
  t.equal(formatDuration(2 * 3_600_000), '2 h 0 min');
  t.equal(formatDuration(24 * 3_600_000 - 1000), '23 h 59 min');
  t.equal(formatDuration(24 * 3_600_000), '1 d');
  t.equal(formatDuration(7 * 24 * 3_600_000), '7 d');
  t.equal(formatDuration(50 * 3_600_000 + 60_000), '2 d 2 h');
  t.equal(formatShare(0.064), '6.4 %');
  t.equal(formatShare(1), '100 %');
  t.equal(formatShare(Number.NaN), '–');
});

t.test('no size is shown off by more than a percent', async () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 2 ** 52 }), (bytes) => {
      const again = parseSize(formatSize(bytes).replace(/ B$/, ''));
      return Math.abs(again - bytes) / bytes < 0.01;
    }),
  );
});

t.test('no text makes the parsers throw anything but USAGE', async () => {
  fc.assert(
    fc.property(fc.string(), (text) => {
      for (const parse of [parseSize, parseDuration]) {
        try {
          if (!Number.isSafeInteger(parse(text))) return false;
        } catch (error) {
          if ((error as { code?: string }).code !== 'USAGE') return false;
        }
      }
      return true;
    }),
  );
});

t.test('shares are read as percentages', (t) => {
  for (const [text, share] of [
    ['1%', 0.01],
    ['0.5 %', 0.005],
    ['100%', 1],
    ['0%', 0],
  ] as const)
    t.equal(parseShare(text), share);
  for (const text of ['', '1', '101%', '-1%', '1.%', '%', '1e2%'])
    t.throws(() => parseShare(text), { code: 'USAGE' });
  t.end();
});
