/** How many transfers are in flight, on lines that are simulated: with a time there and back, and a width. */
import t from 'tap';
import { LANES_MAX, LANES_MIN, Lanes } from '../../src/async/lanes.ts';

const BYTES = 256 * 1024;

/** A line on which `lanes.limit` transfers are always in flight; gives the limits that it saw. */
class Line {
  nowMs = 0;
  rttMs: number;
  bytesPerMs: number;
  readonly lanes = new Lanes(() => this.nowMs);
  readonly seen = new Set<number>();

  constructor(rttMs: number, bytesPerMs: number) {
    this.rttMs = rttMs;
    this.bytesPerMs = bytesPerMs;
  }

  /** That many rounds of transfers, all of one round at the same time. */
  run(rounds: number): number {
    for (let round = 0; round < rounds; round++) {
      const { limit } = this.lanes;
      this.seen.add(limit);
      this.nowMs += Math.max(this.rttMs, (limit * BYTES) / this.bytesPerMs);
      for (let n = 0; n < limit; n++) this.lanes.ended(BYTES);
    }
    return this.lanes.limit;
  }
}

t.test('a far store gets as many as help, soon', async (t) => {
  const line = new Line(30, 1e6);
  t.equal(line.run(0), LANES_MIN);
  t.equal(line.run(8), LANES_MAX, 'within some hundred transfers');
  t.equal(line.run(200), LANES_MAX, 'and stays there');
});

t.test('a store that a few saturate is tried with more now and then, and keeps the few', async (t) => {
  const line = new Line(0.1, 250_000);
  let most = 0;
  for (let round = 0; round < 400; round++) if (line.run(1) > LANES_MIN) most++;
  t.same([...line.seen], [LANES_MIN, 2 * LANES_MIN]);
  t.ok(most < 400 / 8, `${most} rounds of 400 with more`);
});

t.test('a line that changes is found out', async (t) => {
  const line = new Line(0.1, 250_000);
  line.run(50);
  line.rttMs = 60;
  line.bytesPerMs = 1e6;
  line.run(60);
  t.equal(line.lanes.limit, LANES_MAX);
});

t.test('transfers of nothing, in no time, change nothing but the number', async (t) => {
  const lanes = new Lanes(() => 0);
  for (let n = 0; n < 10_000; n++) lanes.ended(0);
  t.ok(lanes.limit >= LANES_MIN && lanes.limit <= LANES_MAX);
});
