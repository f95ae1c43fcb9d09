/** The daemon's disk cache: if its disk hangs, at the start or later, only its hits are lost. */
import { DiskCache } from '../chunk/disk/disk-cache.ts';
import { DiskTier } from '../chunk/disk/disk-tier.ts';
import { LateCache, type LateCacheStats } from '../chunk/disk/late-cache.ts';
import type { DaemonStatus } from './api.ts';
import type { ServeConfig } from './config.ts';
import type { Logger } from './log.ts';

/** Concurrent reads of the disk cache, from queueing for its threads to the end of decoding: they hold its buffers. */
export const CACHE_READS_MAX = 32;

/** How long a start waits for the cache's disk: a hundred times what a healthy disk takes with a full index. */
const CACHE_OPEN_MS = 10_000;

/**
 * Rejects with the error of DiskCache.open if that fails in time. A disk that hangs does not keep the daemon from
 * starting.
 */
export function openCache(config: ServeConfig, log: Logger): Promise<LateCache> {
  const part = 'disk cache';
  const opening = DiskCache.open({
    dir: config.cacheDir,
    capBytes: config.cacheBytes,
    onWarning: (text) => log.warn({ part }, text),
  });
  return LateCache.open(opening, {
    capBytes: config.cacheBytes,
    timeoutMs: CACHE_OPEN_MS,
    onLate: (event, cause) => {
      if (event === 'joined') log.info({ part }, 'the disk cache is open at last');
      else if (event === 'failed')
        log.error({ part, cause }, 'the disk cache could not be opened: it stays out');
      else log.error({ part, cause }, 'the disk of the cache hangs: serving without it until it is open');
    },
  });
}

/** Reads bypass a disk that hangs; the change is logged. */
export function cacheTier(cache: LateCache, config: ServeConfig, log: Logger): DiskTier {
  return new DiskTier(cache, {
    // Half of the cache's time, so that a read whose disk hangs has moved on before all of it is used up.
    timeoutMs: config.cacheTimeoutMs / 2,
    onChange: (up, cause) => {
      if (up) log.info({ part: 'disk cache' }, 'the disk cache answers again');
      else log.error({ part: 'disk cache', cause }, 'the disk cache is left out: reading past it');
    },
  });
}

/** The cache's state for the daemon's status. `isUp`: whether reads use the cache. */
export function cacheState(disk: LateCacheStats, isUp: boolean): DaemonStatus['cacheState'] {
  if (disk.opening) return 'not open';
  if (!isUp) return 'left out';
  if (disk.recovering) return 'scanned';
  return disk.writable ? 'up' : 'not written';
}
