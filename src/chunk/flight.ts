/**
 * One chunk on its way into memory, and all the callers that wait for it. A flight is the context that its tiers see:
 * its class and deadline move up as more urgent callers join, and it goes in the turn of any drive that waits. Each
 * caller waits under its own deadline and signal, and leaves without disturbing the others; when the last one has left,
 * the flight is cancelled.
 */
import { deadlineError, type Ended, onDeadline } from '../async/deadline.ts';
import { isMoreUrgent, type ReadClass, type ReadContext } from '../async/read-context.ts';
import { LazydiskError } from '../errors.ts';
import type { ChunkRef } from '../format/chunk-id.ts';
import type { PinnedChunk, Slot } from './slab.ts';
import type { TierName } from './tier.ts';

/** What a caller gets: the chunk, pinned for it alone, and where it came from. */
export interface ChunkRead {
  readonly chunk: PinnedChunk;
  readonly tier: TierName;
  /** Sealed bytes that this read moved: 0 from memory, and for all callers of one flight but the first. */
  readonly fetchedBytes: number;
}

interface Waiter {
  readonly resolve: (read: ChunkRead) => void;
  readonly reject: (error: LazydiskError) => void;
  readonly stop: () => void;
}

export class Flight implements ReadContext {
  /** The chunk's key in ChunkMemory. */
  readonly key: string;
  readonly ref: ChunkRef;
  readonly drive: string;
  /**
   * What the tiers answered so far, for errors: `disk: not there; origin: asked`. Empty while it waits for its turn.
   */
  progress = '';
  /** Grows as callers of other drives join. */
  readonly drives: Set<string>;
  #class: ReadClass;
  #deadline: number;
  #landed = false;
  readonly #promotionListeners = new Set<() => void>();
  readonly #waiters = new Set<Waiter>();
  readonly #controller = new AbortController();
  readonly #onAbandoned: (flight: Flight) => void;

  constructor(key: string, ref: ChunkRef, ctx: ReadContext, onAbandoned: (flight: Flight) => void) {
    this.key = key;
    this.ref = ref;
    this.drive = ctx.drive ?? '';
    this.drives = new Set([this.drive]);
    this.#class = ctx.class;
    this.#deadline = ctx.deadline;
    this.#onAbandoned = onAbandoned;
  }

  get class(): ReadClass {
    return this.#class;
  }

  get deadline(): number {
    return this.#deadline;
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  onPromote(listener: () => void): () => void {
    this.#promotionListeners.add(listener);
    return () => this.#promotionListeners.delete(listener);
  }

  /** Waits for the chunk. Rejects with the flight's failure, or with TIMEOUT or ABORTED as `ctx` says. */
  join(ctx: ReadContext): Promise<ChunkRead> {
    this.#deadline = Math.max(this.#deadline, ctx.deadline);
    const isPromoted = isMoreUrgent(ctx.class, this.#class);
    const isShared = ctx.drive !== undefined && !this.drives.has(ctx.drive);
    if (isPromoted) this.#class = ctx.class;
    if (isShared) this.drives.add(ctx.drive);
    if (isPromoted || isShared) for (const listener of this.#promotionListeners) listener();
    return new Promise((resolve, reject) => {
      const stop = onDeadline(ctx, (why) => {
        this.#waiters.delete(waiter);
        reject(this.#late(why));
        if (this.#waiters.size === 0) this.cancel();
      });
      const waiter: Waiter = { resolve, reject, stop };
      this.#waiters.add(waiter);
    });
  }

  /** Resolves every waiter with the chunk; each gets its own pin. */
  land(slot: Slot, tier: TierName, fetchedBytes: number): void {
    let unattributedBytes = fetchedBytes;
    for (const waiter of this.#finish()) {
      waiter.resolve({ chunk: slot.pin(), tier, fetchedBytes: unattributedBytes });
      unattributedBytes = 0;
    }
  }

  fail(error: LazydiskError): void {
    for (const waiter of this.#finish()) waiter.reject(error);
  }

  /** Called when no caller waits any longer, or when the reader closes; remaining waiters get ABORTED. */
  cancel(): void {
    if (this.#landed) return;
    this.fail(new LazydiskError('ABORTED', `chunk ${this.ref.id}: the read was cancelled`));
    this.#controller.abort();
    this.#onAbandoned(this);
  }

  #late(why: Ended): LazydiskError {
    const what = `chunk ${this.ref.id} (${this.progress || 'waiting for its turn'}): not read`;
    if (why === 'signal' || this.progress) return deadlineError(why, what);
    // No tier was slow: the load was more than the tiers could serve in this time.
    return new LazydiskError('OVERLOAD', `${what} before the deadline`);
  }

  #finish(): Waiter[] {
    this.#landed = true;
    const waiters = [...this.#waiters];
    this.#waiters.clear();
    for (const waiter of waiters) waiter.stop();
    return waiters;
  }
}
