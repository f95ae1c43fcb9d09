/** A drive's own statistics, cheap enough to count every read: how much of the image it used, and from which tier. */
import type { ReadClass } from '../async/read-context.ts';
import { Histogram, type LatencySummary } from '../chunk/histogram.ts';
import { TIERS, type TierName } from '../chunk/tier.ts';
import type { ErrorCode, LazydiskError } from '../errors.ts';

export interface TierStats {
  /** Chunks that this drive fetched from the tier, in all classes. Always 0 for memory. */
  readonly chunks: number;
  /** The same in sealed bytes. */
  readonly bytes: number;
  /** Guest reads whose farthest chunk came from the tier. */
  readonly latency: LatencySummary;
}

export interface DriveStats {
  /** Reads by the export that succeeded, and their bytes. */
  readonly reads: number;
  readonly readBytes: number;
  /** Chunks of the disk that are stored (the rest is zero), and how many of them the guest has read. */
  readonly storedChunks: number;
  readonly touchedChunks: number;
  /** touchedChunks / storedChunks, 0 to 1. */
  readonly touchedShare: number;
  /** By tier; a tier that returned nothing is absent. */
  readonly tiers: Partial<Record<TierName, TierStats>>;
  /** Of the fetched chunks, those that were fetched before the guest asked for them. */
  readonly readahead: {
    readonly chunks: number;
    readonly bytes: number;
    /** Of the bytes, those in chunks that the guest has not read. */
    readonly unusedBytes: number;
  };
  readonly prefetch: { readonly chunks: number; readonly bytes: number };
  /** Reads that failed, and the last failure; `at` is ISO 8601, UTC. */
  readonly errors: number;
  readonly lastError: { readonly code: ErrorCode; readonly text: string; readonly at: string } | undefined;
  /** Reads that are waiting, and how long the oldest has waited. */
  readonly inFlight: number;
  readonly oldestInFlightMs: number;
}

/** The one of the two tiers that is farther from the guest. */
export function fartherTier(a: TierName, b: TierName): TierName {
  return TIERS.indexOf(a) > TIERS.indexOf(b) ? a : b;
}

interface Fetched {
  chunks: number;
  bytes: number;
}

interface TierCounter extends Fetched {
  readonly latency: Histogram;
}

export class DriveCounters {
  readonly #storedChunks: number;
  readonly #touched: Uint8Array;
  readonly #tiers = new Map<TierName, TierCounter>();
  readonly #memoryLatency: Histogram;
  readonly #background = { readahead: { chunks: 0, bytes: 0 }, prefetch: { chunks: 0, bytes: 0 } };
  #elsewhere = { reads: 0, readBytes: 0 };
  readonly #readaheadUsed = { chunks: 0, bytes: 0 };
  #reads = 0;
  #readBytes = 0;
  #touchedChunks = 0;
  #errors = 0;
  #lastError: DriveStats['lastError'];

  constructor(storedChunks: number) {
    this.#storedChunks = storedChunks;
    this.#touched = new Uint8Array(Math.ceil(storedChunks / 8));
    this.#memoryLatency = this.#tier('memory').latency;
  }

  /** Called when the guest reads some of `entry`. Returns whether that is the first time. */
  touch(entry: number): boolean {
    const bit = 1 << (entry & 7);
    const byte = this.#touched[entry >> 3]!;
    if (byte & bit) return false;
    this.#touched[entry >> 3] = byte | bit;
    this.#touchedChunks++;
    return true;
  }

  /** Called when the guest reads a chunk that was read ahead. */
  readaheadUsed(sealedBytes: number): void {
    count(this.#readaheadUsed, sealedBytes);
  }

  /** Called when a read was answered at once. */
  readAtOnce(lengthBytes: number): void {
    this.#reads++;
    this.#readBytes += lengthBytes;
    this.#memoryLatency.recordInstant();
  }

  /** Called with the totals of the reads that native threads answered, and of their bytes. */
  readsElsewhere({ reads, readBytes }: { readonly reads: number; readonly readBytes: number }): void {
    this.#reads += reads - this.#elsewhere.reads;
    this.#readBytes += readBytes - this.#elsewhere.readBytes;
    this.#memoryLatency.recordInstant(reads - this.#elsewhere.reads);
    this.#elsewhere = { reads, readBytes };
  }

  /** Called when a read was answered after `durationMs`; `tier` is the farthest one that it needed. */
  readDone(lengthBytes: number, tier: TierName, durationMs: number): void {
    this.#reads++;
    this.#readBytes += lengthBytes;
    this.#tier(tier).latency.record(durationMs);
  }

  failed(error: LazydiskError): void {
    this.#errors++;
    this.#lastError = { code: error.code, text: error.message, at: new Date().toISOString() };
  }

  /** Called when a chunk was fetched from a tier for this drive. */
  fetched(tier: TierName, readClass: ReadClass, sealedBytes: number): void {
    if (sealedBytes === 0) return;
    count(this.#tier(tier), sealedBytes);
    if (readClass !== 'demand') count(this.#background[readClass], sealedBytes);
  }

  stats(inFlight: number, oldestInFlightMs: number): DriveStats {
    const tiers: Partial<Record<TierName, TierStats>> = {};
    for (const [name, { chunks, bytes, latency }] of this.#tiers)
      tiers[name] = { chunks, bytes, latency: latency.summary() };
    return {
      reads: this.#reads,
      readBytes: this.#readBytes,
      storedChunks: this.#storedChunks,
      touchedChunks: this.#touchedChunks,
      touchedShare: this.#storedChunks === 0 ? 0 : this.#touchedChunks / this.#storedChunks,
      tiers,
      readahead: {
        ...this.#background.readahead,
        // A chunk read ahead may have arrived with another caller's read: then it is used, but cost no bytes here.
        unusedBytes: Math.max(0, this.#background.readahead.bytes - this.#readaheadUsed.bytes),
      },
      prefetch: { ...this.#background.prefetch },
      errors: this.#errors,
      lastError: this.#lastError,
      inFlight,
      oldestInFlightMs,
    };
  }

  #tier(name: TierName): TierCounter {
    let counter = this.#tiers.get(name);
    if (!counter) {
      counter = { chunks: 0, bytes: 0, latency: new Histogram() };
      this.#tiers.set(name, counter);
    }
    return counter;
  }
}

function count(counter: Fetched, bytes: number): void {
  counter.chunks++;
  counter.bytes += bytes;
}
