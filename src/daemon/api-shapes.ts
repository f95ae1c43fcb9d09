/** The shapes of the control API's answers (api.ts), for the help of the commands that print them and for tests. */
import type { TierName } from '../chunk/tier.ts';
import type { ErrorCode } from '../errors.ts';
import type { LayerRange, RunConfig } from '../format/manifest-metadata.ts';
import { boolean, count, each, list, nullable, number, object, oneOf, record, text } from '../shape.ts';
import type { ImageContent, ImageDetail, ImageInfo } from '../store/image-info.ts';
import type { LeaseStats } from '../store/lease-keeper.ts';
import type { StoreStats } from '../store/store.ts';
import type { AdmissionStats } from './admission.ts';
import {
  type DaemonStatus,
  type DriveInfo,
  type DriveStat,
  type ErrorBody,
  type FleetInfo,
  type FleetNodeInfo,
  type FleetPlaces,
  HTTP_STATUS,
  type TierInfo,
} from './api.ts';
import type { OriginStats } from './origin.ts';
import type { SkewStats } from './skew-watch.ts';

export const errorCodeShape = oneOf(...(Object.keys(HTTP_STATUS) as ErrorCode[]));

export const errorBodyShape = object<ErrorBody>({
  error: object({ code: errorCodeShape, message: text() }),
});

const driveFields = {
  ...each(text(), 'name', 'image', 'digest'),
  fuse: nullable(text()),
  nbd: text(),
  nbdTcp: nullable(text()),
  sizeBytes: count,
  attachedAt: text(),
};

export const driveInfoShape = object<DriveInfo>(driveFields);

const tierInfoShape = object<TierInfo>({
  tier: oneOf<TierName>('memory', 'disk', 'fleet', 'origin'),
  ...each(count, 'chunks', 'bytes', 'reads'),
  ...each(number, 'p50Ms', 'p99Ms', 'maxMs'),
});

export const driveStatShape = object<DriveStat>({
  ...driveFields,
  ...each(count, 'reads', 'readBytes', 'fetchedBytes', 'readaheadBytes', 'readaheadUnusedBytes'),
  ...each(count, 'prefetchBytes', 'storedChunks', 'touchedChunks'),
  touchedShare: number,
  tiers: list(tierInfoShape),
  inFlight: count,
  oldestInFlightMs: number,
  errors: count,
  lastError: nullable(object({ code: errorCodeShape, text: text(), at: text() })),
});

const originShape = object<OriginStats>({
  ...each(count, 'active', 'queued', 'rateWaits', 'hedgesWon', 'hedgesLost'),
  breaker: oneOf('closed', 'open', 'half-open'),
  breakerOpened: count,
});

const admissionShape = object<AdmissionStats>({
  strained: boolean,
  ...each(count, 'starting', 'waiting', 'waited', 'refused'),
});

const leaseShape = object<LeaseStats>({
  state: oneOf('none', 'held', 'late', 'read-only'),
  ...each(count, 'images', 'unleased'),
  expiresInMs: nullable(number),
  problem: nullable(text()),
});

export const daemonStatusShape = object<DaemonStatus>({
  version: text(),
  pid: count,
  startedAt: text(),
  state: oneOf('serving', 'stopping'),
  ...each(text(), 'store', 'runDir'),
  drives: count,
  ...each(nullable(text()), 'fuse', 'fuseProblem'),
  nbd: text(),
  ...each(nullable(text()), 'nbdTcp', 'metrics'),
  ...each(count, 'memoryBytes', 'cacheBytes', 'cacheUsedBytes'),
  cacheState: oneOf('up', 'scanned', 'not written', 'left out', 'not open'),
  fleet: nullable(object({ state: oneOf('up', 'down'), nodes: count, nodesUp: count })),
  origin: originShape,
  admission: admissionShape,
  storeRoots: object<StoreStats['roots']>(each(count, 'active', 'draining', 'retired', 'trash')),
  retiredReads: count,
  lease: leaseShape,
  storeClock: object<SkewStats>({ skewMs: nullable(number), problem: nullable(text()) }),
  logLinesDropped: count,
});

const fleetNodeShape = object<FleetNodeInfo>({
  name: text(),
  zone: nullable(text()),
  weight: number,
  ...each(boolean, 'up', 'connected'),
  ...each(count, 'requests', 'errors', 'ejections', 'bytesRead', 'bytesWritten'),
  ...each(number, 'p50Ms', 'p99Ms'),
  lastError: nullable(text()),
});

export const fleetInfoShape = object<FleetInfo>({
  url: text(),
  state: oneOf('up', 'down'),
  ...each(count, 'k', 'm'),
  nodes: list(fleetNodeShape),
  ...each(count, 'reconstructions', 'repairs', 'leaseWins', 'leaseWaits', 'tooFew', 'fills', 'fillsDropped'),
});

export const fleetPlacesShape = object<FleetPlaces>({
  ...each(count, 'chunks', 'readable'),
  nodes: list(
    object<FleetPlaces['nodes'][number]>({
      node: text(),
      zone: nullable(text()),
      ...each(count, 'expected', 'there', 'bytes', 'unreachable'),
    }),
  ),
  shards: list(
    object<FleetPlaces['shards'][number]>({
      node: text(),
      state: oneOf('there', 'absent', 'filling', 'stale', 'unreachable'),
      ...each(nullable(count), 'index', 'bytes'),
      why: nullable(text()),
    }),
  ),
});

export const imageInfoShape = object<ImageInfo>({
  ...each(text(), 'name', 'digest', 'updated'),
  ...each(nullable(count), 'sizeBytes', 'storedChunks', 'storedBytes', 'uniqueBytes'),
  keys: list(text()),
  problem: nullable(text()),
});

const contentShape = object<ImageContent>({
  ...each(count, 'sizeBytes', 'storedChunks', 'storedBytes'),
  ...each(text(), 'writer', 'encoder', 'domain'),
  saltEpoch: count,
  ...each(text(), 'source', 'architecture', 'os'),
  layers: list(
    object<Pick<LayerRange, 'digest' | 'sizeBytes' | 'chunks'>>({
      digest: text(),
      ...each(count, 'sizeBytes', 'chunks'),
    }),
  ),
  config: object<RunConfig>({
    ...each(list(text()), 'entrypoint', 'cmd', 'env'),
    ...each(text(), 'user', 'workingDir'),
    labels: record(text()),
  }),
});

export const imageDetailShape = object<ImageDetail>({
  ...each(text(), 'name', 'digest'),
  updated: nullable(text()),
  content: nullable(contentShape),
});
