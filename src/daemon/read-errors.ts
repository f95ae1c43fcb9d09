/**
 * Failed reads in the log: each names its drive, chunk, tier and cause. A guest whose disk fails asks again and again,
 * so after the first one a line comes at most every few seconds, and says how many it stands for.
 */
import { codeOf, errorText } from '../errors.ts';
import type { Logger } from './log.ts';

const INTERVAL_MS = 2_000;

export class ReadErrorLog {
  readonly #log: Logger;
  readonly #now: () => number;
  #nextAt = 0;
  #silent = 0;

  constructor(log: Logger, now: () => number = () => performance.now()) {
    this.#log = log;
    this.#now = now;
  }

  report(drive: string, error: unknown): void {
    const code = codeOf(error);
    // Who asked has gone away: a client that disconnected, a drive that is detached.
    if (code === 'ABORTED') return;
    const now = this.#now();
    if (now < this.#nextAt) {
      this.#silent++;
      return;
    }
    this.#log.error({ drive, code, cause: errorText(error), unlogged: this.#silent }, 'read failed');
    this.#nextAt = now + INTERVAL_MS;
    this.#silent = 0;
  }
}
