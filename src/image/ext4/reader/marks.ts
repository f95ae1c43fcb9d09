/** A byte of marks for each of very many numbers, in pages that are allocated only where a number is marked. */

const PAGE_NUMBERS = 2048;

export class PagedMarks {
  readonly #pages = new Map<number, Uint8Array>();

  get(number: number): number {
    return this.#pages.get(Math.floor(number / PAGE_NUMBERS))?.[number % PAGE_NUMBERS] ?? 0;
  }

  add(number: number, marks: number): void {
    const index = Math.floor(number / PAGE_NUMBERS);
    let page = this.#pages.get(index);
    if (!page) {
      page = new Uint8Array(PAGE_NUMBERS);
      this.#pages.set(index, page);
    }
    page[number % PAGE_NUMBERS]! |= marks;
  }
}
