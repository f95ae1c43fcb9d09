/**
 * How many transfers to have in flight at once. A far store needs many to fill a line that a few fill to a near one; and many
 * cost a near one nothing, unless it gets slower the more it has to do at once. So it begins with the most, tries half or
 * twice as many now and then, and stays with what moves clearly more.
 */

export const LANES_MIN = 16;
export const LANES_MAX = 64;

/** Another number must move this much more to be worth it: below it is what else goes on on the machine. */
const GAIN_MIN = 1.15;
/** Rounds, each as many transfers as there are lanes, that a rate is taken over. The one after a change does not count. */
const MEASURED_ROUNDS = 2;
/** Until another number is tried after one that was not worth it. */
const HELD_ROUNDS = 40;

export class Lanes {
  #limit = LANES_MAX;
  /** What was tried last came from this number, which moved so many bytes a millisecond. */
  #before: { readonly limit: number; readonly rate: number } | undefined;
  #isRising = false;
  /** Rounds that do not count; the first one opens connections. */
  #skip = 1;
  #measured = 0;
  #transfers = 0;
  #bytes = 0;
  #sinceMs: number;
  readonly #now: () => number;

  /** `now` in milliseconds, for tests. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#sinceMs = now();
  }

  /** Transfers that may be in flight now. */
  get limit(): number {
    return this.#limit;
  }

  /** One transfer has ended that moved `bytes`. */
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

  /** Stays with the number for now; the next trial goes the other way. */
  #hold(): void {
    this.#isRising = !this.#isRising;
    this.#skip = HELD_ROUNDS;
  }
}
