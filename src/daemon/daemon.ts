/**
 * The daemon: puts the parts together, starts them in dependency order, and stops them in reverse order, however far
 * the start got. The run directory is taken first, so that a running daemon's files are never touched; the control
 * socket opens last, so that a client that can connect finds everything ready.
 */

import type { AddressInfo } from 'node:net';
import type { Fleet } from '../chunk/fleet/fleet.ts';
import { LazydiskError } from '../errors.ts';
import { ByteBudget } from '../export/byte-budget.ts';
import { cleanStaleMount, FuseMount } from '../export/fuse/mount.ts';
import { NbdServer } from '../export/nbd/server.ts';
import { TurnBudget } from '../export/turn-budget.ts';
import { KeyRing } from '../keys/key-ring.ts';
import { describeImage, describeImages, type ImageDetail, type ImageInfo } from '../store/image-info.ts';
import { LeaseKeeper } from '../store/lease-keeper.ts';
import { openStore } from '../store/open.ts';
import { hostName } from '../store/roots/host-reads.ts';
import type { Store } from '../store/store.ts';
import { VERSION } from '../version.ts';
import { hostPort, nbdTcpUri, nbdUnixUri } from './addresses.ts';
import { Admission } from './admission.ts';
import type { AttachRequest, DaemonStatus, DriveInfo, DriveStat, FleetInfo, FleetPlaces } from './api.ts';
import { cacheState } from './cache.ts';
import type { ServeConfig } from './config.ts';
import { ControlServer, type ControlService } from './control.ts';
import { type DrivePlaces, Drives } from './drives.ts';
import { exportFigures, memoryFigures } from './figures.ts';
import { describeFleet, locateInFleet } from './fleet-info.ts';
import { SharedImages } from './images.ts';
import { leaseLog } from './lease-log.ts';
import type { Logger } from './log.ts';
import type { LogStream } from './log-stream.ts';
import type { MetricSources } from './metric-sources.ts';
import { MetricsServer } from './metrics-server.ts';
import { ReadErrorLog } from './read-errors.ts';
import { takeRunDir } from './run-dir.ts';
import type { RunPaths } from './run-paths.ts';
import type { Address } from './setting-kinds.ts';
import { SkewWatch } from './skew-watch.ts';
import { StoreAsks } from './store-asks.ts';
import { openTiers, type Tiers } from './tiers.ts';

/** Concurrent operations on the store for attaches and for lists; each list makes several requests at once. */
const ATTACH_ASKS_MAX = 8;
const LIST_ASKS_MAX = 1;

/** Where the exports listen; filled in as they start. */
interface Places {
  fuse: FuseMount | undefined;
  fuseProblem: string | null;
  nbdTcp: Address | undefined;
  metrics: Address | undefined;
}

interface Parts extends Tiers {
  readonly config: ServeConfig;
  readonly log: Logger;
  readonly logStream: LogStream;
  readonly paths: RunPaths;
  readonly keys: KeyRing;
  readonly store: Store;
  readonly leases: LeaseKeeper;
  readonly skew: SkewWatch;
  readonly admission: Admission;
  readonly images: SharedImages;
  readonly drives: Drives;
  readonly lists: StoreAsks;
  /** What all exports share. */
  readonly shares: { readonly budget: ByteBudget; readonly turn: TurnBudget };
  readonly nbd: NbdServer;
  readonly places: Places;
  readonly closers: AsyncDisposableStack;
}

export class Daemon implements ControlService {
  readonly #parts: Parts;
  readonly #startedAt = new Date().toISOString();
  #stopping: Promise<void> | undefined;

  private constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Rejects with the error of the part that could not start; everything started before it has been closed again. */
  static async start(config: ServeConfig, log: Logger, logStream: LogStream): Promise<Daemon> {
    const closers = new AsyncDisposableStack();
    try {
      const daemon = new Daemon(await openParts(config, log, logStream, closers));
      await daemon.#listen();
      return daemon;
    } catch (error) {
      await closers.disposeAsync();
      throw error;
    }
  }

  /** Refuses new attaches, waits for reads in flight (up to the drain timeout), then closes everything. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async attach(request: AttachRequest, signal: AbortSignal): Promise<DriveInfo> {
    const drive = await this.#parts.drives.attach(request, signal);
    const { name, image, digest } = drive;
    this.#parts.log.info({ drive: name, image, digest }, 'attached');
    return drive;
  }

  async detach(name: string): Promise<void> {
    this.#parts.drives.detach(name);
    this.#parts.log.info({ drive: name }, 'detached');
  }

  drives(): Iterable<DriveInfo> {
    return this.#parts.drives.list();
  }

  stat(name: string): DriveStat {
    return this.#parts.drives.stat(name);
  }

  images(signal: AbortSignal): Promise<ImageInfo[]> {
    const { store, keys } = this.#parts;
    return this.#askStore('the list of images', signal, () => describeImages(store, keys));
  }

  inspect(name: string, signal: AbortSignal): Promise<ImageDetail> {
    const { store, keys } = this.#parts;
    return this.#askStore(`image ${name}`, signal, () => describeImage(store, name, keys));
  }

  fleet(): FleetInfo {
    return describeFleet(this.#requireFleet());
  }

  /** Which nodes hold a chunk, or an image's chunks. */
  async fleetPlaces(chunkOrImage: string, signal: AbortSignal): Promise<FleetPlaces> {
    const { store, keys } = this.#parts;
    const fleet = this.#requireFleet();
    return this.#askStore(chunkOrImage, signal, () => locateInFleet(fleet, chunkOrImage, store, keys));
  }

  metrics(): Promise<{ contentType: string; text: string }> {
    return this.#parts.metrics.text();
  }

  status(): DaemonStatus {
    const { config, paths, store, drives, places, cache, diskTier, fleet, origin } = this.#parts;
    const { admission, logStream, leases, skew } = this.#parts;
    const disk = cache.stats();
    return {
      version: VERSION,
      pid: process.pid,
      startedAt: this.#startedAt,
      state: this.#stopping ? 'stopping' : 'serving',
      store: store.url,
      runDir: paths.dir,
      drives: drives.size,
      fuse: places.fuse?.dir ?? null,
      fuseProblem: places.fuseProblem,
      nbd: nbdUnixUri(paths.nbd, ''),
      nbdTcp: places.nbdTcp ? nbdTcpUri(places.nbdTcp, '') : null,
      metrics: places.metrics ? `http://${hostPort(places.metrics)}/metrics` : null,
      memoryBytes: config.memoryBytes,
      cacheBytes: disk.capBytes,
      cacheUsedBytes: disk.usedBytes,
      cacheState: cacheState(disk, diskTier.stats().up),
      fleet: fleet ? { state: fleet.state, ...nodesUp(fleet) } : null,
      origin: origin.stats(),
      admission: admission.stats(),
      storeRoots: store.stats().roots,
      retiredReads: store.stats().retiredReads,
      lease: leases.stats(),
      storeClock: skew.stats(),
      logLinesDropped: logStream.droppedLines,
    };
  }

  #askStore<T>(what: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const { config, store, lists } = this.#parts;
    const patience = { deadline: performance.now() + config.storeTimeoutMs, signal };
    return lists.ask(patience, `${what}: ${store.url} does not answer`, work);
  }

  #requireFleet(): Fleet {
    const { fleet } = this.#parts;
    if (!fleet) throw new LazydiskError('NOT_FOUND', 'this daemon has no fleet: start it with --fleet');
    return fleet;
  }

  async #listen(): Promise<void> {
    const { config, log, paths, drives, shares, nbd, metrics, places, closers } = this.#parts;
    closers.defer(() => nbd.close({ drainMs: config.drainTimeoutMs }));
    await nbd.listen({ path: paths.nbd });
    if (config.nbdTcp) {
      await nbd.listen(config.nbdTcp);
      // The configured port may be 0, in which case the system chooses one.
      const { port } = nbd.addresses.at(-1) as AddressInfo;
      places.nbdTcp = { host: config.nbdTcp.host, port };
    }

    try {
      const onLost = (error: LazydiskError) => this.#fuseGone(error.message);
      const mount = await FuseMount.mount({
        dir: paths.drives,
        registry: drives.registry,
        ...shares,
        onLost,
      });
      places.fuse = mount;
      closers.defer(() => mount.unmount());
    } catch (error) {
      if (!(error instanceof LazydiskError)) throw error;
      places.fuseProblem = error.message;
      log.warn({ error }, 'no FUSE here: drives are served over NBD only');
    }

    if (config.metrics) {
      const server = new MetricsServer(() => metrics.text());
      places.metrics = await server.listen(config.metrics);
      closers.defer(() => server.close());
    }

    const control = new ControlServer(this, log);
    await control.listen(paths.control);
    closers.defer(() => control.close(config.drainTimeoutMs));
  }

  async #stop(): Promise<void> {
    const { drives, closers, log } = this.#parts;
    drives.refuseNew();
    try {
      await closers.disposeAsync();
    } catch (error) {
      // All parts are closed; at least one of them failed to close cleanly.
      log.error({ error }, 'a part did not stop cleanly');
    }
  }

  #fuseGone(why: string): void {
    const { places, log } = this.#parts;
    if (this.#stopping) return;
    places.fuse = undefined;
    places.fuseProblem = why;
    log.error({ why }, 'the FUSE mount is gone: drives are served over NBD only');
  }
}

/** Opens everything that the exports depend on. */
async function openParts(
  config: ServeConfig,
  log: Logger,
  logStream: LogStream,
  closers: AsyncDisposableStack,
): Promise<Parts> {
  const store = await openStore(config.store);
  closers.defer(() => store.close());
  const keys = await KeyRing.open(config.keys, { wrappedKeys: store });
  closers.defer(() => keys.close());
  const { paths, release } = await takeRunDir(config.runDir, cleanStaleMount);
  closers.defer(release);

  const tiers = await openTiers(config, log, store, closers);
  const { origin, reader, metrics } = tiers;

  const places: Places = { fuse: undefined, fuseProblem: null, nbdTcp: undefined, metrics: undefined };
  const leases = new LeaseKeeper(store.parts, { host: hostName(), onChange: leaseLog(log) });
  closers.defer(() => leases.close());
  const skew = new SkewWatch(store.parts, log);
  closers.defer(() => skew.close());
  const images = new SharedImages(store, keys, new StoreAsks(ATTACH_ASKS_MAX), leases);
  const readErrors = new ReadErrorLog(log);
  const admission = new Admission({ startsMax: config.startsMax, isStrained: () => origin.isStrained });
  closers.defer(() => admission.close());
  const drives = new Drives({
    images,
    reader,
    readTimeoutMs: config.readTimeoutMs,
    storeTimeoutMs: config.storeTimeoutMs,
    admission,
    places: drivePlaces(paths, places),
    onReadError: (drive, error) => readErrors.report(drive, error),
  });
  closers.defer(() => drives.closeAll());
  const shares = { budget: new ByteBudget(config.answerMemoryBytes), turn: new TurnBudget() };
  const nbd = new NbdServer({
    registry: drives.registry,
    ...shares,
    limits: { connectionsMax: config.nbdConnections },
    onFull: (listener) => log.warn({ part: 'nbd', ...listener }, 'a listener is full: clients are refused'),
  });
  const parts: Parts = {
    config,
    ...tiers,
    log,
    logStream,
    paths,
    keys,
    store,
    leases,
    skew,
    admission,
    images,
    drives,
    shares,
    nbd,
    places,
    closers,
    lists: new StoreAsks(LIST_ASKS_MAX),
  };
  metrics.watch(metricSources(parts));
  return parts;
}

/** What the metrics are asked of at each scrape. */
function metricSources(parts: Parts): MetricSources {
  const { memory, cache, diskTier, fleet, origin, admission, reader, images, drives } = parts;
  const { leases, store, logStream, nbd, places, shares } = parts;
  return {
    drives: () => drives.size,
    images: () => images.size,
    exports: () => exportFigures(nbd, places.fuse),
    answers: () => shares.budget,
    nbdListeners: () => nbd.stats().listeners,
    caches: () => [memoryFigures(memory), { tier: 'disk', ...cache.stats() }],
    reader: () => reader.stats(),
    fleet: () => fleet?.stats(),
    origin: () => origin.stats(),
    admission: () => admission.stats(),
    store: () => store.stats(),
    lease: () => leases.stats(),
    logDrops: () => logStream.droppedLines,
    cacheHealth: () => {
      const { opening, writable } = cache.stats();
      const { up, ejections } = diskTier.stats();
      return { up: up && !opening, writable, ejections };
    },
    cacheDrops: () => {
      const { droppedPuts, writeErrors } = cache.stats();
      return { dropped: droppedPuts + reader.stats().droppedWriteBacks, failed: writeErrors };
    },
  };
}

function nodesUp(fleet: Fleet): { nodes: number; nodesUp: number } {
  const { nodes } = fleet.stats();
  return { nodes: nodes.length, nodesUp: nodes.filter(({ up }) => up).length };
}

function drivePlaces(paths: RunPaths, places: Places): DrivePlaces {
  return {
    fuse: (name) => places.fuse?.pathOf(name) ?? null,
    nbd: (name) => nbdUnixUri(paths.nbd, name),
    nbdTcp: (name) => (places.nbdTcp ? nbdTcpUri(places.nbdTcp, name) : null),
  };
}
