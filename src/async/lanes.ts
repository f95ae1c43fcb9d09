/**
 * How many transfers to have in flight at once: as many as the line gives more for. A near store is saturated by a few, and a
 * far one needs several times as many to fill the same line; so the number doubles for as long as that moves more bytes a
 * second, and goes back when it did not.
 */

export const LANES_MIN = 16;
export const LANES_MAX = 64;

/** Twice the lanes must move this much more, or they are not worth it. */
const GAIN_MIN = 1.15;
/** Rounds, each as many transfers as there are lanes, that a rate is taken over. The one after a change does not count. */
const MEASURED_ROUNDS = 2;
/** Until more lanes that were not worth it are tried again. */
const HELD_ROUNDS = 40;

export class Lanes {
  #limit = LANES_MIN;
  /** Bytes a millisecond with half as many lanes; undefined when that is not known. */
  #rateBefore: number | undefined;
  /** Rounds that do not count. */
  #skip = 0;
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
    if (this.#skip > 0) {
      this.#skip--;
      this.#measured = 0;
    } else if (++this.#measured < MEASURED_ROUNDS) return;
    else this.#decide(this.#bytes / Math.max(this.#now() - this.#sinceMs, 0.001));
    this.#measured = 0;
    this.#bytes = 0;
    this.#sinceMs = this.#now();
  }

  #decide(rate: number): void {
    const wasWorthIt = this.#rateBefore === undefined || rate >= this.#rateBefore * GAIN_MIN;
    if (!wasWorthIt) {
      this.#limit /= 2;
      this.#rateBefore = undefined;
      this.#skip = HELD_ROUNDS;
    } else if (this.#limit < LANES_MAX) {
      this.#limit *= 2;
      this.#rateBefore = rate;
      this.#skip = 1;
    } else this.#rateBefore = undefined;
  }
}
