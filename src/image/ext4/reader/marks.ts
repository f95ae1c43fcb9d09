/** A byte of marks, or a number, for each of very many numbers, in pages that are there only where any was ever set. */

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

/** A number below 2^32 for each of very many others; 0 where none was set. */
export class PagedNumbers {
  readonly #pages = new Map<number, Uint32Array>();

  get(number: number): number {
    return this.#pages.get(Math.floor(number / PAGE_NUMBERS))?.[number % PAGE_NUMBERS] ?? 0;
  }

  set(number: number, value: number): void {
    const index = Math.floor(number / PAGE_NUMBERS);
    let page = this.#pages.get(index);
    if (!page) {
      page = new Uint32Array(PAGE_NUMBERS);
      this.#pages.set(index, page);
    }
    page[number % PAGE_NUMBERS] = value;
  }
}
