/**
 * An image store in any object store. Reads try the areas in an order that finds a moving object wherever it is: the
 * active root, the draining one, retired ones, trash. So a drive never notices a rotation or a sweep. A read from an
 * area that is due for deletion is counted, and recorded in the store, which stops the deletion.
 */
import { LazydiskError } from '../../errors.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import { WRAPPED_KEY_OBJECT_BYTES_MAX } from '../../format/wrapped-key.ts';
import type { GetOptions, ObjectBytes, ObjectStore } from '../objects/object-store.ts';
import { referenceName } from '../reference-name.ts';
import type { PastReference, Reference, Store, StoreReadOptions, StoreStats, StoreWriter } from '../store.ts';
import { manifestKeysIn } from './carry.ts';
import { type Clock, type Moment, systemClock } from './clock.ts';
import { recordRead } from './host-reads.ts';
import {
  chunkKey,
  KEYS_PREFIX,
  manifestKey,
  meaningOf,
  rootPath,
  stateKey,
  wrappedKeyKey,
} from './layout.ts';
import { readMarker, writeMarker } from './marker.ts';
import type { StoreParts } from './parts.ts';
import { MANIFEST_BYTES_MAX } from './place-manifest.ts';
import type { StorePolicy } from './policy.ts';
import { References } from './references.ts';
import { RootWriter } from './root-writer.ts';
import { type Area, Views, writeIndex } from './view.ts';

/**
 * Creates a store. Others may be creating the same one now, and all write the same. Returns the policy that the store
 * then has.
 */
async function makeStore(
  objects: ObjectStore,
  wanted: StorePolicy | undefined,
): Promise<StorePolicy | undefined> {
  // Writing the index needs this; in a distant store, finding out takes as long as all steps before.
  const finding = objects.canCompareAndSet();
  finding.catch(() => undefined); // Whoever needs it asks again.
  await objects.put(stateKey(rootPath(1), 'opened'), Buffer.alloc(0));
  await writeMarker(objects, wanted);
  const [policy] = await Promise.all([readMarker(objects), writeIndex(objects)]);
  return policy;
}

/** A miss is final without another look at the areas if the last look is at most this old. */
const MISS_VIEW_MS = 1_000;

export interface OpenRootStoreOptions {
  /** Create the store if there is none, with `policy` if given. */
  readonly create?: boolean;
  readonly policy?: StorePolicy;
  readonly clock?: Clock;
}

export class RootStore implements Store {
  readonly url: string;
  /** For operations on the whole store: garbage collection, fsck. */
  readonly parts: StoreParts;
  readonly #recordedAt = new Map<string, Moment>();
  #retiredReads = 0;
  #unrecordedReads = 0;

  private constructor(parts: StoreParts) {
    this.url = parts.objects.url;
    this.parts = parts;
  }

  /**
   * The store takes ownership of `objects`. Throws NOT_FOUND if there is no store, CORRUPT, UNSUPPORTED, UNAVAILABLE.
   */
  static async open(objects: ObjectStore, options: OpenRootStoreOptions = {}): Promise<RootStore> {
    let policy = await readMarker(objects);
    if (!policy && options.create) {
      policy = await makeStore(objects, options.policy);
    }
    if (!policy) throw new LazydiskError('NOT_FOUND', `no store in ${objects.url}`);
    const clock = options.clock ?? systemClock;
    const views = new Views(objects, policy, clock);
    return new RootStore({ objects, policy, clock, views, references: new References(objects) });
  }

  getChunk(id: ChunkId, options: StoreReadOptions = {}): Promise<Buffer | undefined> {
    return this.#find(this.parts.objects, ({ path }) => chunkKey(path, id), SEALED_BYTES_MAX, options);
  }

  getChunkOnce(id: ChunkId, options: StoreReadOptions = {}): Promise<Buffer | undefined> {
    const objects = this.parts.objects.withoutRetries ?? this.parts.objects;
    return this.#find(objects, ({ path }) => chunkKey(path, id), SEALED_BYTES_MAX, options);
  }

  getManifest(digest: ImageDigest, keyId: string): Promise<Buffer | undefined> {
    const { objects } = this.parts;
    return this.#find(objects, ({ path }) => manifestKey(path, digest, keyId), MANIFEST_BYTES_MAX, {});
  }

  async manifestKeys(digest: ImageDigest): Promise<string[]> {
    const { areas } = await this.parts.views.forReading();
    const found = new Set<string>();
    for (const { path } of areas)
      for (const keyId of await manifestKeysIn(this.parts.objects, path, digest)) found.add(keyId);
    return [...found].sort();
  }

  async getReference(name: string): Promise<Reference | undefined> {
    const fullName = referenceName(name);
    const view = await this.parts.views.forReading();
    const { current } = await this.parts.references.find(view, fullName);
    if (!current || current.digest === null) return undefined;
    return { name: current.name, digest: current.digest, updated: current.updated };
  }

  async listReferences(): Promise<Reference[]> {
    return this.parts.references.list(await this.parts.views.forReading());
  }

  async getKey(id: string): Promise<Buffer | undefined> {
    return (await this.parts.objects.get(wrappedKeyKey(id), WRAPPED_KEY_OBJECT_BYTES_MAX))?.bytes;
  }

  async listKeys(): Promise<string[]> {
    const ids: string[] = [];
    for await (const page of this.parts.objects.list(KEYS_PREFIX))
      for (const { key } of page)
        if (meaningOf(key)?.kind === 'key') ids.push(key.slice(KEYS_PREFIX.length, -'.json'.length));
    return ids.sort();
  }

  async putKey(id: string, bytes: Uint8Array): Promise<void> {
    await this.parts.objects.put(wrappedKeyKey(id), bytes);
  }

  async history(name?: string): Promise<PastReference[]> {
    const records = await this.parts.references.history(name === undefined ? undefined : referenceName(name));
    return records.map(({ name: of, digest, timeMs }) => ({
      name: of,
      digest,
      updated: new Date(timeMs).toISOString(),
    }));
  }

  async writer(wantedChunks = 0): Promise<StoreWriter> {
    if (!this.parts.objects.isWritable) throw new LazydiskError('UNSUPPORTED', `${this.url} is only read`);
    return RootWriter.open(this.parts, wantedChunks);
  }

  stats(): StoreStats {
    const view = this.parts.views.known;
    return {
      roots: {
        active: view ? 1 : 0,
        draining: view?.draining ? 1 : 0,
        retired: view?.retired.length ?? 0,
        trash: view?.trash.length ?? 0,
      },
      retiredReads: this.#retiredReads,
      unrecordedReads: this.#unrecordedReads,
      credentialExpiryMs: this.parts.objects.credentialExpiry ?? null,
    };
  }

  close(): Promise<void> {
    return this.parts.objects.close();
  }

  /**
   * Reads from the first area that has the object. On a miss, tries all areas again if they have changed, or if there
   * are several.
   */
  async #find(
    objects: ObjectStore,
    keyIn: (area: Area) => string,
    bytesMax: number,
    options: GetOptions,
  ): Promise<Buffer | undefined> {
    const { views } = this.parts;
    const view = await views.forReading();
    const found = await this.#findIn(objects, view.areas, keyIn, bytesMax, options);
    if (found) return found.bytes;
    const fresh = await views.newerThan(MISS_VIEW_MS);
    // While we went from area to area, the object may have moved from an area ahead to one behind us.
    if (fresh === view && view.areas.length === 1) return undefined;
    return (await this.#findIn(objects, fresh.areas, keyIn, bytesMax, options))?.bytes;
  }

  async #findIn(
    objects: ObjectStore,
    areas: readonly Area[],
    keyIn: (area: Area) => string,
    bytesMax: number,
    options: GetOptions,
  ): Promise<ObjectBytes | undefined> {
    for (const area of areas) {
      const found = await objects.get(keyIn(area), bytesMax, options);
      if (!found) continue;
      const isKept = area.path.startsWith('roots/') && area.retiredMs === undefined;
      if (!isKept) this.#recordRead(area);
      return found;
    }
    return undefined;
  }

  /** Records a read at most once in half of `viewMs`, which is often enough for a retention of days. */
  #recordRead({ path }: Area): void {
    this.#retiredReads++;
    const { clock, policy, objects } = this.parts;
    const last = this.#recordedAt.get(path);
    if (last && clock.ageMs(last) < policy.viewMs / 2) return;
    this.#recordedAt.set(path, clock.now());
    const recorded = objects.isWritable
      ? recordRead(objects, path)
      : Promise.reject(new LazydiskError('UNSUPPORTED', 'only read'));
    recorded.catch(() => {
      this.#unrecordedReads++;
    });
  }
}
