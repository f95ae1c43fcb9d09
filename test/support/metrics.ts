/** The daemon's metrics with made-up figures. */
import type { FleetStats } from '../../src/chunk/fleet/fleet-tier.ts';
import { DaemonMetrics } from '../../src/daemon/metrics.ts';

const FLEET: FleetStats = {
  nodes: [
    {
      name: 'a:1',
      zone: 'z',
      weight: 1,
      up: true,
      connected: true,
      requests: 12,
      errors: 2,
      lastError: 'x',
      ejections: 1,
      bytesRead: 100,
      bytesWritten: 200,
      p50Ms: 0.5,
      p99Ms: 4,
    },
  ],
  k: 4,
  m: 1,
  reconstructions: 3,
  repairs: 2,
  leaseWins: 5,
  leaseWaits: 6,
  tooFew: 7,
  fills: 8,
  fillsDropped: 9,
};

/** The daemon's metrics over sources that report the same at every scrape. */
export function sampleMetrics(): DaemonMetrics {
  const made = new DaemonMetrics('1.2.3');
  made.watch({
    drives: () => 2,
    images: () => 1,
    exports: () => [
      { export: 'nbd', readsOk: 9, readErrors: 1, readBytes: 4096, inFlight: 3, oldestInFlightMs: 1500 },
      { export: 'fuse', readsOk: 0, readErrors: 0, readBytes: 0, inFlight: 0, oldestInFlightMs: 0 },
    ],
    nbdListeners: () => [{ kind: 'tcp', connections: 2, connectionsMax: 7, refused: 3 }],
    caches: () => [
      { tier: 'memory', usedBytes: 1, reservedBytes: 2, capBytes: 3, evictions: 4 },
      { tier: 'disk', usedBytes: 5, reservedBytes: 6, capBytes: 7, evictions: 8 },
    ],
    answers: () => ({ heldBytes: 11, waiters: 12 }),
    cacheHealth: () => ({ up: true, writable: false, ejections: 3 }),
    reader: () => ({ memoryHits: 7, memoryMisses: 2, flights: 3, waiting: 0 }),
    fleet: () => FLEET,
    origin: () => ({
      active: 4,
      queued: 5,
      rateWaits: 6,
      hedgesWon: 7,
      hedgesLost: 8,
      breaker: 'open',
      breakerOpened: 2,
    }),
    admission: () => ({ strained: true, starting: 3, waiting: 2, waited: 9, refused: 1 }),
    store: () => ({
      roots: { active: 1, draining: 0, retired: 2, trash: 3 },
      retiredReads: 4,
      unrecordedReads: 5,
      credentialExpiryMs: null,
    }),
    lease: () => ({ state: 'held', images: 7, unleased: 2, expiresInMs: 9_000, problem: null }),
    logDrops: () => 6,
    cacheDrops: () => ({ dropped: 1, failed: 2 }),
  });
  return made;
}
