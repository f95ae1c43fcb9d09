import fc from 'fast-check';
import t from 'tap';
import { Readahead } from '../../src/drive/readahead.ts';

/** A drive that has read so much that its bets are not limited. */
function make(entries = 1000, windowMax = 16, touched = 1000) {
  const fetched: number[] = [];
  const fetch = async (entry: number) => fetched.push(entry) > 0;
  const readahead = new Readahead({ entries, windowMax, fetch });
  for (let n = 0; n < touched; n++) readahead.touched(n);
  return { readahead, fetched, read: (entry: number) => readahead.observe(entry, entry, true) };
}

t.test('the window doubles while reads continue in order, up to its bound', async (t) => {
  const { fetched, read } = make(1000, 8);
  const windows: number[] = [];
  for (let entry = 0; entry < 8; entry++) {
    read(entry);
    windows.push((fetched.at(-1) ?? entry) - entry);
  }
  t.same(windows, [0, 1, 2, 4, 8, 8, 8, 8]);
  t.same(
    fetched,
    Array.from({ length: 14 }, (_, n) => n + 2),
    'each once, in order',
  );
});

t.test('reads within a neighbouring chunk are not a sequence, unless it was read ahead', async (t) => {
  const { fetched, readahead } = make();
  for (let entry = 0; entry < 10; entry++) readahead.observe(entry, entry, false);
  t.same(fetched, []);
  readahead.observe(20, 20, false);
  readahead.observe(21, 21, true);
  t.same(fetched, [22]);
  readahead.observe(22, 22, false);
  t.same(fetched, [22, 23, 24], 'out of order, but where it was expected');
  readahead.observe(29, 30, false);
  readahead.observe(30, 31, false);
  t.same(fetched, [22, 23, 24, 32], 'a read across the border of two chunks is a sequence');
});

t.test('unread chunks are at most 30 % of those read ahead or read, except for the first two', async (t) => {
  const { fetched, readahead } = make(10_000, 16, 0);
  const used = new Set<number>();
  const use = (entry: number) => {
    if (!used.has(entry)) readahead.touched(entry);
    used.add(entry);
    readahead.observe(entry, entry, true);
  };
  // Short sequences, which end before the chunks read ahead are read.
  for (let start = 0; start < 5000; start += 50)
    for (let entry = start; entry < start + 4; entry++) use(entry);
  const wasted = fetched.filter((entry) => !used.has(entry)).length;
  t.equal(readahead.unused, wasted);
  t.ok(wasted > 0 && wasted <= (wasted + used.size) * 0.3, `${wasted} beside ${used.size}`);
  // A long one earns its window back, whatever was lost before.
  const before = fetched.length;
  for (let entry = 6000; entry < 6200; entry++) use(entry);
  t.ok(fetched.length - before >= 190);
  t.ok(Math.max(...fetched) >= 6199 + 8, 'and it is well ahead in the end');
});

t.test('a chunk that was not taken is not a lost bet, and one that is near already is no bet', async (t) => {
  for (const answer of [undefined, Promise.resolve(false)]) {
    const readahead = new Readahead({ entries: 100, windowMax: 16, fetch: () => answer });
    for (let entry = 0; entry < 50; entry++) {
      readahead.touched(entry);
      readahead.observe(entry, entry, true);
    }
    await answer;
    t.equal(readahead.unused, 0);
  }
});

t.test('readahead stops at the end of the drive', async (t) => {
  const { fetched, read } = make(5);
  for (let entry = 0; entry < 5; entry++) read(entry);
  t.same(fetched, [2, 3, 4]);
});

t.test('reading one chunk in small pieces counts as one step', async (t) => {
  const { fetched, read } = make();
  for (const entry of [0, 0, 0, 1, 1, 1, 1]) read(entry);
  t.same(fetched, [2]);
});

t.test('one large read counts as one step, not as a sequence', async (t) => {
  const { fetched, readahead } = make();
  readahead.observe(10, 40, true);
  t.same(fetched, []);
  readahead.observe(41, 60, true);
  t.same(fetched, [61]);
});

t.test('requests that arrive out of order do not break a sequence', async (t) => {
  const { fetched, read } = make();
  for (const entry of [0, 1, 2, 4, 3, 6, 5, 7]) read(entry);
  t.same(fetched, [...new Set(fetched)], 'nothing is fetched twice');
  t.ok(fetched.includes(20));
});

t.test('a jump starts a new sequence, without a window', async (t) => {
  const { fetched, read } = make();
  for (let entry = 0; entry < 6; entry++) read(entry);
  const before = fetched.length;
  read(500);
  t.equal(fetched.length, before);
  read(501);
  t.same(fetched.slice(before), [502]);
});

t.test('sixteen sequences are followed; a seventeenth replaces the oldest', async (t) => {
  const { fetched, read } = make(2000);
  const starts = Array.from({ length: 16 }, (_, n) => n * 100);
  for (const start of starts) read(start);
  for (const start of starts) read(start + 1);
  t.same(
    fetched,
    starts.map((start) => start + 2),
  );
  read(1900);
  read(2);
  t.notOk(fetched.includes(3), 'the first one was replaced');
  read(102);
  t.notOk(fetched.includes(103), 'and its return replaced the second');
});

t.test('property: nothing is fetched beyond the end, or further ahead than the window', async () => {
  const read = fc.tuple(fc.nat(99), fc.nat(5), fc.boolean());
  const property = fc.property(
    fc.array(read, { maxLength: 200 }),
    fc.integer({ min: 1, max: 16 }),
    (reads, windowMax) => {
      let last = 0;
      let fine = true;
      const fetch = async (entry: number) => {
        fine &&= entry > last && entry <= last + windowMax && entry < 100;
        return true;
      };
      const readahead = new Readahead({ entries: 100, windowMax, fetch });
      for (const [n, [first, more, fromStart]] of reads.entries()) {
        last = Math.min(first + more, 99);
        readahead.touched(n % 100);
        readahead.observe(first, last, fromStart);
        fine &&= readahead.unused <= Math.max(2, (readahead.unused + n + 1) * 0.3);
      }
      return fine;
    },
  );
  fc.assert(property, { numRuns: 500 });
});
