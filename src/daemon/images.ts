/**
 * Opened images, shared by digest between the drives of one daemon: a thousand drives of one image share one manifest.
 * Images that no drive uses any more are kept for a while, up to a bound, because a host starts the same few again and
 * again. Loads in progress are shared too.
 */
import { LRUCache } from 'lru-cache';
import { LazydiskError } from '../errors.ts';
import { type ImageDigest, isDigest } from '../format/image-digest.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import { type Image, loadImage } from '../store/image.ts';
import type { LeaseKeeper } from '../store/lease-keeper.ts';
import { referenceName } from '../store/reference-name.ts';
import type { Store } from '../store/store.ts';
import type { Patience, StoreAsks } from './store-asks.ts';

/**
 * What a stored chunk costs in an opened manifest: id, key, length, index, and the objects created at its first read.
 */
const ENTRY_BYTES = 256;
const IDLE_BYTES_MAX = 64 * 1024 * 1024;

/** Tells the store which images are in use here (LeaseKeeper). */
export type ImageLeases = Pick<LeaseKeeper, 'add' | 'hold' | 'release'>;

interface Used {
  readonly image: Image;
  drives: number;
}

export class SharedImages {
  readonly #store: Store;
  readonly #keys: KeyRing;
  readonly #asks: StoreAsks;
  readonly #leases: ImageLeases;
  readonly #used = new Map<ImageDigest, Used>();
  readonly #idle = new LRUCache<ImageDigest, Image>({
    maxSize: IDLE_BYTES_MAX,
    sizeCalculation: ({ manifest }) => 4096 + manifest.storedChunks * ENTRY_BYTES,
  });
  readonly #loading = new Map<string, Promise<Image>>();

  /** `asks` bounds the concurrent operations on the store; `leases` tells the store what is in use here. */
  constructor(store: Store, keys: KeyRing, asks: StoreAsks, leases: ImageLeases) {
    this.#leases = leases;
    this.#store = store;
    this.#keys = keys;
    this.#asks = asks;
  }

  /** Images that drives use now. */
  get size(): number {
    return this.#used.size;
  }

  /**
   * Returns the image, held until `release` has been called with its digest as many times. A name is looked up each
   * time, so it has its current meaning; an image in use here is found by its digest without asking the store. Throws
   * what `loadImage` throws; TIMEOUT or ABORTED when `patience` runs out; UNAVAILABLE if an image is requested by
   * digest and the store cannot be told of it.
   */
  async acquire(nameOrDigest: string, patience: Patience): Promise<Image> {
    const name = isDigest(nameOrDigest) ? nameOrDigest : referenceName(nameOrDigest);
    const here = isDigest(name) ? this.#used.get(name)?.image : undefined;
    if (here) this.#leases.add(here.digest);
    const loaded = here ?? (await this.#ask(name, patience));
    // Another call may have finished while this one waited; all must hold the same object.
    const used = this.#used.get(loaded.digest) ?? { image: loaded, drives: 0 };
    used.drives++;
    this.#used.set(loaded.digest, used);
    this.#idle.delete(loaded.digest);
    return { ...used.image, name };
  }

  release(digest: ImageDigest): void {
    const used = this.#used.get(digest);
    if (!used) throw new LazydiskError('INTERNAL', `image ${digest} was released more often than acquired`);
    this.#leases.release(digest);
    if (--used.drives > 0) return;
    this.#used.delete(digest);
    this.#idle.set(digest, used.image);
  }

  /** Returns the image with its lease, which is released if the caller has given up meanwhile. */
  async #ask(name: string, patience: Patience): Promise<Image> {
    let isGone = false;
    let leased: ImageDigest | undefined;
    const what = `image ${name}: ${this.#store.url} does not answer`;
    try {
      return await this.#asks.ask(patience, what, async () => {
        const image = await this.#find(name);
        if (isGone) this.#leases.release(image.digest);
        else leased = image.digest;
        return image;
      });
    } catch (error) {
      isGone = true;
      if (leased) this.#leases.release(leased);
      throw error;
    }
  }

  #known(digest: ImageDigest): Image | undefined {
    return this.#used.get(digest)?.image ?? this.#idle.get(digest);
  }

  async #find(name: string): Promise<Image> {
    if (isDigest(name)) return this.#findDigest(name);
    const digest = (await this.#store.getReference(name))?.digest;
    const image = (digest && this.#known(digest)) ?? (await this.#load(name));
    this.#leases.add(image.digest);
    return image;
  }

  /** The image may have no name, and one loaded long ago may be garbage by now, so the lease comes first. */
  async #findDigest(digest: ImageDigest): Promise<Image> {
    await this.#leases.hold(digest);
    try {
      return this.#known(digest) ?? (await this.#load(digest));
    } catch (error) {
      this.#leases.release(digest);
      throw error;
    }
  }

  /** Loads by name, so that an error mentions it; the image may be newer than the digest just looked up. */
  #load(name: string): Promise<Image> {
    const loading = this.#loading.get(name);
    if (loading) return loading;
    // Continues even if the caller has gone: it usually retries.
    const load = loadImage(this.#store, name, this.#keys)
      .then((image) => {
        if (!this.#used.has(image.digest)) this.#idle.set(image.digest, image);
        return image;
      })
      .finally(() => this.#loading.delete(name));
    this.#loading.set(name, load);
    return load;
  }
}
