/** What the metrics read from the daemon's parts at every scrape. */
import type { FleetStats } from '../chunk/fleet/fleet-tier.ts';
import type { ChunkReaderStats } from '../chunk/reader.ts';
import type { ListenerStats } from '../export/nbd/ops.ts';
import type { LeaseStats } from '../store/lease-keeper.ts';
import type { StoreStats } from '../store/store.ts';
import type { AdmissionStats } from './admission.ts';
import type { OriginStats } from './origin.ts';

export interface ExportFigures {
  readonly export: 'nbd' | 'fuse';
  /** Reads that succeeded, and reads that failed. */
  readonly readsOk: number;
  readonly readErrors: number;
  readonly readBytes: number;
  readonly inFlight: number;
  /** Age of the oldest unanswered request; 0 if there is none. */
  readonly oldestInFlightMs: number;
}

export interface CacheFigures {
  readonly tier: 'memory' | 'disk';
  readonly usedBytes: number;
  readonly reservedBytes: number;
  readonly capBytes: number;
  readonly evictions: number;
}

/** The functions called at every scrape. */
export interface MetricSources {
  drives(): number;
  images(): number;
  exports(): readonly ExportFigures[];
  nbdListeners(): readonly ListenerStats[];
  caches(): readonly CacheFigures[];
  answers(): { readonly heldBytes: number; readonly waiters: number };
  reader(): Pick<ChunkReaderStats, 'memoryHits' | 'memoryMisses' | 'flights' | 'waiting'>;
  /** Undefined without a fleet. */
  fleet(): FleetStats | undefined;
  origin(): OriginStats;
  admission(): AdmissionStats;
  store(): StoreStats;
  lease(): LeaseStats;
  logDrops(): number;
  /** Whether the disk cache is read and written, and how often it was left out. */
  cacheHealth(): { readonly up: boolean; readonly writable: boolean; readonly ejections: number };
  /** Writes to the disk cache that were given up: too many at once, or a failing disk. */
  cacheDrops(): { readonly dropped: number; readonly failed: number };
}
