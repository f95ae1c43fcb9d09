/** The best of very many, in the memory of twice as many as are wanted. */

export class Best<T> {
  readonly #max: number;
  readonly #compare: (a: T, b: T) => number;
  readonly #kept: T[] = [];
  #added = 0;

  /** Keeps `max`; those that `compare` sorts to the front are better. */
  constructor(max: number, compare: (a: T, b: T) => number) {
    this.#max = max;
    this.#compare = compare;
  }

  add(one: T): void {
    this.#added++;
    this.#kept.push(one);
    if (this.#kept.length >= 2 * this.#max + 64) this.#cut();
  }

  /** The best, in order, and how many others there were. */
  take(): { best: T[]; more: number } {
    this.#cut();
    return { best: [...this.#kept], more: this.#added - this.#kept.length };
  }

  #cut(): void {
    this.#kept.sort(this.#compare);
    this.#kept.length = Math.min(this.#kept.length, this.#max);
  }
}
