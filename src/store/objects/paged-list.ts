/**
 * A list that is fetched page by page, as from S3. Unlike a generator, it survives a failed page: a caller can retry
 * that page alone, so nothing is lost or repeated.
 */
import type { ObjectInfo } from './object-store.ts';

export interface ListPage {
  readonly infos: readonly ObjectInfo[];
  /** Where the next page begins; undefined after the last one. */
  readonly next: string | undefined;
}

export class PagedList implements AsyncIterable<readonly ObjectInfo[]> {
  /** Fetches the page at the previous page's `next`, or the first page. May be called again after it rejected. */
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
