/**
 * What exports may do in one turn of the event loop, in bytes copied and in time. Memory answers so fast that a few deep
 * queues would hold up every other guest, the control API and the timers. Reads without room wait for a later turn, drive
 * by drive. A drive that was not served in a turn still has room when others have used it up. Half of each turn is for
 * reads that waited, half for new ones.
 */
import { Turns } from '../async/turns.ts';

/** About half a millisecond of copying. */
const TURN_BYTES = 2 * 1024 * 1024;
/** After this much of a turn, only drives not served in it have room. Most of the cost of a short request is not its bytes. */
const TURN_MS = 0.2;
/** After this much of a turn, no drive has room. */
const TURN_MS_MAX = 2;

type Run = () => void;

export class TurnBudget {
  readonly #now: () => number;
  readonly #waiting = new Turns<object, Run>();
  /** The owners served in this turn. */
  readonly #served = new Set<object>();
  #usedBytes = 0;
  #startedMs = 0;
  #isResetPlanned = false;

  /** `now` is a clock in milliseconds, for tests. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Whether work may be done for `owner` in this turn; report it with `use`. */
  hasRoom(owner: object): boolean {
    this.#planReset();
    return this.#hasRoom(owner, 1);
  }

  /** Counts `bytes` copied for `owner` in this turn; the last read that has room may exceed the budget. */
  use(owner: object, bytes: number): void {
    this.#planReset();
    this.#served.add(owner);
    this.#usedBytes += bytes;
  }

  /** Calls `run` in a turn that has room; it must then `use` what it copies, and may wait again. */
  wait(owner: object, run: Run): void {
    this.#waiting.push(owner, run);
    this.#planReset();
  }

  #hasRoom(owner: object, share: number): boolean {
    if (this.#usedBytes >= TURN_BYTES * share) return false;
    const bound = this.#served.has(owner) ? TURN_MS * share : TURN_MS_MAX * share;
    return this.#now() - this.#startedMs < bound;
  }

  #planReset(): void {
    if (this.#isResetPlanned) return;
    this.#isResetPlanned = true;
    this.#begin();
    setImmediate(() => this.#nextTurn());
  }

  #nextTurn(): void {
    this.#begin();
    for (;;) {
      const run = this.#waiting.take((owner) => this.#hasRoom(owner, 1 / 2));
      if (!run) break;
      run();
    }
    this.#isResetPlanned = this.#served.size > 0 || !this.#waiting.isEmpty;
    if (this.#isResetPlanned) setImmediate(() => this.#nextTurn());
  }

  #begin(): void {
    this.#usedBytes = 0;
    this.#served.clear();
    this.#startedMs = this.#now();
  }
}
