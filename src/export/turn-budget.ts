/**
 * Bytes that exports may copy in one turn of the event loop. Memory can answer faster than anything else gets its turn,
 * so a few deep queues would hold up every other guest, the control API and the timers. What has no room waits for a
 * later turn, drive by drive. Half of each turn is for those that waited, half for what comes in.
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

  /** `bytes` are copied in this turn; the last to have room may go over it. */
  use(bytes: number): void {
    this.#usedBytes += bytes;
    this.#planReset();
  }

  /** Has `run` called in a turn that has room; it must then `use` what it copies, and may call this again. */
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
