/**
 * Arranges a store's images in trees by what they share: the parent of an image is the older image that it shares the
 * most bytes with. It reads only the clear parts of manifests, so it needs no key. The images that have a chunk form a
 * set, stored as one number for each chunk. There are few such sets, so what an image shares with each older one is
 * computed from its sets rather than from its chunks.
 */
import { setImmediate } from 'node:timers/promises';
import { errorText } from '../errors.ts';
import { ID_BYTES } from '../format/chunk-id.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import type { ClearManifest } from '../format/manifest-clear.ts';
import { anyClear } from './clear-image.ts';
import { IdTable } from './id-table.ts';
import type { Store } from './store.ts';

/** Manifests fetched at once. */
const MANIFESTS_MAX = 8;
/** Chunks after which it yields to the event loop. */
const TURN_CHUNKS = 8192;

/** Distinct chunks, and their sealed bytes. */
export interface Share {
  readonly chunks: number;
  readonly sealedBytes: number;
}

const NONE: Share = { chunks: 0, sealedBytes: 0 };

export interface SharingImage {
  readonly names: readonly string[];
  readonly digest: ImageDigest;
  /** When the oldest of its names was set. */
  readonly updated: string;
  /** Its depth in its tree; an image of depth 0 shares nothing with older ones. */
  readonly depth: number;
  /** A name of its parent. */
  readonly parent: string | null;
  readonly stored: Share;
  /** What no older image has; the sum over all images is what they take in total. */
  readonly added: Share;
  /** What it shares with its parent. */
  readonly shared: Share;
  /** Why its chunks are unknown, or null. */
  readonly problem: string | null;
}

type Looked = Omit<SharingImage, 'depth' | 'parent'> & { readonly parentNumber: number | undefined };

/** All named images of `store`, parents before their children. Throws UNSUPPORTED if the store cannot be listed. */
export async function shareTree(store: Store): Promise<SharingImage[]> {
  const images = await namedImages(store);
  const sets = new ImageSets();
  const looked: Looked[] = [];
  for (let from = 0; from < images.length; from += MANIFESTS_MAX) {
    const some = images.slice(from, from + MANIFESTS_MAX);
    const clears = await Promise.all(some.map(({ digest }) => clearOf(store, digest)));
    for (const [at, image] of some.entries()) {
      const clear = clears[at]!;
      const number = looked.length;
      if (typeof clear === 'string')
        looked.push({
          ...image,
          stored: NONE,
          added: NONE,
          shared: NONE,
          problem: clear,
          parentNumber: undefined,
        });
      else looked.push({ ...image, ...closest(await sets.take(number, clear)), problem: null });
    }
  }
  return inTreeOrder(looked);
}

/** All named images, oldest first. */
async function namedImages(store: Store): Promise<Pick<SharingImage, 'names' | 'digest' | 'updated'>[]> {
  const byDigest = new Map<ImageDigest, { names: string[]; digest: ImageDigest; updated: string }>();
  for (const { name, digest, updated } of await store.listReferences()) {
    const image = byDigest.get(digest);
    if (!image) byDigest.set(digest, { names: [name], digest, updated });
    else {
      image.names.push(name);
      if (updated < image.updated) image.updated = updated;
    }
  }
  return [...byDigest.values()].sort((a, b) => {
    if (a.updated !== b.updated) return a.updated < b.updated ? -1 : 1;
    return a.names[0]! < b.names[0]! ? -1 : 1;
  });
}

/** The clear part of a manifest of the image, or why there is none. */
async function clearOf(store: Store, digest: ImageDigest): Promise<ClearManifest | string> {
  try {
    return await anyClear(store, digest, await store.manifestKeys(digest));
  } catch (error) {
    return errorText(error);
  }
}

interface Shares {
  readonly added: Share;
  readonly stored: Share;
  /** What it shares with each older image, by that image's number. */
  readonly older: ReadonlyMap<number, Share>;
}

function closest({ stored, added, older }: Shares) {
  let parentNumber: number | undefined;
  let shared = NONE;
  for (const [number, share] of [...older].sort(([a], [b]) => a - b))
    if (share.sealedBytes > shared.sealedBytes) [parentNumber, shared] = [number, share];
  return { stored, added, shared, parentNumber };
}

/** Which images have which chunks; images are added one after another. */
class ImageSets {
  readonly #setOf = new IdTable(32);
  /** A set is an earlier set plus one image; set 0 is empty. */
  readonly #sets: { readonly rest: number; readonly image: number }[] = [{ rest: 0, image: -1 }];

  async take(image: number, clear: ClearManifest): Promise<Shares> {
    const bySet = new Map<number, { chunks: number; sealedBytes: number; grown: number }>();
    for (let entry = 0; entry < clear.storedChunks; entry++) {
      if (entry % TURN_CHUNKS === TURN_CHUNKS - 1) await setImmediate();
      const at = entry * ID_BYTES;
      const set = this.#setOf.flagsAt(clear.ids, at) ?? 0;
      if (this.#sets[set]!.image === image) continue;
      let share = bySet.get(set);
      if (!share) {
        share = { chunks: 0, sealedBytes: 0, grown: this.#sets.push({ rest: set, image }) - 1 };
        bySet.set(set, share);
      }
      share.chunks++;
      share.sealedBytes += clear.sealedBytesOf(entry);
      if (!this.#setOf.add(clear.ids, at, share.grown)) this.#setOf.setAt(clear.ids, at, share.grown);
    }
    const older = new Map<number, Share>();
    let stored = NONE;
    for (const [set, share] of bySet) {
      stored = sum(stored, share);
      for (let at = set; at !== 0; at = this.#sets[at]!.rest) {
        const other = this.#sets[at]!.image;
        older.set(other, sum(older.get(other) ?? NONE, share));
      }
    }
    return { stored, added: sum(NONE, bySet.get(0) ?? NONE), older };
  }
}

function sum(a: Share, b: Share): Share {
  return { chunks: a.chunks + b.chunks, sealedBytes: a.sealedBytes + b.sealedBytes };
}

function inTreeOrder(images: readonly Looked[]): SharingImage[] {
  const children = Map.groupBy(images.keys(), (number) => images[number]!.parentNumber);
  const ordered: SharingImage[] = [];
  const waiting = [...(children.get(undefined) ?? [])].reverse().map((number) => ({ number, depth: 0 }));
  for (let next = waiting.pop(); next; next = waiting.pop()) {
    const { number, depth } = next;
    const { parentNumber, ...image } = images[number]!;
    const parent = parentNumber === undefined ? null : images[parentNumber]!.names[0]!;
    ordered.push({ ...image, depth, parent });
    for (const child of (children.get(number) ?? []).toReversed())
      waiting.push({ number: child, depth: depth + 1 });
  }
  return ordered;
}
