/**
 * The store as the last tier. It is only read: workers never write to the origin, and a bad object there is for its
 * owner to mend, after which it is good again without a restart here, so nothing is remembered about it.
 */
import { errorText, LazydiskError } from '../errors.ts';
import type { ChunkId } from '../format/chunk-id.ts';
import type { Store } from '../store/store.ts';
import { withDeadline } from './deadline.ts';
import type { ChunkTier, ReadContext, SealedLoan } from './tier.ts';

export class OriginTier implements ChunkTier {
  readonly name = 'origin';
  readonly #store: Store;

  /** The store is lent: `close` leaves it open. */
  constructor(store: Store) {
    this.#store = store;
  }

  /** Rejects with TIMEOUT, ABORTED, UNAVAILABLE, or what the store says; messages name the store. */
  async get(id: ChunkId, _sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    const controller = new AbortController();
    // Who tries again, and when, is decided above (daemon/origin.ts).
    const asked = this.#store.getChunk(id, { signal: controller.signal, tries: 1 });
    try {
      const bytes = await withDeadline(asked, ctx, `${this.#store.url}: no answer`);
      return bytes && { bytes, release() {} };
    } catch (error) {
      controller.abort();
      if (error instanceof LazydiskError) throw error;
      const text = `${this.#store.url}: ${errorText(error)}`;
      throw new LazydiskError('UNAVAILABLE', text, { cause: error });
    }
  }

  async put(): Promise<void> {}

  discard(): void {}

  async close(): Promise<void> {}
}
