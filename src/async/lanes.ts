/**
 * How many transfers to have in flight at once. A distant store needs many to fill a link that a nearby one fills with
 * a few. Many cost a nearby store nothing, unless it slows down under concurrent requests. So this starts at the
 * maximum, tries half or twice as many now and then, and keeps a number that is clearly faster.
 */

export const LANES_MIN = 16;
export const LANES_MAX = 64;

/** Another number must be this much faster to be worth it; smaller differences come from other work on the machine. */
const GAIN_MIN = 1.15;
/**
 * Rounds that a rate is measured over, each of as many transfers as there are lanes. The round after a change does not
 * count.
 */
const MEASURED_ROUNDS = 2;
/** Rounds before the next trial, after one that was not worth it. */
const HELD_ROUNDS = 40;

export class Lanes {
  #limit = LANES_MAX;
  /** While a trial runs: the number before it, and its rate in bytes per millisecond. */
  #before: { readonly limit: number; readonly rate: number } | undefined;
  #isRising = false;
  /** Rounds to skip; the first round opens connections. */
  #skip = 1;
  #measured = 0;
  #transfers = 0;
  #bytes = 0;
  #sinceMs: number;
  readonly #now: () => number;

  /** `now` is a clock in milliseconds, for tests. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#sinceMs = now();
  }

  /** Transfers that may be in flight now. */
  get limit(): number {
    return this.#limit;
  }

  /** Called when a transfer that moved `bytes` has finished. */
  ended(bytes: number): void {
    this.#bytes += bytes;
    this.#transfers++;
    if (this.#transfers < this.#limit) return;
    this.#transfers = 0;
    if (this.#skip > 0) this.#skip--;
    else if (++this.#measured < MEASURED_ROUNDS) return;
    else this.#decide(this.#bytes / Math.max(this.#now() - this.#sinceMs, 0.001));
    this.#measured = 0;
    this.#bytes = 0;
    this.#sinceMs = this.#now();
  }

  #decide(rate: number): void {
    const before = this.#before;
    this.#before = undefined;
    if (before && rate < before.rate * GAIN_MIN) {
      this.#limit = before.limit;
      this.#hold();
      return;
    }
    const next = this.#isRising ? this.#limit * 2 : this.#limit / 2;
    if (next < LANES_MIN || next > LANES_MAX) {
      this.#hold();
      return;
    }
    this.#before = { limit: this.#limit, rate };
    this.#limit = next;
    this.#skip = 1;
  }

  /** Keeps the current number for now; the next trial goes the other way. */
  #hold(): void {
    this.#isRising = !this.#isRising;
    this.#skip = HELD_ROUNDS;
  }
}
