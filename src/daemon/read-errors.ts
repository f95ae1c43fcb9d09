/**
 * Logs failed reads: each line names the drive, chunk, tier and cause. A guest whose disk fails retries again and
 * again, so after the first line there is at most one every few seconds, which says how many failures were not logged.
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
    // The reader is gone: the client disconnected or the drive was detached.
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
