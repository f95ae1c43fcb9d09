import fc from 'fast-check';
import t from 'tap';
import { Histogram } from '../../src/chunk/histogram.ts';

t.test('an empty histogram reports zeroes', async (t) => {
  t.same(new Histogram().summary(), { count: 0, p50Ms: 0, p99Ms: 0, maxMs: 0 });
});

t.test('durations of zero and beyond the last bucket are counted', async (t) => {
  const histogram = new Histogram();
  for (let n = 0; n < 9; n++) histogram.recordInstant();
  histogram.record(10 ** 9);
  t.same(histogram.summary(), { count: 10, p50Ms: 0.001, p99Ms: histogram.percentileMs(1), maxMs: 10 ** 9 });
  t.ok(histogram.percentileMs(1) > 60_000);
});

t.test('property: percentiles are exact to the width of a bucket', async () => {
  const property = fc.property(
    fc.array(fc.double({ min: 0.002, max: 60_000, noNaN: true }), { minLength: 1, maxLength: 300 }),
    fc.constantFrom(0.5, 0.9, 0.99, 1),
    (values, share) => {
      const histogram = new Histogram();
      for (const value of values) histogram.record(value);
      const exact = values.toSorted((a, b) => a - b)[Math.ceil(values.length * share) - 1]!;
      const estimate = histogram.percentileMs(share);
      return estimate >= exact * 0.999999 && estimate <= exact * 2 ** 0.25 * 1.000001;
    },
  );
  fc.assert(property);
});
