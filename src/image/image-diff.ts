/**
 * What two images share and what each has alone: chunks and their sealed bytes, from the clear parts of their manifests;
 * and with a key, which paths the unshared bytes are there for. A chunk's bytes are divided among what lies in it by
 * blocks, so that all parts together are the whole.
 */
import { ID_BYTES } from '../format/chunk-id.ts';
import type { ClearManifest } from '../format/manifest-clear.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import { type ClearImage, loadClearImage } from '../store/clear-image.ts';
import { IdTable } from '../store/id-table.ts';
import { type Image, loadImage } from '../store/image.ts';
import type { Share } from '../store/share-tree.ts';
import type { Store } from '../store/store.ts';
import { Best } from './best.ts';
import { readImage } from './disk-read.ts';
import { ChunkUses } from './ext4/reader/chunk-uses.ts';
import type { BlockUse } from './ext4/reader/inodes.ts';
import { printable } from './quote.ts';

export interface UniquePath {
  /** One of its names, if it has several; text for a person (see printable). */
  readonly path: string;
  /** Unique chunks that its data lies in, and its part of their bytes. */
  readonly chunks: number;
  readonly sealedBytes: number;
}

export interface UniqueContent {
  /** The most bytes first. */
  readonly paths: readonly UniquePath[];
  readonly more: { readonly paths: number; readonly sealedBytes: number };
  /** What of the file system itself lies in unique chunks; `unknown` is what nothing is known to lie in. */
  readonly metadata: readonly (Share & { readonly use: BlockUse | 'unknown' })[];
  /** Directories that could not be read, or only in part. */
  readonly unreadable: number;
}

export interface DiffSide {
  readonly name: string;
  readonly digest: string;
  readonly stored: Share;
  readonly unique: Share;
  /** Null without a key. */
  readonly content: UniqueContent | null;
}

export interface ImageDiff {
  readonly a: DiffSide;
  readonly b: DiffSide;
  readonly shared: Share;
  /** Differences in how the two were made for which equal content gives other chunks. */
  readonly obstacles: readonly string[];
}

export interface DiffOptions {
  /** Both images are opened, and their paths told. */
  readonly keys?: KeyRing | undefined;
  readonly pathsMax: number;
  readonly signal?: AbortSignal;
}

/**
 * Compares two images of `store`. Rejects with USAGE, NOT_FOUND, KEY where a key is given that opens not both, CORRUPT
 * naming the chunk, UNSUPPORTED, UNAVAILABLE, ABORTED.
 */
export async function diffImages(
  store: Store,
  a: string,
  b: string,
  options: DiffOptions,
): Promise<ImageDiff> {
  const { keys } = options;
  const load = async (name: string): Promise<Side> => {
    if (!keys) return loadClearImage(store, name);
    const image = await loadImage(store, name, keys);
    return { name: image.name, digest: image.digest, clear: image.manifest.clear, image };
  };
  const sides = [await load(a), await load(b)] as const;
  const { shared, entries } = compare(sides[0].clear, sides[1].clear);
  const described: DiffSide[] = [];
  for (const [at, side] of sides.entries()) {
    const unique = shareOf(side.clear, entries[at]!);
    described.push({
      name: side.name,
      digest: side.digest,
      stored: {
        chunks: shared.chunks + unique.chunks,
        sealedBytes: shared.sealedBytes + unique.sealedBytes,
      },
      unique,
      content: side.image ? await contentOf(store, side.image, entries[at]!, options) : null,
    });
  }
  return {
    a: described[0]!,
    b: described[1]!,
    shared,
    obstacles: obstaclesOf(sides[0].clear, sides[1].clear),
  };
}

interface Side extends ClearImage {
  readonly image?: Image;
}

const IN_A = 1;
const IN_B = 2;

/** What both have, and of each the entries of what it has alone, of equal ones the first. */
function compare(a: ClearManifest, b: ClearManifest): { shared: Share; entries: [number[], number[]] } {
  const table = new IdTable();
  const firsts = (clear: ClearManifest, flag: number): number[] => {
    const entries: number[] = [];
    for (let entry = 0; entry < clear.storedChunks; entry++) {
      const at = entry * ID_BYTES;
      const isKnown = !table.add(clear.ids, at, flag);
      if (isKnown && table.flagsAt(clear.ids, at)! & flag) continue;
      table.flagAt(clear.ids, at, flag);
      entries.push(entry);
    }
    return entries;
  };
  const ofA = firsts(a, IN_A);
  const ofB = firsts(b, IN_B);
  const isShared = (clear: ClearManifest) => (entry: number) =>
    table.flagsAt(clear.ids, entry * ID_BYTES) === (IN_A | IN_B);
  const alone = (clear: ClearManifest, entries: number[]) => entries.filter((one) => !isShared(clear)(one));
  return {
    shared: shareOf(a, ofA.filter(isShared(a))),
    entries: [alone(a, ofA), alone(b, ofB)],
  };
}

function shareOf(clear: ClearManifest, entries: readonly number[]): Share {
  const sealedBytes = entries.reduce((sum, entry) => sum + clear.sealedBytesOf(entry), 0);
  return { chunks: entries.length, sealedBytes };
}

function obstaclesOf(a: ClearManifest, b: ClearManifest): string[] {
  const differences: [string, string | number, string | number][] = [
    ['dedup domain', a.domain, b.domain],
    ['salt epoch', a.saltEpoch, b.saltEpoch],
    ['disk writer', a.writerVersion, b.writerVersion],
    ['chunk encoder', a.encoderVersion, b.encoderVersion],
  ];
  return differences
    .filter(([, ofA, ofB]) => ofA !== ofB)
    .map(([what, ofA, ofB]) => `${what} ${ofA} and ${ofB}`);
}

async function contentOf(
  store: Store,
  image: Image,
  entries: readonly number[],
  { pathsMax, signal }: DiffOptions,
): Promise<UniqueContent> {
  const { clear } = image.manifest;
  const bytesOf = new Map(entries.map((entry) => [clear.indexOf(entry), clear.sealedBytesOf(entry)]));
  const uses = await ChunkUses.read(readImage(store, image), clear.diskBytes, {
    chunks: new Set(bytesOf.keys()),
    ...(signal && { signal }),
  });
  const perBlock = new Map<number, number>();
  const metadata = new Map<BlockUse | 'unknown', { chunks: number; sealedBytes: number }>();
  let dataBytes = 0;
  for (const [chunk, sealedBytes] of bytesOf) {
    const ofChunk = uses.ofChunk(chunk) ?? new Map<'unknown', number>([['unknown', 1]]);
    const blocks = ofChunk.values().reduce((sum, some) => sum + some, 0);
    perBlock.set(chunk, sealedBytes / blocks);
    for (const [use, some] of ofChunk) {
      const part = (sealedBytes / blocks) * some;
      if (use === 'data') dataBytes += part;
      else {
        const sum = metadata.get(use) ?? { chunks: 0, sealedBytes: 0 };
        metadata.set(use, { chunks: sum.chunks + 1, sealedBytes: sum.sealedBytes + part });
      }
    }
  }
  const { best, more, unreadable } = await largestPaths(uses, perBlock, pathsMax);
  const told = best.reduce((sum, { sealedBytes }) => sum + sealedBytes, 0);
  return {
    paths: best.map((one) => ({ ...one, sealedBytes: Math.round(one.sealedBytes) })),
    more: { paths: more, sealedBytes: Math.max(0, Math.round(dataBytes - told)) },
    metadata: [...metadata]
      .map(([use, { chunks, sealedBytes }]) => ({ use, chunks, sealedBytes: Math.round(sealedBytes) }))
      .sort((x, y) => y.sealedBytes - x.sealedBytes),
    unreadable,
  };
}

/** The paths with the most bytes, by what a block of each chunk takes. */
async function largestPaths(uses: ChunkUses, perBlock: ReadonlyMap<number, number>, pathsMax: number) {
  const paths = new Best<UniquePath>(
    pathsMax,
    (x, y) => y.sealedBytes - x.sealedBytes || (x.path < y.path ? -1 : 1),
  );
  let unreadable = 0;
  await uses.walk({
    name(number, path) {
      const own = uses.ofInode(number).filter(({ use }) => use === 'data');
      if (own.length === 0 || !uses.isFirstName(number)) return;
      const sealedBytes = own.reduce((sum, { chunk, blocks }) => sum + blocks * perBlock.get(chunk)!, 0);
      paths.add({ path: printable(path), chunks: own.length, sealedBytes });
    },
    unread: () => unreadable++,
  });
  return { ...paths.take(), unreadable };
}
