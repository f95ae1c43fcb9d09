/**
 * The bytes that exports may copy in one turn of the event loop. Memory answers so fast that a few deep queues would
 * hold up every other guest, the control API and the timers. Reads without room wait for a later turn, drive by drive.
 * Half of each turn is for reads that waited, half for new ones.
 */
import { Turns } from '../async/turns.ts';

/** About half a millisecond of copying. */
const TURN_BYTES = 2 * 1024 * 1024;

type Run = () => void;

export class TurnBudget {
  readonly #waiting = new Turns<object, Run>();
  #usedBytes = 0;
  #isResetPlanned = false;

  get hasRoom(): boolean {
    return this.#usedBytes < TURN_BYTES;
  }

  /** Counts `bytes` copied in this turn; the last read that has room may exceed the budget. */
  use(bytes: number): void {
    this.#usedBytes += bytes;
    this.#planReset();
  }

  /** Calls `run` in a turn that has room; it must then `use` what it copies, and may wait again. */
  wait(owner: object, run: Run): void {
    this.#waiting.push(owner, run);
    this.#planReset();
  }

  #planReset(): void {
    if (this.#isResetPlanned) return;
    this.#isResetPlanned = true;
    setImmediate(() => {
      this.#isResetPlanned = false;
      this.#usedBytes = 0;
      while (this.#usedBytes < TURN_BYTES / 2) {
        const run = this.#waiting.take();
        if (!run) break;
        run();
      }
      if (!this.#waiting.isEmpty) this.#planReset();
    });
  }
}
