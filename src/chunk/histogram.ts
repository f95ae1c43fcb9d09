/**
 * Latencies in fixed buckets, four per octave from a microsecond to two minutes. It takes half a kilobyte however much
 * it counts, so each of a thousand drives can have one per tier; percentiles are exact to a fifth.
 */

const BUCKETS_PER_OCTAVE = 4;
const OCTAVES = 27;
const BUCKETS = BUCKETS_PER_OCTAVE * OCTAVES;

export interface LatencySummary {
  readonly count: number;
  /** The upper bounds of the buckets that hold the percentiles. */
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

  /** Counts something that took less than a microsecond, without reading the clock. */
  recordInstant(times = 1): void {
    this.#counts[0]! += times;
    this.#count += times;
  }

  /** The upper bound, in milliseconds, of the bucket that holds the percentile `share` (0 to 1). */
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
