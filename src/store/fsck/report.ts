/** The report of fsck: counts of everything, and lists of problems, which are limited however many there are. */
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import { boolean, count, list, nullable, object, oneOf, text } from '../../shape.ts';

/** Maximum length of each list; the rest is only counted. */
export const PROBLEMS_MAX = 1000;
export const DAMAGED_MAX = 1000;
export const IMAGES_MAX = 1000;
export const EXAMPLES_MAX = 20;
/** Images listed for one damaged chunk, and chunk positions listed for each image. */
export const HITS_MAX = 8;

/** A problem with a name or a manifest. */
export interface Problem {
  /** `reference`: the name's object is broken; `name`: its image is missing; `manifest`: a manifest is broken. */
  readonly kind: 'reference' | 'name' | 'manifest';
  /** Affected names; the digest for an image without a name. */
  readonly names: readonly string[];
  readonly text: string;
  /** The source of a good copy, if one was found. */
  readonly copyIn: string | null;
  /** The copy's sealed part was not opened, for lack of its key; it is written only where there is no manifest. */
  readonly unproven: boolean;
  readonly repaired: boolean;
}

/**
 * `missing`: nowhere; `misplaced`: only where it will be deleted, other than in trash that a sweep restores from;
 * `length`, `content`: wrong bytes; `unreadable`: the store answers, but cannot read it; `manifest`: the chunk is
 * right, and its manifest has a wrong length.
 */
export type DamageKind = 'missing' | 'misplaced' | 'length' | 'content' | 'unreadable' | 'manifest';

export const problemShape = object<Problem>({
  kind: oneOf('reference', 'name', 'manifest'),
  names: list(text()),
  text: text(),
  copyIn: nullable(text()),
  unproven: boolean,
  repaired: boolean,
});

export interface ChunkHit {
  readonly name: string;
  readonly digest: ImageDigest;
  /** Chunk indices in the disk, at most HITS_MAX. */
  readonly indices: readonly number[];
  /** Affected paths; null if unknown. */
  paths: readonly string[] | null;
}

export interface Damage {
  readonly id: ChunkId;
  readonly what: DamageKind;
  /** The area of the copy that readers find. */
  readonly area: string | null;
  /** According to the manifests. */
  readonly sealedBytes: number;
  /** The length that was found; null if nothing was. */
  readonly foundBytes: number | null;
  readonly hits: readonly ChunkHit[];
  /** Images beyond `hits`. */
  readonly moreImages: number;
  readonly copyIn: string | null;
  readonly repaired: boolean;
}

export const damageShape = object<Damage>({
  id: text<ChunkId>(),
  what: oneOf('missing', 'misplaced', 'length', 'content', 'unreadable', 'manifest'),
  area: nullable(text()),
  sealedBytes: count,
  foundBytes: nullable(count),
  hits: list(
    object<ChunkHit>({
      name: text(),
      digest: text<ImageDigest>(),
      indices: list(count),
      paths: nullable(list(text())),
    }),
  ),
  moreImages: count,
  copyIn: nullable(text()),
  repaired: boolean,
});

/** An image whose disk has damaged chunks, including repaired ones. */
export interface HitImage {
  readonly names: readonly string[];
  readonly digest: ImageDigest;
  readonly damagedChunks: number;
  /** Null if unknown; then `why` tells why. */
  readonly paths: readonly string[] | null;
  readonly morePaths: number;
  /** The file system's own blocks are affected: more paths may be than `paths` lists. */
  readonly metadata: boolean;
  readonly why: string | null;
}

export interface Counted {
  readonly chunks: number;
  readonly manifests: number;
  readonly bytes: number;
}

export interface FsckReport {
  readonly store: string;
  /** The fraction of the chunks that was read, and the seed that selected them. */
  readonly sample: number;
  readonly seed: number;
  readonly names: number;
  readonly images: number;
  /** Manifests checked, and how many of them a key opened. */
  readonly manifests: number;
  readonly openedManifests: number;
  /** Chunks of named images, and how many of them were read and verified. */
  readonly liveChunks: number;
  readonly readChunks: number;
  readonly readBytes: number;
  /** Live objects in trash; the next sweep restores them. */
  readonly inTrash: number;
  readonly problems: readonly Problem[];
  readonly moreProblems: number;
  readonly damagedChunks: number;
  readonly damaged: readonly Damage[];
  readonly hitImages: readonly HitImage[];
  readonly moreHitImages: number;
  /** Images whose chunks are unknown; those are counted as orphans. */
  readonly unknownImages: number;
  /**
   * Objects in the active root that no name reaches: those that hosts have attached; those too young, or named until
   * recently; and those that the next sweep moves to trash.
   */
  readonly orphans: { readonly leased: Counted; readonly young: Counted; readonly garbage: Counted };
  readonly foreign: {
    readonly objects: number;
    readonly bytes: number;
    readonly examples: readonly string[];
  };
  /** Null without `repair`. */
  readonly repair: {
    readonly dryRun: boolean;
    /** What was repaired, or would be. */
    readonly chunks: number;
    readonly manifests: number;
    /** Repaired names and manifests whose copies no key has opened. */
    readonly unproven: number;
    readonly bySource: Readonly<Record<string, number>>;
    /** The last failure of each source that failed. */
    readonly sourceErrors: Readonly<Record<string, string>>;
  } | null;
  /** Problems and damaged chunks that remain. */
  readonly remaining: number;
}

/** A list of at most `max` items, and how many more there were. */
export class Capped<T> {
  readonly list: T[] = [];
  more = 0;
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
  }

  get total(): number {
    return this.list.length + this.more;
  }

  add(item: T): void {
    if (this.list.length < this.#max) this.list.push(item);
    else this.more++;
  }
}
