/** What fsck says: counts of everything, and lists of what is wrong, which are bounded however much that is. */
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import { boolean, count, list, nullable, object, oneOf, text } from '../../shape.ts';

/** What the lists hold at most; the rest is counted. */
export const PROBLEMS_MAX = 1000;
export const DAMAGED_MAX = 1000;
export const IMAGES_MAX = 1000;
export const EXAMPLES_MAX = 20;
/** Images of one damaged chunk, and places in one image, that are named. */
export const HITS_MAX = 8;

/** A name or a manifest that is not what it should be. */
export interface Problem {
  /** `reference`: the name itself is broken; `name`: it means nothing that is there; `manifest`: a broken one. */
  readonly kind: 'reference' | 'name' | 'manifest';
  /** Names that it hits; the digest of an image that has none any more. */
  readonly names: readonly string[];
  readonly text: string;
  /** The source that has a good copy, if one was found. */
  readonly copyIn: string | null;
  /** That copy's sealed part was not opened, for lack of its key: it is put where nothing was, and over nothing. */
  readonly unproven: boolean;
  readonly repaired: boolean;
}

/**
 * `missing`: nowhere; `misplaced`: only where it will be deleted, unless a sweep put it aside; `length`, `content`: other
 * bytes; `unreadable`: the store answers, and cannot read it; `manifest`: it is right, and its manifest gives it a
 * wrong length.
 */
export type DamageKind = 'missing' | 'misplaced' | 'length' | 'content' | 'unreadable' | 'manifest';

export const problemShape = object<Problem>({
  ...{ kind: oneOf('reference', 'name', 'manifest'), names: list(text()), text: text() },
  ...{ copyIn: nullable(text()), unproven: boolean, repaired: boolean },
});

export interface ChunkHit {
  readonly name: string;
  readonly digest: ImageDigest;
  /** Chunks of the disk, HITS_MAX of them at most. */
  readonly indices: readonly number[];
  /** Paths that it hits there; null where that is not known. */
  paths: readonly string[] | null;
}

export interface Damage {
  readonly id: ChunkId;
  readonly what: DamageKind;
  /** Where the copy is that readers meet. */
  readonly area: string | null;
  /** As the manifests have it. */
  readonly sealedBytes: number;
  /** What was found; null for nothing. */
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
  ...{ area: nullable(text()), sealedBytes: count, foundBytes: nullable(count) },
  hits: list(
    object<ChunkHit>({
      ...{ name: text(), digest: text<ImageDigest>(), indices: list(count), paths: nullable(list(text())) },
    }),
  ),
  ...{ moreImages: count, copyIn: nullable(text()), repaired: boolean },
});

/** An image whose disk has damaged chunks, those that were repaired among them. */
export interface HitImage {
  readonly names: readonly string[];
  readonly digest: ImageDigest;
  readonly damagedChunks: number;
  /** Null where that cannot be known; then `why` says why. */
  readonly paths: readonly string[] | null;
  readonly morePaths: number;
  /** The file system's own blocks are hit: what it holds may be more than `paths` tells. */
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
  /** Share of the chunks that were read, and which ones: runs with other seeds read others. */
  readonly sample: number;
  readonly seed: number;
  readonly names: number;
  readonly images: number;
  /** Manifests looked at, and how many of them a key opened. */
  readonly manifests: number;
  readonly openedManifests: number;
  /** Chunks that names mean, and those of them that were read and proven. */
  readonly liveChunks: number;
  readonly readChunks: number;
  readonly readBytes: number;
  /** Objects that are alive and put aside: the next sweep puts them back. */
  readonly inTrash: number;
  readonly problems: readonly Problem[];
  readonly moreProblems: number;
  readonly damagedChunks: number;
  readonly damaged: readonly Damage[];
  readonly hitImages: readonly HitImage[];
  readonly moreHitImages: number;
  /** Images whose chunks cannot be known; theirs are among the orphans. */
  readonly unknownImages: number;
  /**
   * In the active root and meant by no name: what hosts have attached; what is too young, or was named until lately; and
   * what the next sweep puts aside.
   */
  readonly orphans: { readonly leased: Counted; readonly young: Counted; readonly garbage: Counted };
  readonly foreign: {
    readonly objects: number;
    readonly bytes: number;
    readonly examples: readonly string[];
  };
  /** Null if nothing was to be repaired. */
  readonly repair: {
    readonly dryRun: boolean;
    /** What was mended, or would be. */
    readonly chunks: number;
    readonly manifests: number;
    /** Names and manifests among what was mended, with copies that no key has opened. */
    readonly unproven: number;
    readonly bySource: Readonly<Record<string, number>>;
    /** The last failure of each source that failed. */
    readonly sourceErrors: Readonly<Record<string, string>>;
  } | null;
  /** Problems and damaged chunks that are still there. */
  readonly remaining: number;
}

/** A list of at most `max`, and how many more there were. */
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
