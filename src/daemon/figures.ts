/** The parts' counters in the form that the metrics expect. */
import type { ChunkMemory } from '../chunk/memory.ts';
import type { FuseMount } from '../export/fuse/mount.ts';
import type { NbdServer } from '../export/nbd/server.ts';
import type { CacheFigures, ExportFigures } from './metric-sources.ts';

export function exportFigures(nbd: NbdServer, fuse: FuseMount | undefined): ExportFigures[] {
  const {
    readsOk,
    readErrors,
    readBytes,
    inflight: inFlight,
    oldestInflightMs: oldestInFlightMs,
  } = nbd.stats();
  const figures: ExportFigures[] = [
    { export: 'nbd', readsOk, readErrors, readBytes, inFlight, oldestInFlightMs },
  ];
  if (fuse) {
    const { readsOk, readErrors, readBytes, inFlight, oldestInFlightMs } = fuse.stats();
    figures.push({ export: 'fuse', readsOk, readErrors, readBytes, inFlight, oldestInFlightMs });
  }
  return figures;
}

export function memoryFigures(memory: ChunkMemory): CacheFigures {
  const { cachedBytes, capacityBytes, evictions } = memory.stats();
  return {
    tier: 'memory',
    usedBytes: cachedBytes,
    reservedBytes: capacityBytes,
    capBytes: capacityBytes,
    evictions,
  };
}
