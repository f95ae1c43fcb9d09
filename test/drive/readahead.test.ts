import fc from 'fast-check';
import t from 'tap';
import { Readahead } from '../../src/drive/readahead.ts';

function make(entries = 1000, windowMax = 16) {
  const fetched: number[] = [];
  const readahead = new Readahead({ entries, windowMax, fetch: (entry) => fetched.push(entry) });
  return { readahead, fetched, read: (entry: number) => readahead.observe(entry, entry) };
}

t.test('the window doubles while reads go on in order, up to its bound', async (t) => {
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

t.test('the end of the drive ends it', async (t) => {
  const { fetched, read } = make(5);
  for (let entry = 0; entry < 5; entry++) read(entry);
  t.same(fetched, [2, 3, 4]);
});

t.test('reading the same chunk in small pieces is one step', async (t) => {
  const { fetched, read } = make();
  for (const entry of [0, 0, 0, 1, 1, 1, 1]) read(entry);
  t.same(fetched, [2]);
});

t.test('one large read is one step, not a sequence', async (t) => {
  const { fetched, readahead } = make();
  readahead.observe(10, 40);
  t.same(fetched, []);
  readahead.observe(41, 60);
  t.same(fetched, [61]);
});

t.test('requests that overtake each other do not break a sequence', async (t) => {
  const { fetched, read } = make();
  for (const entry of [0, 1, 2, 4, 3, 6, 5, 7]) read(entry);
  t.same(fetched, [...new Set(fetched)], 'nothing is asked for twice');
  t.ok(fetched.includes(20));
});

t.test('a jump starts anew, with no window', async (t) => {
  const { fetched, read } = make();
  for (let entry = 0; entry < 6; entry++) read(entry);
  const before = fetched.length;
  read(500);
  t.equal(fetched.length, before);
  read(501);
  t.same(fetched.slice(before), [502]);
});

t.test('eight sequences are followed, the ninth displaces the oldest', async (t) => {
  const { fetched, read } = make();
  const starts = Array.from({ length: 8 }, (_, n) => n * 100);
  for (const start of starts) read(start);
  for (const start of starts) read(start + 1);
  t.same(
    fetched,
    starts.map((start) => start + 2),
  );
  read(900);
  read(2);
  t.notOk(fetched.includes(3), 'the first one was displaced');
  read(102);
  t.notOk(fetched.includes(103), 'and by coming back it displaced the second');
});

t.test('property: nothing is asked for behind the end, nor more ahead than the window', async () => {
  const property = fc.property(
    fc.array(fc.tuple(fc.nat(99), fc.nat(5)), { maxLength: 200 }),
    fc.integer({ min: 1, max: 16 }),
    (reads, windowMax) => {
      let last = 0;
      let fine = true;
      const fetch = (entry: number) => {
        fine &&= entry > last && entry <= last + windowMax && entry < 100;
      };
      const readahead = new Readahead({ entries: 100, windowMax, fetch });
      for (const [first, more] of reads) {
        last = Math.min(first + more, 99);
        readahead.observe(first, last);
      }
      return fine;
    },
  );
  fc.assert(property, { numRuns: 500 });
});
