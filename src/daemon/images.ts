/**
 * Opened images, shared by digest between the drives of one daemon: a thousand drives of one image hold one
 * manifest. Images that no drive uses any more stay a while, up to a bound, because a host starts the same few again
 * and again; loads under way are shared too.
 */
import { LRUCache } from 'lru-cache';
import { LazydiskError } from '../errors.ts';
import { type Image, loadImage } from '../store/image.ts';
import type { KeyRing } from '../store/key-ring.ts';
import { isDigest, referenceName } from '../store/reference-name.ts';
import type { ImageDigest, Store } from '../store/store.ts';

/** What a stored chunk costs in an opened manifest: id, key, length, index, and the objects made at its first read. */
const ENTRY_BYTES = 256;
const IDLE_BYTES_MAX = 64 * 1024 * 1024;

interface Used {
  readonly image: Image;
  drives: number;
}

export class SharedImages {
  readonly #store: Store;
  readonly #keys: KeyRing;
  readonly #used = new Map<ImageDigest, Used>();
  readonly #idle = new LRUCache<ImageDigest, Image>({
    maxSize: IDLE_BYTES_MAX,
    sizeCalculation: ({ manifest }) => 4096 + manifest.storedChunks * ENTRY_BYTES,
  });
  readonly #loading = new Map<string, Promise<Image>>();

  constructor(store: Store, keys: KeyRing) {
    this.#store = store;
    this.#keys = keys;
  }

  /** Images that drives use now. */
  get size(): number {
    return this.#used.size;
  }

  /**
   * The image, held until `release` is called with its digest as often. A name is looked up anew each time, so it
   * means what the store says now. Throws what `loadImage` does.
   */
  async acquire(nameOrDigest: string): Promise<Image> {
    const name = isDigest(nameOrDigest) ? nameOrDigest : referenceName(nameOrDigest);
    const digest = await this.#digestOf(name);
    const known = digest && (this.#used.get(digest)?.image ?? this.#idle.get(digest));
    const loaded = known ?? (await this.#load(name));
    // Another call may have come first while this one loaded; all must hold the same object.
    const used = this.#used.get(loaded.digest) ?? { image: loaded, drives: 0 };
    used.drives++;
    this.#used.set(loaded.digest, used);
    this.#idle.delete(loaded.digest);
    return { ...used.image, name };
  }

  release(digest: ImageDigest): void {
    const used = this.#used.get(digest);
    if (!used) throw new LazydiskError('INTERNAL', `image ${digest} was released more often than acquired`);
    if (--used.drives > 0) return;
    this.#used.delete(digest);
    this.#idle.set(digest, used.image);
  }

  async #digestOf(name: string): Promise<ImageDigest | undefined> {
    if (isDigest(name)) return name;
    return (await this.#store.getReference(name))?.digest;
  }

  /** By name, so that a failure says which; the digest of what comes may be newer than the one just looked up. */
  #load(name: string): Promise<Image> {
    const loading = this.#loading.get(name);
    if (loading) return loading;
    const load = loadImage(this.#store, name, this.#keys).finally(() => this.#loading.delete(name));
    this.#loading.set(name, load);
    return load;
  }
}
