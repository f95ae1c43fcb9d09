/**
 * What each command answers with --json: its help is made of these shapes, and tests hold its output to them. Types of
 * reports are imported as types alone, so that this costs a start nothing but itself.
 */
import type { BootResult } from '../boot/boot.ts';
import {
  daemonStatusShape,
  driveInfoShape,
  driveStatShape,
  errorCodeShape,
  fleetInfoShape,
  fleetPlacesShape,
  imageDetailShape,
  imageInfoShape,
} from '../daemon/api-shapes.ts';
import type { ChunkId } from '../format/chunk-id.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import type { BuildReport } from '../image/build.ts';
import type { ChunkPaths, MetadataChunk, PathChunks } from '../image/chunk-paths.ts';
import type { BlockUse } from '../image/ext4/reader/inodes.ts';
import type { DiffSide, ImageDiff, UniqueContent } from '../image/image-diff.ts';
import {
  boolean,
  count,
  each,
  either,
  list,
  nullable,
  number,
  object,
  oneOf,
  plain,
  record,
  text,
} from '../shape.ts';
import type { CopyReport } from '../store/copy.ts';
import type { Counted, FsckReport, HitImage } from '../store/fsck/report.ts';
import { damageShape, problemShape } from '../store/fsck/report.ts';
import type { JournalEntry } from '../store/gc/journal.ts';
import type { PurgeReport } from '../store/gc/purge.ts';
import type { HeldArea } from '../store/gc/purge-plan.ts';
import type { RotateReport } from '../store/gc/rotate.ts';
import type { AreaState, AreaStatus, GcStatus } from '../store/gc/status.ts';
import type { SweepReport } from '../store/gc/sweep.ts';
import type { RewrapReport } from '../store/rewrap.ts';
import type { StorePolicy } from '../store/roots/policy.ts';
import type { Share, SharingImage } from '../store/share-tree.ts';
import type { PastReference } from '../store/store.ts';

const digest = text<ImageDigest>();
const named = object({ name: text(), digest });
const failures = list(object({ name: text(), code: errorCodeShape, message: text() }));

const build = object<BuildReport>({
  name: text(),
  digest,
  ...each(count, 'diskBytes', 'dataBytes', 'sealedBytes', 'storedChunks', 'newChunks', 'newBytes'),
  ...each(count, 'reusedChunks', 'layers', 'inputBytes'),
  durationMs: number,
});

const copy = object<CopyReport>({
  name: text(),
  digest,
  ...each(count, 'chunks', 'copiedChunks', 'copiedBytes', 'presentChunks', 'manifests', 'provenManifests'),
  keptManifests: list(text()),
  durationMs: number,
});

const history = object<PastReference>({ name: text(), digest: nullable(digest), updated: text() });

const share = object<Share>(each(count, 'chunks', 'sealedBytes'));

const sharingImage = object<SharingImage>({
  names: list(text()),
  digest,
  updated: text(),
  depth: count,
  parent: nullable(text()),
  ...each(share, 'stored', 'added', 'shared'),
  problem: nullable(text()),
});

const use = text<BlockUse>();

const uniqueContent = object<UniqueContent>({
  paths: list(object({ path: text(), ...each(count, 'chunks', 'sealedBytes') })),
  more: object(each(count, 'paths', 'sealedBytes')),
  metadata: list(object({ use: text<BlockUse | 'unknown'>(), ...each(count, 'chunks', 'sealedBytes') })),
  unreadable: count,
});

const diffSide = object<DiffSide>({
  ...each(text(), 'name', 'digest'),
  ...each(share, 'stored', 'unique'),
  content: nullable(uniqueContent),
});

const diff = object<ImageDiff>({ a: diffSide, b: diffSide, shared: share, obstacles: list(text()) });

const storedChunk = { index: count, id: text<ChunkId>(), sealedBytes: count };

const inspectPaths = object<ChunkPaths & { readonly name: string; readonly digest: ImageDigest }>({
  name: text(),
  digest,
  paths: list(object<PathChunks>({ path: text(), chunks: list(object({ ...storedChunk, use })) })),
  ...each(count, 'morePaths', 'unreadable'),
  metadata: list(object<MetadataChunk>({ ...storedChunk, uses: list(use) })),
});

const policy = object<StorePolicy>(each(count, 'graceMs', 'retentionMs', 'buildMs', 'viewMs', 'settleMs'));

const area = object<AreaStatus>({
  area: text(),
  state: oneOf<AreaState>('active', 'draining', 'retired', 'trash', 'deleting'),
  ...each(
    nullable(text()),
    'openedAt',
    'putAsideAt',
    'lastReadAt',
    'lastReadHost',
    'heldBecause',
    'heldUntil',
  ),
  isRead: boolean,
});

const journalEntry = object<JournalEntry>({
  ...each(text(), 'id', 'command', 'host'),
  pid: count,
  ...each(text(), 'started', 'updated'),
  state: oneOf('running', 'done', 'failed'),
  details: record(plain<unknown>('a value', (value) => value !== undefined)),
});

const gcStatus = object<GcStatus>({
  store: text(),
  policy,
  areas: list(area),
  alarm: boolean,
  leases: object(each(count, 'current', 'over', 'strange')),
  journal: list(journalEntry),
});

const sweep = object<SweepReport>({
  ...each(count, 'chunks', 'keptChunks', 'liveImages', 'unknownImages'),
  lostNames: list(text()),
  ...each(count, 'sweptChunks', 'sweptManifests', 'sweptBytes', 'restoredObjects'),
  trash: nullable(text()),
});

const held = object<HeldArea>({
  ...each(text(), 'area', 'why'),
  until: nullable(text()),
  isRead: boolean,
});

const purge = object<PurgeReport>({
  purged: list(text()),
  held: list(held),
  ...each(count, 'deletedObjects', 'deletedBytes', 'restoredObjects', 'carriedImages'),
  lostNames: list(text()),
  forgottenObjects: count,
});

const rotate = object<RotateReport>({
  ...each(text(), 'from', 'to'),
  ...each(count, 'names', 'leasedImages', 'movedChunks', 'movedBytes'),
  lostNames: list(text()),
  retired: boolean,
});

const rewrap = object<Omit<RewrapReport, 'failures'> & { failures: unknown }>({
  ...each(count, 'images', 'rewrapped', 'skipped', 'foreign', 'removed'),
  sharingKeys: list(text()),
  failures,
});

const hitImage = object<HitImage>({
  names: list(text()),
  digest,
  damagedChunks: count,
  paths: nullable(list(text())),
  morePaths: count,
  metadata: boolean,
  why: nullable(text()),
});

const counted = object<Counted>(each(count, 'chunks', 'manifests', 'bytes'));

const repair = object<NonNullable<FsckReport['repair']>>({
  dryRun: boolean,
  ...each(count, 'chunks', 'manifests', 'unproven'),
  bySource: record(count),
  sourceErrors: record(text()),
});

const fsck = object<FsckReport>({
  store: text(),
  sample: number,
  ...each(count, 'seed', 'names', 'images', 'manifests', 'openedManifests', 'liveChunks', 'readChunks'),
  ...each(count, 'readBytes', 'inTrash'),
  problems: list(problemShape),
  ...each(count, 'moreProblems', 'damagedChunks'),
  damaged: list(damageShape),
  hitImages: list(hitImage),
  ...each(count, 'moreHitImages', 'unknownImages'),
  orphans: object(each(counted, 'leased', 'young', 'garbage')),
  foreign: object({ ...each(count, 'objects', 'bytes'), examples: list(text()) }),
  repair: nullable(repair),
  remaining: count,
});

const wrappedKey = object({
  id: text(),
  ...each(nullable(text()), 'domain', 'keyArn', 'aliasArn', 'created', 'problem'),
});

const boot = object({
  drive: driveStatShape,
  via: oneOf('fuse', 'nbd'),
  exitCode: number,
  console: text(),
  accel: oneOf<BootResult['accel']>('kvm', 'tcg'),
  timings: object(each(number, 'attachMs', 'userlandMs', 'totalMs')),
});

/** By the command's words. */
export const ANSWERS = {
  attach: driveInfoShape,
  boot,
  build,
  copy,
  detach: object({ name: text() }),
  diff,
  drives: list(driveInfoShape),
  export: object({
    ...each(text(), 'name', 'digest', 'file'),
    ...each(count, 'diskBytes', 'dataBytes'),
    durationMs: number,
  }),
  'fleet status': fleetInfoShape,
  'fleet where': fleetPlacesShape,
  fsck,
  'gc policy': policy,
  'gc purge': purge,
  'gc rotate': rotate,
  'gc run': object({ sweep, purge }),
  'gc status': gcStatus,
  'gc sweep': sweep,
  images: either(list(imageInfoShape), list(history), list(sharingImage)),
  inspect: either(imageDetailShape, inspectPaths),
  'key list': list(wrappedKey),
  'key new': either(
    object(each(text(), 'file', 'id', 'domain')),
    object(each(text(), 'arn', 'id', 'domain')),
  ),
  'key rewrap': rewrap,
  rm: object({ removed: list(named), unnamed: list(object({ digest, garbageAfter: text() })), failures }),
  stat: driveStatShape,
  status: daemonStatusShape,
  tag: named,
};

export type Answering = keyof typeof ANSWERS;
