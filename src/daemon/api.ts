/**
 * The types of the control API: what goes over the control socket as JSON in both directions. Paths are under /v1; an
 * incompatible change gets /v2. Sizes are in bytes, times are milliseconds or ISO 8601 in UTC, and every field is
 * always present (`null` if there is no value).
 *
 *   GET    /v1/status                → DaemonStatus
 *   GET    /v1/drives                → { drives: DriveInfo[] }, sorted by name
 *   POST   /v1/drives  AttachRequest → 201 DriveInfo
 *   GET    /v1/drives/NAME           → DriveStat
 *   DELETE /v1/drives/NAME           → { name }
 *   GET    /v1/images                → { images: ImageInfo[] }, sorted by name
 *   GET    /v1/images/NAME           → ImageDetail      (NAME percent-encoded, or sha256:…)
 *   GET    /v1/fleet                 → FleetInfo
 *   GET    /v1/fleet/CHUNK-OR-IMAGE  → FleetPlaces      (a chunk id, 64 hex digits, or an image)
 *   GET    /metrics                  → Prometheus text
 *
 * An error is { error: { code, message } }, where `code` is an ErrorCode; the HTTP status follows from the code.
 */
import type { TierName } from '../chunk/tier.ts';
import type { ErrorCode } from '../errors.ts';
import type { LeaseStats } from '../store/lease-keeper.ts';
import type { StoreStats } from '../store/store.ts';
import type { AdmissionStats } from './admission.ts';
import type { OriginStats } from './origin.ts';
import type { SkewStats } from './skew-watch.ts';

export interface AttachRequest {
  /** Name[:tag] or sha256:… */
  readonly image: string;
  /** The drive's name; by default derived from the image's. */
  readonly name?: string | undefined;
}

export interface DriveInfo {
  readonly name: string;
  /** As given in the request. */
  readonly image: string;
  readonly digest: string;
  /** Path of the drive's file, or null if the daemon has no FUSE mount. */
  readonly fuse: string | null;
  /** NBD URI on the Unix socket. */
  readonly nbd: string;
  /** NBD URI over TCP, or null if the daemon does not listen on TCP. */
  readonly nbdTcp: string | null;
  readonly sizeBytes: number;
  readonly attachedAt: string;
}

export interface TierInfo {
  readonly tier: TierName;
  /** Chunks that this drive fetched from the tier, and their sealed bytes; always 0 for memory. */
  readonly chunks: number;
  readonly bytes: number;
  /** Reads whose slowest chunk came from the tier, and how long they took. */
  readonly reads: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

export interface DriveStat extends DriveInfo {
  /**
   * Reads that the exports answered from this drive, and their bytes. Reads that the page cache answers are not
   * counted. Over FUSE, drives of one image share one file, whose reads count for the newest of them.
   */
  readonly reads: number;
  readonly readBytes: number;
  /**
   * Sealed bytes fetched from below memory for this drive, and how many of them were fetched before they were asked
   * for.
   */
  readonly fetchedBytes: number;
  readonly readaheadBytes: number;
  /** How many of readaheadBytes the guest has not read since. */
  readonly readaheadUnusedBytes: number;
  readonly prefetchBytes: number;
  /** Chunks that hold data, and how many of them were read. */
  readonly storedChunks: number;
  readonly touchedChunks: number;
  /** touchedChunks / storedChunks, 0 to 1. */
  readonly touchedShare: number;
  /** Nearest first; a tier that supplied nothing is absent. */
  readonly tiers: readonly TierInfo[];
  readonly inFlight: number;
  readonly oldestInFlightMs: number;
  /** Reads that failed, and the last failure, whose text names the drive, chunk, tier and cause. */
  readonly errors: number;
  readonly lastError: { readonly code: ErrorCode; readonly text: string; readonly at: string } | null;
}

export interface DaemonStatus {
  readonly version: string;
  readonly pid: number;
  readonly startedAt: string;
  readonly state: 'serving' | 'stopping';
  readonly store: string;
  readonly runDir: string;
  readonly drives: number;
  readonly fuse: string | null;
  /** Why there is no FUSE mount, or null. */
  readonly fuseProblem: string | null;
  readonly nbd: string;
  readonly nbdTcp: string | null;
  readonly metrics: string | null;
  readonly memoryBytes: number;
  readonly cacheBytes: number;
  readonly cacheUsedBytes: number;
  /**
   * `left out`: the disk hangs or fails, so reads bypass it; `not open`: the same since the start; `not written`: the
   * cache is read but nothing is written to it; `scanned`: the same, until the index has been rebuilt after a crash.
   */
  readonly cacheState: 'up' | 'scanned' | 'not written' | 'left out' | 'not open';
  /** Null without --fleet. */
  readonly fleet: { readonly state: 'up' | 'down'; readonly nodes: number; readonly nodesUp: number } | null;
  readonly origin: OriginStats;
  readonly admission: AdmissionStats;
  /** The store's roots that this daemon knows of, by state. */
  readonly storeRoots: StoreStats['roots'];
  /** Objects that were found only in a retired root or a trash, which postpones its deletion. */
  readonly retiredReads: number;
  /** What the store has been told of the images attached here. */
  readonly lease: LeaseStats;
  readonly storeClock: SkewStats;
  /** Log lines that could not be written. */
  readonly logLinesDropped: number;
}

/** One node of the fleet. Times are those of its answers since the daemon started. */
export interface FleetNodeInfo {
  readonly name: string;
  readonly zone: string | null;
  readonly weight: number;
  readonly up: boolean;
  readonly connected: boolean;
  readonly requests: number;
  readonly errors: number;
  readonly ejections: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly lastError: string | null;
}

export interface FleetInfo {
  readonly url: string;
  readonly state: 'up' | 'down';
  readonly k: number;
  readonly m: number;
  readonly nodes: readonly FleetNodeInfo[];
  readonly reconstructions: number;
  readonly repairs: number;
  readonly leaseWins: number;
  readonly leaseWaits: number;
  readonly tooFew: number;
  readonly fills: number;
  readonly fillsDropped: number;
}

/** What the nodes hold of one chunk, or of all chunks of an image. */
export interface FleetPlaces {
  /** Distinct chunks that were looked up, and how many of them have at least k shards. */
  readonly chunks: number;
  readonly readable: number;
  readonly nodes: readonly {
    readonly node: string;
    readonly zone: string | null;
    /** Shards that the node should hold, and those that it does hold, with their bytes. */
    readonly expected: number;
    readonly there: number;
    readonly bytes: number;
    readonly unreachable: number;
  }[];
  /** For a single chunk: its shards in rank order. */
  readonly shards: readonly {
    readonly node: string;
    readonly state: 'there' | 'absent' | 'filling' | 'stale' | 'unreachable';
    readonly index: number | null;
    readonly bytes: number | null;
    readonly why: string | null;
  }[];
}

/** Error code → HTTP status. */
export const HTTP_STATUS: Readonly<Record<ErrorCode, number>> = {
  USAGE: 400,
  KEY: 403,
  NOT_FOUND: 404,
  EXISTS: 409,
  BUSY: 409,
  UNSUPPORTED: 422,
  OVERLOAD: 429,
  ABORTED: 499,
  INTERNAL: 500,
  CORRUPT: 502,
  UNAVAILABLE: 503,
  TIMEOUT: 504,
  NO_SPACE: 507,
};

/** The body of every error response. */
export interface ErrorBody {
  readonly error: { readonly code: ErrorCode; readonly message: string };
}
