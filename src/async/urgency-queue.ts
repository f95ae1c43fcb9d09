/**
 * The order in which reads that wait for one thing are served: demand, then readahead, then prefetch. Within a class
 * the drives take turns, and within a drive it is first come, first served. So a drive with a thousand reads delays a
 * single read of another drive by one turn. A read that several drives wait for is in the queue of each, and goes at
 * the first turn of any of them. A waiting read leaves at its deadline or when it is cancelled.
 */
import type { LazydiskError } from '../errors.ts';
import { type Ended, onDeadline } from './deadline.ts';
import { BY_URGENCY, type ReadClass, type ReadContext } from './read-context.ts';
import { Turns } from './turns.ts';

/** The number of drives in whose turn one read may go; any further drives only wait with it. */
const OWNERS_MAX = 16;

/** A waiting read. It leaves the queue with `give` or `refuse`. */
export interface Ticket<T> {
  readonly ctx: ReadContext;
  readonly sealedBytes: number;
  give(value: T): void;
  refuse(error: LazydiskError): void;
}

interface Filed {
  readonly readClass: ReadClass;
  readonly owners: readonly string[];
}

/** The drives that a read is charged to; '' where none is named. */
export function ownersOf(ctx: Pick<ReadContext, 'drive' | 'drives'>): readonly string[] {
  if (!ctx.drives) return [ctx.drive ?? ''];
  const owners: string[] = [];
  for (const drive of ctx.drives) {
    owners.push(drive);
    if (owners.length === OWNERS_MAX) break;
  }
  return owners;
}

export class UrgencyQueue<T> {
  readonly #onMoved: () => void;
  readonly #lines: Record<ReadClass, Turns<string, Ticket<T>>> = {
    demand: new Turns(),
    readahead: new Turns(),
    prefetch: new Turns(),
  };
  readonly #filed = new Map<Ticket<T>, Filed>();

  /** `onMoved` is called when a waiting read has become more urgent or is shared with another drive: it may go now. */
  constructor(onMoved: () => void) {
    this.#onMoved = onMoved;
  }

  get size(): number {
    return this.#filed.size;
  }

  /** The most urgent class of the waiting reads; undefined if there are none. */
  get urgency(): ReadClass | undefined {
    return BY_URGENCY.find((each) => !this.#lines[each].isEmpty);
  }

  /** Resolves with the value given to its ticket. Rejects when it is refused, or with `late` when `ctx` ends. */
  wait(ctx: ReadContext, late: (why: Ended) => LazydiskError, sealedBytes = 0): Promise<T> {
    return new Promise((resolve, reject) => {
      const leave = () => {
        stopMoves?.();
        stopDeadline();
        this.#remove(ticket);
      };
      const ticket: Ticket<T> = {
        ctx,
        sealedBytes,
        give: (value) => {
          leave();
          resolve(value);
        },
        refuse: (error) => {
          leave();
          reject(error);
        },
      };
      const stopMoves = ctx.onPromote?.(() => {
        this.#remove(ticket);
        this.#file(ticket);
        this.#onMoved();
      });
      const stopDeadline = onDeadline(ctx, (why) => ticket.refuse(late(why)));
      this.#file(ticket);
    });
  }

  /**
   * The next ticket among those that `may` allows. This uses up the turn of its drive; the ticket must be given or
   * refused.
   */
  next(may: (readClass: ReadClass, owner: string) => boolean = () => true): Ticket<T> | undefined {
    for (const readClass of BY_URGENCY) {
      const ticket = this.#lines[readClass].take((owner) => may(readClass, owner));
      if (ticket) return ticket;
    }
    return undefined;
  }

  /** The newest of the least urgent reads, of the drive that has the most of them. */
  last(): Ticket<T> | undefined {
    const readClass = BY_URGENCY.findLast((each) => !this.#lines[each].isEmpty);
    return readClass && this.#lines[readClass].lastOfLongest();
  }

  refuseAll(error: LazydiskError): void {
    for (const ticket of [...this.#filed.keys()]) ticket.refuse(error);
  }

  #file(ticket: Ticket<T>): void {
    const filed = { readClass: ticket.ctx.class, owners: ownersOf(ticket.ctx) };
    this.#filed.set(ticket, filed);
    for (const owner of filed.owners) this.#lines[filed.readClass].push(owner, ticket);
  }

  #remove(ticket: Ticket<T>): void {
    const filed = this.#filed.get(ticket);
    if (!filed) return;
    this.#filed.delete(ticket);
    for (const owner of filed.owners) this.#lines[filed.readClass].remove(owner, ticket);
  }
}
