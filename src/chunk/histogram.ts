/**
 * Latencies in fixed buckets, four to an octave from a microsecond to two minutes: half a kilobyte whatever it
 * counts, so that each of a thousand drives can have one a tier; percentiles are right to a fifth.
 */

const BUCKETS_PER_OCTAVE = 4;
const OCTAVES = 27;
const BUCKETS = BUCKETS_PER_OCTAVE * OCTAVES;

export interface LatencySummary {
  readonly count: number;
  /** The bounds of the buckets that the percentiles lie in. */
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** Exact. */
  readonly maxMs: number;
}

export class Histogram {
  readonly #counts = new Uint32Array(BUCKETS);
  #count = 0;
  #maxMs = 0;

  record(durationMs: number): void {
    const octaves = Math.log2(durationMs * 1000);
    const bucket = octaves > 0 ? Math.min(Math.floor(octaves * BUCKETS_PER_OCTAVE) + 1, BUCKETS - 1) : 0;
    this.#counts[bucket]!++;
    this.#count++;
    if (durationMs > this.#maxMs) this.#maxMs = durationMs;
  }

  /** Counts something that took under a microsecond, without a clock. */
  recordInstant(times = 1): void {
    this.#counts[0]! += times;
    this.#count += times;
  }

  /** The upper bound, in milliseconds, of the bucket that the `share` (0 to 1) of the values lies in or below. */
  percentileMs(share: number): number {
    let left = Math.ceil(this.#count * share);
    if (left === 0) return 0;
    let bucket = 0;
    while (bucket < BUCKETS - 1) {
      left -= this.#counts[bucket]!;
      if (left <= 0) break;
      bucket++;
    }
    return Math.min(2 ** (bucket / BUCKETS_PER_OCTAVE) / 1000, Math.max(this.#maxMs, 0.001));
  }

  summary(): LatencySummary {
    return {
      count: this.#count,
      p50Ms: this.percentileMs(0.5),
      p99Ms: this.percentileMs(0.99),
      maxMs: this.#maxMs,
    };
  }
}
