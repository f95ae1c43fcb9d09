/**
 * Who goes first when many reads wait for one thing: demand, then readahead, then prefetch; within a class the drives
 * take turns, and within a drive it is first come, first served. So a drive with a thousand reads delays another's one
 * read by one turn. A read that several drives wait for stands in the queue of each, and goes when the first of them
 * has its turn. Whoever waits leaves at its deadline or when it is cancelled.
 */
import type { LazydiskError } from '../errors.ts';
import { type Ended, onDeadline } from './deadline.ts';
import { BY_URGENCY, type ReadClass, type ReadContext } from './read-context.ts';
import { Turns } from './turns.ts';

/** Drives in whose turn one read may go; more than these only wait with it. */
const OWNERS_MAX = 16;

/** One that waits. It leaves the queue with `give` or `refuse`. */
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

/** The drives that a read is counted to; '' where nobody says. */
export function ownersOf(ctx: ReadContext): readonly string[] {
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

  /** `onMoved` is called when one that waits has become more urgent, or another drive's too: it may go now. */
  constructor(onMoved: () => void) {
    this.#onMoved = onMoved;
  }

  get size(): number {
    return this.#filed.size;
  }

  /** The most urgent class of those that wait; undefined if nobody does. */
  get urgency(): ReadClass | undefined {
    return BY_URGENCY.find((each) => !this.#lines[each].isEmpty);
  }

  /** Resolves with what it is given. Rejects as it is refused, or with `late` when `ctx` is over. */
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

  /** Whose turn it is, of those that may go; the turn of its drive is over with that, and it must be given or refused. */
  next(may: (readClass: ReadClass, owner: string) => boolean = () => true): Ticket<T> | undefined {
    for (const readClass of BY_URGENCY) {
      const ticket = this.#lines[readClass].take((owner) => may(readClass, owner));
      if (ticket) return ticket;
    }
    return undefined;
  }

  /** The last of the least urgent, of the drive that has most of them. */
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
