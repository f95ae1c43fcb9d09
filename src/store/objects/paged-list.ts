/**
 * A list that is asked for page by page, as S3 gives it. Other than what a generator gives, it survives a page that
 * failed: who wants to try again asks for that page alone, so nothing is lost and nothing comes twice.
 */
import type { ObjectInfo } from './object-store.ts';

export interface ListPage {
  readonly infos: readonly ObjectInfo[];
  /** Where the next page begins; undefined after the last one. */
  readonly next: string | undefined;
}

export class PagedList implements AsyncIterable<readonly ObjectInfo[]> {
  /** The page at `next` of the one before, or the first one. May be called again after it rejected. */
  readonly page: (at: string | undefined) => Promise<ListPage>;

  constructor(page: (at: string | undefined) => Promise<ListPage>) {
    this.page = page;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<readonly ObjectInfo[]> {
    let at: string | undefined;
    do {
      const { infos, next } = await this.page(at);
      yield infos;
      at = next;
    } while (at !== undefined);
  }
}
