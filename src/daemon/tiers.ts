/** The tiers of a daemon, from memory to the origin, and the reader that asks them. */
import type { DiskTier } from '../chunk/disk/disk-tier.ts';
import type { LateCache } from '../chunk/disk/late-cache.ts';
import { Fleet } from '../chunk/fleet/fleet.ts';
import { ChunkMemory } from '../chunk/memory.ts';
import { ChunkReader } from '../chunk/reader.ts';
import { LimitTier } from '../chunk/wrappers/limit.ts';
import type { Store } from '../store/store.ts';
import { VERSION } from '../version.ts';
import { CACHE_READS_MAX, cacheTier, openCache } from './cache.ts';
import type { ServeConfig } from './config.ts';
import type { Logger } from './log.ts';
import { DaemonMetrics } from './metrics.ts';
import { Origin } from './origin.ts';

/** What chunks are read through, and who counts it. */
export interface Tiers {
  readonly memory: ChunkMemory;
  readonly cache: LateCache;
  readonly diskTier: DiskTier;
  readonly fleet: Fleet | undefined;
  readonly origin: Origin;
  readonly reader: ChunkReader;
  readonly metrics: DaemonMetrics;
}

/** Opens what chunks are read through, from memory to the origin. */
export async function openTiers(
  config: ServeConfig,
  log: Logger,
  store: Store,
  closers: AsyncDisposableStack,
): Promise<Tiers> {
  const memory = new ChunkMemory({ capacityBytes: config.memoryBytes });
  const cache = await openCache(config, log);
  // The reader closes it too, once there is one; until then, a failed start must not lose the cache's index.
  closers.defer(() => cache.close());
  const metrics = new DaemonMetrics(VERSION);
  closers.defer(() => metrics.close());
  const origin = new Origin(store, config);
  const fleet = config.fleet && (await Fleet.open(config.fleet, log));
  if (fleet) closers.defer(() => fleet.close());
  const diskTier = cacheTier(cache, config, log);
  const reader = new ChunkReader({
    memory,
    tiers: [
      new LimitTier(diskTier, { concurrency: CACHE_READS_MAX }),
      ...(fleet ? [fleet.tier] : []),
      origin.tier,
    ],
    observer: metrics.observer,
    cacheTimeoutMs: config.cacheTimeoutMs,
  });
  closers.defer(() => reader.close());
  return { memory, cache, diskTier, fleet, origin, reader, metrics };
}
