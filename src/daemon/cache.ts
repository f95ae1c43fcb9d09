/** The disk cache as the daemon has it: a disk that hangs, at the start or later, costs nobody more than its hits. */
import { DiskCache } from '../chunk/disk/disk-cache.ts';
import { DiskTier } from '../chunk/disk/disk-tier.ts';
import { LateCache, type LateCacheStats } from '../chunk/disk/late-cache.ts';
import type { DaemonStatus } from './api.ts';
import type { ServeConfig } from './config.ts';
import type { Logger } from './log.ts';

/** Reads of the disk cache at once, from the queue for its threads to the end of decoding: they hold its buffers. */
export const CACHE_READS_MAX = 32;

/** What a start waits for the disk of the cache; a hundred times what it takes a healthy one with a full index. */
const CACHE_OPEN_MS = 10_000;

/** Rejects with what DiskCache.open throws in time; a disk that hangs does not keep a daemon from starting. */
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

/** Reads that find the disk hanging pass it by, and the log says so. */
export function cacheTier(cache: LateCache, config: ServeConfig, log: Logger): DiskTier {
  return new DiskTier(cache, {
    // Half of the cache's time, so that a read whose disk hangs has left when the other half is over.
    timeoutMs: config.cacheTimeoutMs / 2,
    onChange: (up, cause) => {
      if (up) log.info({ part: 'disk cache' }, 'the disk cache answers again');
      else log.error({ part: 'disk cache', cause }, 'the disk cache is left out: reading past it');
    },
  });
}

/** The word for it in the daemon’s status; `isUp`: whether reads ask it. */
export function cacheState(disk: LateCacheStats, isUp: boolean): DaemonStatus['cacheState'] {
  if (disk.opening) return 'not open';
  if (!isUp) return 'left out';
  if (disk.recovering) return 'scanned';
  return disk.writable ? 'up' : 'not written';
}
