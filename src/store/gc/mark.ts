/**
 * Finds what is live in the active root. Live images are those that a name points to; those that a name pointed to
 * recently, since a drive may be attaching one; those that hosts have leased, because drives use them; and those whose
 * manifest is there without a name, which a writer may be about to set. Their manifests list the live chunks. No key is
 * needed. Marking fails rather than guesses: an image whose manifest cannot be read could have any chunk, so then no
 * chunk is garbage.
 */
import { pooled } from '../../async/pooled.ts';
import { codeOf, LazydiskError, withContext } from '../../errors.ts';
import { ID_BYTES } from '../../format/chunk-id.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import type { ClearManifest } from '../../format/manifest-clear.ts';
import { IdTable } from '../id-table.ts';
import { leasedOf, leaseTermMs } from '../leases.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import { firstClear, manifestKeysIn } from '../roots/carry.ts';
import { type AreaPath, manifestsPrefix, meaningOf } from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { DatedRecord } from '../roots/references.ts';
import type { Area, View } from '../roots/view.ts';
import type { Reference } from '../store.ts';

const MANIFESTS_MAX = 8;

/** Maximum number of repeated looks for a manifest that must exist. */
const LOOKS_MAX = 3;

/** What is known to be live. */
export class LiveSet {
  readonly chunks = new IdTable();
  readonly images = new Set<ImageDigest>();
  /** Unnamed images with only corrupt manifests: any chunk may be theirs. */
  readonly unknown = new Set<ImageDigest>();
  /** Names that stalled writers set to images that are gone; they do not make the mark fail. */
  readonly lostNames: string[] = [];
}

export interface MarkOptions {
  /** The store's current time, in milliseconds since 1970. */
  readonly nowMs: number;
  /** Manifests written to the root since this store time count even without a name. */
  readonly unnamedSinceMs: number;
  onProgress?(images: number, imagesTotal: number): void;
  readonly signal?: AbortSignal;
}

/**
 * Throws CORRUPT or NOT_FOUND with the name whose image cannot be determined, BUSY if another root was opened
 * meanwhile, UNAVAILABLE, ABORTED.
 */
export async function mark(parts: StoreParts, view: View, options: MarkOptions): Promise<LiveSet> {
  const { references, policy } = parts;
  const current = await references.list(view);
  const lately = latelyNamed(await references.history(), current, options.nowMs - policy.graceMs);
  const marking = new Marking(parts, view, options, current);
  const there = await imagesIn(parts.objects, areasOfRoot(view, view.active));
  const unnamed = [...there].filter(([, { rootMs }]) => rootMs >= options.unnamedSinceMs);
  await marking.addAll([
    ...current.map(({ digest }) => digest),
    ...lately,
    ...unnamed.map(([digest]) => digest),
  ]);
  await marking.addLeased(there, options.nowMs - leaseTermMs(policy));
  return marking.live;
}

/**
 * Adds to `live` the images leased since `sinceMs` of the store's clock, for callers with an older mark. Throws what
 * `mark` throws.
 */
export async function addLeased(
  parts: StoreParts,
  view: View,
  live: LiveSet,
  sinceMs: number,
  signal?: AbortSignal,
): Promise<void> {
  const marking = new Marking(parts, view, signal ? { signal } : {}, [], live);
  await marking.addLeased(await imagesIn(parts.objects, areasOfRoot(view, view.active)), sinceMs);
}

/** Adds the chunks of one image after another to a live set. */
class Marking {
  readonly live: LiveSet;
  readonly #parts: StoreParts;
  readonly #view: View;
  readonly #options: Pick<MarkOptions, 'onProgress' | 'signal'>;
  readonly #names = new Map<ImageDigest, string[]>();
  #done = 0;

  constructor(
    parts: StoreParts,
    view: View,
    options: Pick<MarkOptions, 'onProgress' | 'signal'>,
    current: readonly Reference[],
    live = new LiveSet(),
  ) {
    this.live = live;
    this.#parts = parts;
    this.#view = view;
    this.#options = options;
    for (const { name, digest } of current)
      this.#names.set(digest, [...(this.#names.get(digest) ?? []), name]);
  }

  /**
   * Adds the chunks of `images`. A missing manifest is looked for again: one that was just written or just moved
   * appears once listings have caught up. A named one is looked for several times, because it may be moving at that
   * moment. This lasts only while the name points to it: whatever is named after a mark is safe without the mark.
   */
  async addAll(images: Iterable<ImageDigest>): Promise<void> {
    let missing = await this.#add(this.#view, images);
    for (let look = 0; missing.length > 0 && look < LOOKS_MAX; look++) {
      missing = await this.#add(await this.#later(), missing);
      missing = await this.#stillNamed(missing);
    }
    for (const digest of missing)
      for (const name of this.#names.get(digest)!) await this.#giveUp(name, digest);
  }

  /** Records the name as lost if it was written so late that the image may have been gone by then; otherwise throws. */
  async #giveUp(name: string, digest: ImageDigest): Promise<void> {
    const { objects, references, policy } = this.#parts;
    if (!(await references.isLate(this.#view.active.path, name, policy.buildMs)))
      throw new LazydiskError(
        'NOT_FOUND',
        `${objects.url}: ${name} means image ${digest}, which has no manifest, so what is garbage cannot be known; \`lazydisk fsck\` says more, \`lazydisk rm ${name}\` gives it up`,
      );
    this.live.lostNames.push(name);
  }

  /**
   * Adds the images that hosts have leased since `sinceMs`, out of `there`, the images in the root and its trash. A
   * lease may name any image, so a lease alone starts no search. But a manifest that is moving may be missing from all
   * listings. So if images outside `there` are leased, such as those of retired roots, it looks a second time.
   */
  async addLeased(there: ReadonlyMap<ImageDigest, unknown>, sinceMs: number): Promise<void> {
    const { objects } = this.#parts;
    const search = { sinceMs, except: this.live.images, signal: this.#options.signal };
    const { leased, hasOthers } = await leasedOf(objects, there, search);
    if (hasOthers) {
      const later = await this.#later();
      const more = await imagesIn(objects, areasOfRoot(later, later.active));
      for (const image of there.keys()) more.delete(image);
      if (more.size > 0)
        for (const [image, host] of (await leasedOf(objects, more, search)).leased) leased.set(image, host);
    }
    await this.addAll([...leased.keys()]);
  }

  /** Returns the images that have no manifest. */
  async #add(view: View, images: Iterable<ImageDigest>): Promise<ImageDigest[]> {
    const { live } = this;
    const { objects } = this.#parts;
    const areas = areasOfRoot(view, view.active);
    const missing: ImageDigest[] = [];
    for (const digest of images) live.images.add(digest);
    await pooled(MANIFESTS_MAX, new Set(images), async (digest) => {
      this.#options.signal?.throwIfAborted();
      const [name] = this.#names.get(digest) ?? [];
      try {
        const clear = await findClear(objects, areas, digest, name ?? digest);
        if (clear) addChunks(live.chunks, clear);
        else missing.push(digest);
      } catch (error) {
        // An unnamed corrupt manifest does not block for long. But if the store does not answer, nothing is known about
        // it.
        const isCorrupt = codeOf(error) === 'CORRUPT';
        if (name !== undefined || !isCorrupt) throw error;
        live.unknown.add(digest);
      }
      this.#options.onProgress?.(++this.#done, live.images.size);
    });
    return missing;
  }

  async #later(): Promise<View> {
    const { clock, policy, views, objects } = this.#parts;
    await clock.sleep(policy.settleMs, this.#options.signal);
    const later = await views.newerThan(0);
    if (later.active.path === this.#view.active.path) return later;
    throw new LazydiskError(
      'BUSY',
      `${objects.url}: ${later.active.path} was opened meanwhile; run it again`,
    );
  }

  async #stillNamed(images: readonly ImageDigest[]): Promise<ImageDigest[]> {
    const { references } = this.#parts;
    const named: ImageDigest[] = [];
    for (const digest of images) {
      for (const name of this.#names.get(digest) ?? []) {
        if ((await references.find(this.#view, name)).current?.digest !== digest) continue;
        named.push(digest);
        break;
      }
    }
    return named;
  }
}

/** A root and the trash of its sweeps: everywhere its objects may be. */
export function areasOfRoot({ trash }: View, { path, root }: Area): AreaPath[] {
  return [path, ...trash.filter((area) => area.root === root).map((area) => area.path)];
}

/**
 * The images that have a manifest in `areas`, and when the newest manifest in a root was written; -1 if only in trash.
 */
export async function imagesIn(
  objects: ObjectStore,
  areas: readonly AreaPath[],
): Promise<Map<ImageDigest, { rootMs: number }>> {
  const found = new Map<ImageDigest, { rootMs: number }>();
  for (const area of areas) {
    for await (const page of objects.list(manifestsPrefix(area))) {
      for (const { key, modifiedMs } of page) {
        const meaning = meaningOf(key);
        if (meaning?.kind !== 'manifest') continue;
        const known = found.get(meaning.digest) ?? { rootMs: -1 };
        found.set(meaning.digest, known);
        if (area.startsWith('roots/')) known.rootMs = Math.max(known.rootMs, modifiedMs);
      }
    }
  }
  return found;
}

/**
 * Images that a name pointed to at some time since `sinceMs`, according to the name history: a name pointed to an image
 * until its next record was written. If a name's last record differs from its current image, its writer stopped before
 * it set the name, or another writer overtook it.
 */
export function latelyNamed(
  records: readonly DatedRecord[],
  current: readonly Reference[],
  sinceMs: number,
): Set<ImageDigest> {
  const now = new Map(current.map(({ name, digest }) => [name, digest]));
  const byName = new Map<string, DatedRecord[]>();
  for (const record of records) {
    const list = byName.get(record.name);
    if (list) list.push(record);
    else byName.set(record.name, [record]);
  }
  const found = new Set<ImageDigest>();
  for (const [name, list] of byName) {
    list.sort((a, b) => a.modifiedMs - b.modifiedMs);
    for (const [n, { digest, modifiedMs }] of list.entries()) {
      const endedMs = list[n + 1]?.modifiedMs ?? modifiedMs;
      if (digest !== null && digest !== now.get(name) && endedMs >= sinceMs) found.add(digest);
    }
  }
  return found;
}

/** The first valid manifest of `digest` in `areas`; undefined if there is none. Throws CORRUPT if none is valid. */
export async function findClear(
  objects: ObjectStore,
  areas: readonly AreaPath[],
  digest: ImageDigest,
  name: string,
): Promise<ClearManifest | undefined> {
  const places: { area: AreaPath; keyId: string }[] = [];
  for (const area of areas)
    for (const keyId of await manifestKeysIn(objects, area, digest)) places.push({ area, keyId });
  return firstClear(objects, places, digest).catch((cause) => {
    throw withContext(cause, `image ${name}`);
  });
}

function addChunks(table: IdTable, clear: ClearManifest): void {
  const { ids } = clear;
  for (let at = 0; at < ids.length; at += ID_BYTES) table.add(ids, at);
}
