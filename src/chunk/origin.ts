/**
 * The store as the last tier. It is only read: workers never write to the origin. The owner of a bad object must repair
 * it there; because nothing about it is remembered here, it is good again without a restart.
 *
 * A store in a file system has a bounded share of the thread pool: an abandoned read keeps its thread until the file
 * system returns. Hung reads move to extra threads, which are shared fairly too, so that hung objects (one disk of many
 * perhaps) do not use up the threads of the others. An object whose read hangs is not read a second time: later callers
 * wait for the same read.
 */
import { withDeadline } from '../async/deadline.ts';
import type { ReadContext } from '../async/read-context.ts';
import { codeOf, LazydiskError, withContext } from '../errors.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../format/chunk-id.ts';
import type { Store } from '../store/store.ts';
import { Places } from './places.ts';
import type { ChunkTier, SealedLoan } from './tier.ts';

/** What the tier uses of a store. */
export type ChunkSource = Pick<Store, 'url' | 'getChunkOnce'>;

export interface OriginTierOptions {
  /** For a store whose reads take a thread each: how many threads it may use, and how many more for reads that hang. */
  readonly threads?: { readonly reads: number; readonly hung: number };
}

/** Buffers kept for the next read from the network; fresh ones cost page faults and garbage collection. */
const SPARE_MAX = 16;

export class OriginTier implements ChunkTier {
  readonly name = 'origin';
  readonly #store: ChunkSource;
  readonly #threads: { readonly reads: Places; readonly hung: Places } | undefined;
  readonly #inThreads = new Map<ChunkId, ThreadRead>();
  readonly #spare: Buffer[] = [];

  /** The store is on loan: `close` leaves it open. */
  constructor(store: ChunkSource, { threads }: OriginTierOptions = {}) {
    this.#store = store;
    if (!threads) return;
    this.#threads = {
      reads: new Places({ name: `${store.url}: threads`, places: threads.reads }),
      hung: new Places({ name: `${store.url}: threads of hung reads`, places: threads.hung }),
    };
  }

  /** Rejects with TIMEOUT, ABORTED, UNAVAILABLE, or the store's error; messages name the store. */
  async get(id: ChunkId, _sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    try {
      if (!this.#threads) return await this.#fromNetwork(id, ctx);
      const read = await this.#inThread(this.#threads.reads, id, ctx);
      const bytes = await withDeadline(read.bytes, ctx, `${this.#store.url}: no answer`).catch((error) => {
        if (codeOf(error) === 'TIMEOUT') this.#hangs(read);
        throw error;
      });
      return bytes && { bytes, release() {} };
    } catch (error) {
      if (error instanceof LazydiskError) throw error;
      throw withContext(error, this.#store.url, 'UNAVAILABLE');
    }
  }

  async put(): Promise<boolean> {
    return false;
  }

  discard(): void {}

  async close(): Promise<void> {}

  async #fromNetwork(id: ChunkId, ctx: ReadContext): Promise<SealedLoan | undefined> {
    const controller = new AbortController();
    const into = this.#spare.pop() ?? Buffer.allocUnsafeSlow(SEALED_BYTES_MAX);
    const release = (): void => {
      if (this.#spare.length < SPARE_MAX) this.#spare.push(into);
    };
    // Retries are decided above (daemon/origin.ts).
    const asked = this.#store.getChunkOnce(id, { signal: controller.signal, into });
    try {
      const bytes = await withDeadline(asked, ctx, `${this.#store.url}: no answer`);
      if (!bytes) release();
      return bytes && { bytes, release };
    } catch (error) {
      // The store may still be writing into it.
      asked.then(release, release);
      controller.abort();
      throw error;
    }
  }

  /**
   * Resolves when there is a thread for it. The read is wrapped in an object, because a bare promise would be awaited
   * too.
   */
  async #inThread(threads: Places, id: ChunkId, ctx: ReadContext): Promise<ThreadRead> {
    const place = this.#inThreads.has(id) ? undefined : await threads.enter(ctx);
    const known = this.#inThreads.get(id);
    if (known) {
      if (place) threads.leave(place);
      return known;
    }
    const read: ThreadRead = {
      id,
      bytes: this.#store.getChunkOnce(id),
      leave: () => threads.leave(place!),
      ctx,
      isHung: false,
    };
    this.#inThreads.set(id, read);
    const ended = () => {
      this.#inThreads.delete(id);
      read.leave();
    };
    read.bytes.then(ended, ended);
    return read;
  }

  /**
   * Moves a hung read to the extra threads and frees its place, unless they are full or its drive has used its share.
   */
  #hangs(read: ThreadRead): void {
    const { hung } = this.#threads!;
    if (read.isHung || this.#inThreads.get(read.id) !== read) return;
    const place = hung.tryEnter(read.ctx);
    if (!place) return;
    read.isHung = true;
    read.leave();
    read.leave = () => hung.leave(place);
  }
}

/** A read in the thread pool. */
interface ThreadRead {
  readonly id: ChunkId;
  readonly bytes: Promise<Buffer | undefined>;
  /** Of the first caller. */
  readonly ctx: ReadContext;
  isHung: boolean;
  /** Gives back the place that it holds at present. */
  leave: () => void;
}
