/** Checks periodically whether the store's clock and this host's agree, and logs when that changes. */
import { clockSkewMs, skewProblem } from '../store/roots/clock-skew.ts';
import type { StoreParts } from '../store/roots/parts.ts';
import type { Logger } from './log.ts';

const CHECK_MS = 10 * 60 * 1000;

export interface SkewStats {
  /** The minimum by which the store's clock is ahead of this host's; negative: behind; null: not known. */
  readonly skewMs: number | null;
  /** Null unless the skew exceeds the store's settle time. */
  readonly problem: string | null;
}

export class SkewWatch {
  readonly #parts: StoreParts;
  readonly #log: Logger;
  readonly #closing = new AbortController();
  #stats: SkewStats = { skewMs: null, problem: null };

  constructor(parts: StoreParts, log: Logger) {
    this.#parts = parts;
    this.#log = log;
    // A read-only store provides no times.
    if (parts.objects.isWritable) void this.#run();
  }

  stats(): SkewStats {
    return this.#stats;
  }

  close(): void {
    this.#closing.abort();
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      await this.#check();
      await this.#parts.clock.sleep(CHECK_MS, signal).catch(() => undefined);
    }
  }

  /** A store that does not answer is reported elsewhere; the previous result stays. */
  async #check(): Promise<void> {
    const skewMs = await clockSkewMs(this.#parts.objects).catch(() => undefined);
    if (skewMs === undefined || this.#closing.signal.aborted) return;
    const problem = skewProblem(skewMs, this.#parts);
    const before = this.#stats.problem;
    this.#stats = { skewMs, problem };
    if (problem !== null && before === null) this.#log.warn({ skewMs }, problem);
    else if (problem === null && before !== null)
      this.#log.info({ skewMs }, "the store's clock and this host's agree again");
  }
}
