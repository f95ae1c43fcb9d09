/**
 * A bound on how much runs at once, shared fairly: the bulkhead between drives. Some places are kept for demand, so
 * that a waiting guest never queues behind readahead. No drive gets all of them: it may hold up to SHARE times as many
 * as are free. So one drive alone gets three quarters, two together six sevenths, and there is always a place for the
 * next one, however long the taken places are held.
 * Source of the idea: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches",
 * IEEE/ACM Transactions on Networking, 1998.
 */
import { deadlineError } from '../async/deadline.ts';
import type { ReadClass, ReadContext } from '../async/read-context.ts';
import { ownersOf, UrgencyQueue } from '../async/urgency-queue.ts';
import { LazydiskError } from '../errors.ts';
import type { SealedLoan } from './tier.ts';

const SHARE = 3;

export interface PlacesOptions {
  /** For error texts: `origin`. */
  readonly name: string;
  /** For all classes together. */
  readonly places: number;
  /** Readahead and prefetch together may take no more than this. Default three quarters of `places`. */
  readonly backgroundMax?: number;
  /** Prefetch may take no more than this. Default a quarter of `places`. */
  readonly prefetchMax?: number;
  /**
   * Reads that may wait for a place; beyond that, the newest read of the drive with the most is refused. Default 4096.
   */
  readonly queueMax?: number;
}

/** Held from `enter` to `leave`. A separate object, because one context may ask twice. */
export interface Place {
  readonly ctx: ReadContext;
  /** The drive that it is charged to. */
  readonly owner: string;
}

export class Places {
  readonly #name: string;
  readonly #places: number;
  readonly #backgroundMax: number;
  readonly #prefetchMax: number;
  readonly #queueMax: number;
  readonly #taken = new Set<Place>();
  /** Places by drive. */
  readonly #held = new Map<string, number>();
  readonly #queue = new UrgencyQueue<Place>(() => this.#admit());

  constructor(options: PlacesOptions) {
    const { name, places } = options;
    this.#name = name;
    this.#places = places;
    this.#backgroundMax = options.backgroundMax ?? Math.max(1, Math.floor(places * 0.75));
    this.#prefetchMax = options.prefetchMax ?? Math.max(1, Math.floor(places * 0.25));
    this.#queueMax = options.queueMax ?? 4096;
  }

  get taken(): number {
    return this.#taken.size;
  }

  get waiting(): number {
    return this.#queue.size;
  }

  /** Whether demand reads wait here. */
  get holdsDemand(): boolean {
    return this.#queue.urgency === 'demand';
  }

  /** Places that readahead and prefetch hold now. */
  get background(): number {
    return this.#count().background;
  }

  /** A place at once, if there is one for this read that no other waits for. */
  tryEnter(ctx: ReadContext): Place | undefined {
    const owner = ownersOf(ctx)[0] ?? '';
    // A read waits only if its class or drive has no place; otherwise it is admitted before this returns.
    if (!this.#hasShare(owner)) return undefined;
    if (ctx.class !== 'demand' && !this.#openClasses()[ctx.class]) return undefined;
    return this.#take(ctx, owner);
  }

  /** Rejects with TIMEOUT or ABORTED while it waits, OVERLOAD if too many wait. */
  async enter(ctx: ReadContext): Promise<Place> {
    const place = this.tryEnter(ctx);
    if (place) return place;
    const waiting = this.#queue.wait(ctx, (why) =>
      deadlineError(why, `${this.#name}: no place among ${this.#places} reads`),
    );
    if (this.#queue.size > this.#queueMax) this.#refuseLast();
    return waiting;
  }

  /** Called exactly once for each place. */
  leave(place: Place): void {
    this.#taken.delete(place);
    const held = this.#held.get(place.owner)! - 1;
    if (held === 0) this.#held.delete(place.owner);
    else this.#held.set(place.owner, held);
    this.#admit();
  }

  /** `loan` tied to `place`, which is freed when the loan is returned, or when only its bytes are still needed. */
  withPlace(place: Place, loan: SealedLoan): SealedLoan {
    let isHeld = true;
    const freePlace = () => {
      if (isHeld) this.leave(place);
      isHeld = false;
    };
    const release = () => {
      loan.release();
      freePlace();
    };
    return { bytes: loan.bytes, freePlace, release };
  }

  /** Refuses all that wait. */
  refuseAll(error: LazydiskError): void {
    this.#queue.refuseAll(error);
  }

  #take(ctx: ReadContext, owner: string): Place {
    const place = { ctx, owner };
    this.#taken.add(place);
    this.#held.set(owner, (this.#held.get(owner) ?? 0) + 1);
    return place;
  }

  #admit(): void {
    while (this.#queue.size > 0) {
      let owner = '';
      let isOpen: { readonly [C in ReadClass]: boolean } | undefined;
      const next = this.#queue.next((readClass, drive) => {
        owner = drive;
        if (!this.#hasShare(drive)) return false;
        isOpen ??= this.#openClasses();
        return isOpen[readClass];
      });
      if (!next) return;
      next.give(this.#take(next.ctx, owner));
    }
  }

  #hasShare(owner: string): boolean {
    return (this.#held.get(owner) ?? 0) < SHARE * (this.#places - this.#taken.size);
  }

  /** The classes that may have one more place, provided one is free. */
  #openClasses(): { readonly [C in ReadClass]: boolean } {
    const { background, prefetches } = this.#count();
    const readahead = background < this.#backgroundMax;
    return { demand: true, readahead, prefetch: readahead && prefetches < this.#prefetchMax };
  }

  /** Counted on each call, because reads that hold a place may have been promoted since. */
  #count(): { background: number; prefetches: number } {
    let background = 0;
    let prefetches = 0;
    for (const { ctx } of this.#taken) {
      if (ctx.class !== 'demand') background++;
      if (ctx.class === 'prefetch') prefetches++;
    }
    return { background, prefetches };
  }

  #refuseLast(): void {
    const why = `${this.#name}: ${this.#queueMax} reads wait for a place already`;
    this.#queue.last()!.refuse(new LazydiskError('OVERLOAD', why));
  }
}
