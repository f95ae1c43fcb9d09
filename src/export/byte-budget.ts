/**
 * Memory for long answers, shared by all exports: bytes read for a client that the kernel has not taken yet. A read
 * that finds no room waits, drive by drive, until its deadline. While other drives need memory too, no drive gets more
 * than half, so a guest that takes no answers leaves room for the others.
 */
import { onDeadline } from '../async/deadline.ts';
import { Turns } from '../async/turns.ts';
import { LazydiskError } from '../errors.ts';

/** Reads up to this length take nothing from the budget: they are copied into a reply, or written, at once. */
export const SHORT_READ_BYTES = 32 * 1024;
/** Room for two of the longest reads of NBD. */
const CAPACITY_BYTES = 64 * 1024 * 1024;

/** Room that was taken; give it back once. */
export interface HeldBytes {
  release(): void;
}

/** The owner of the room; drives are told apart by identity. */
export interface BudgetOwner {
  readonly name: string;
}

interface Waiter {
  readonly bytes: number;
  readonly give: () => void;
}

export class ByteBudget {
  readonly capacityBytes: number;
  readonly #held = new Map<BudgetOwner, number>();
  readonly #waiting = new Turns<BudgetOwner, Waiter>();
  #heldBytes = 0;
  #waiters = 0;
  /** The read with the next turn waits for room that all drives together use; no other may overtake it. */
  #isShort = false;

  constructor(capacityBytes: number = CAPACITY_BYTES) {
    this.capacityBytes = capacityBytes;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** Reads that wait for room. */
  get waiters(): number {
    return this.#waiters;
  }

  /** Undefined if there is no room now. */
  tryTake(owner: BudgetOwner, bytes: number): HeldBytes | undefined {
    if (this.#isShort || !this.#isWithinShare(owner, bytes) || !this.#fits(bytes)) return undefined;
    return this.#hold(owner, bytes);
  }

  /**
   * Waits for room. Rejects with TIMEOUT at `deadline` (on the clock of performance.now()), with ABORTED when `signal`
   * aborts, with OVERLOAD for more than the total capacity.
   */
  take(
    owner: BudgetOwner,
    bytes: number,
    { deadline, signal }: { deadline: number; signal: AbortSignal },
  ): Promise<HeldBytes> {
    if (bytes > this.capacityBytes) {
      const text = `drive ${owner.name}: a read of ${bytes} bytes, more than the memory for answers`;
      return Promise.reject(new LazydiskError('OVERLOAD', text));
    }
    const held = this.tryTake(owner, bytes);
    if (held) return Promise.resolve(held);
    return new Promise((resolve, reject) => {
      const leave = () => {
        stop();
        this.#waiters--;
      };
      const waiter: Waiter = {
        bytes,
        give: () => {
          leave();
          resolve(this.#hold(owner, bytes));
        },
      };
      const stop = onDeadline({ deadline, signal }, (why) => {
        leave();
        this.#waiting.remove(owner, waiter);
        const code = why === 'deadline' ? 'TIMEOUT' : 'ABORTED';
        reject(new LazydiskError(code, `drive ${owner.name}: no memory for an answer of ${bytes} bytes`));
        this.#pump();
      });
      this.#waiters++;
      this.#waiting.push(owner, waiter);
      this.#pump();
    });
  }

  #hold(owner: BudgetOwner, bytes: number): HeldBytes {
    this.#heldBytes += bytes;
    this.#held.set(owner, (this.#held.get(owner) ?? 0) + bytes);
    return {
      release: () => {
        this.#heldBytes -= bytes;
        const left = this.#held.get(owner)! - bytes;
        if (left > 0) this.#held.set(owner, left);
        else this.#held.delete(owner);
        this.#pump();
      },
    };
  }

  /** A single read longer than the share may still run, if the drive has no other. */
  #isWithinShare(owner: BudgetOwner, bytes: number): boolean {
    const held = this.#held.get(owner) ?? 0;
    return held === 0 || held + bytes <= this.capacityBytes / 2;
  }

  #fits(bytes: number): boolean {
    return this.#heldBytes + bytes <= this.capacityBytes;
  }

  #pump(): void {
    this.#isShort = false;
    for (;;) {
      const next = this.#waiting.take(
        (owner, { bytes }) => this.#isWithinShare(owner, bytes),
        ({ bytes }) => {
          this.#isShort = !this.#fits(bytes);
          return !this.#isShort;
        },
      );
      if (!next) return;
      next.give();
    }
  }
}
