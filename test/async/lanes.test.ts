/** How many transfers are in flight, on simulated links with a round-trip time and a bandwidth. */
import t from 'tap';
import { LANES_MAX, LANES_MIN, Lanes } from '../../src/async/lanes.ts';

const BYTES = 256 * 1024;

/** A link on which `lanes.limit` transfers are always in flight; records the limits that it saw. */
class Line {
  nowMs = 0;
  rttMs: number;
  bytesPerMs: number;
  /** With more transfers than this at once, each further one slows all of them down. */
  atOnceMax: number;
  readonly lanes = new Lanes(() => this.nowMs);
  readonly seen = new Set<number>();

  constructor(rttMs: number, bytesPerMs: number, atOnceMax = LANES_MAX) {
    this.rttMs = rttMs;
    this.bytesPerMs = bytesPerMs;
    this.atOnceMax = atOnceMax;
  }

  /** Runs this many rounds of transfers; those of one round run at the same time. */
  run(rounds: number): number {
    for (let round = 0; round < rounds; round++) {
      const { limit } = this.lanes;
      this.seen.add(limit);
      const slowdown = Math.max(1, limit / this.atOnceMax);
      this.nowMs += Math.max(this.rttMs, (limit * BYTES * slowdown) / this.bytesPerMs);
      for (let n = 0; n < limit; n++) this.lanes.ended(BYTES);
    }
    return this.lanes.limit;
  }
}

t.test('a distant store gets the maximum from the start, and keeps it', async (t) => {
  const line = new Line(30, 1e6);
  t.equal(line.run(0), LANES_MAX);
  let fewer = 0;
  for (let round = 0; round < 400; round++) if (line.run(1) < LANES_MAX) fewer++;
  t.same([...line.seen], [LANES_MAX, LANES_MAX / 2]);
  t.ok(fewer < 400 / 8, `${fewer} rounds of 400 with fewer`);
});

t.test('a store that a few transfers saturate keeps many, because it is as fast with them', async (t) => {
  t.equal(new Line(0.1, 250_000).run(400), LANES_MAX);
});

t.test('a store that many transfers slow down gets few, and is tried with more now and then', async (t) => {
  const line = new Line(0.1, 250_000, LANES_MIN);
  t.equal(line.run(10), LANES_MIN, 'within some hundred transfers');
  line.seen.clear();
  let more = 0;
  for (let round = 0; round < 400; round++) if (line.run(1) > LANES_MIN) more++;
  t.same([...line.seen], [LANES_MIN, 2 * LANES_MIN]);
  t.ok(more < 400 / 8, `${more} rounds of 400 with more`);
});

t.test('the round that opens connections does not count', async (t) => {
  const line = new Line(300, 1e6);
  line.run(1);
  line.rttMs = 30;
  t.equal(line.run(400), LANES_MAX);
});

t.test('a change of the store is detected, in both directions', async (t) => {
  const line = new Line(0.1, 250_000, LANES_MIN);
  t.equal(line.run(50), LANES_MIN);
  line.rttMs = 60;
  line.bytesPerMs = 1e6;
  line.atOnceMax = LANES_MAX;
  t.equal(line.run(120), LANES_MAX);
  line.rttMs = 0.1;
  line.bytesPerMs = 250_000;
  line.atOnceMax = LANES_MIN;
  t.equal(line.run(120), LANES_MIN);
});

t.test('empty transfers that take no time keep the number within its limits', async (t) => {
  const lanes = new Lanes(() => 0);
  for (let n = 0; n < 10_000; n++) lanes.ended(0);
  t.ok(lanes.limit >= LANES_MIN && lanes.limit <= LANES_MAX);
});
