/**
 * Writes images into a store whose roots may turn at any moment, without a lock. Chunks and manifests go to the root that
 * was active at the start. A name goes to the active root, once the whole image is there; and then the writer looks
 * whether the next root has been opened: if not, whoever opens it later will find the name and move it; if so, it
 * may have come too late for that, and is written there, too. FORMAT.md has the argument.
 */
import { LazydiskError } from '../errors.ts';
import type { ChunkId } from '../format/chunk-id.ts';
import { formatDuration } from '../units.ts';
import { type CarryOptions, ensureIn } from './carry.ts';
import type { Moment } from './clock.ts';
import {
  type AreaPath,
  chunkKey,
  chunksPrefix,
  manifestKey,
  meaningOf,
  rootPath,
  stateKey,
} from './layout.ts';
import type { StoreParts } from './parts.ts';
import { boundedWrites, overwriteManifest, placeManifest } from './place-manifest.ts';
import { isDigest, referenceName } from './reference-name.ts';
import type { ImageDigest, ManifestPlacement, ManifestProof, SetOptions, StoreWriter } from './store.ts';
import type { View } from './view.ts';

/** Times that a name is tried when others write it, or roots turn, at the same moment. */
const TRIES_MAX = 20;

export class RootWriter implements StoreWriter {
  readonly epoch: number;
  readonly #parts: StoreParts;
  readonly #root: AreaPath;
  readonly #startedAt: Moment;
  /** Manifests that we put and a listing may not show yet. */
  readonly #put = new Map<ImageDigest, string[]>();

  private constructor(parts: StoreParts, view: View, startedAt: Moment) {
    this.#parts = parts;
    this.#root = view.active.path;
    this.epoch = view.active.root;
    this.#startedAt = startedAt;
  }

  static async open(parts: StoreParts): Promise<RootWriter> {
    const startedAt = parts.clock.now();
    return new RootWriter(parts, await parts.views.newerThan(parts.policy.viewMs / 2), startedAt);
  }

  async hasChunk(id: ChunkId, sealedBytes?: number): Promise<boolean> {
    const found = await this.#parts.objects.head(chunkKey(this.#root, id));
    return found !== undefined && (sealedBytes === undefined || found.sizeBytes === sealedBytes);
  }

  async presentChunks(max: number): Promise<ReadonlyMap<ChunkId, number> | undefined> {
    const found = new Map<ChunkId, number>();
    for await (const page of this.#parts.objects.list(chunksPrefix(this.#root))) {
      for (const { key, sizeBytes } of page) {
        const meaning = meaningOf(key);
        if (meaning?.kind === 'chunk') found.set(meaning.id, sizeBytes);
      }
      if (found.size > max) return undefined;
    }
    return found;
  }

  async putChunk(id: ChunkId, sealed: Uint8Array): Promise<void> {
    await this.#parts.objects.put(chunkKey(this.#root, id), sealed, { sha256: id });
  }

  async putManifest(
    digest: ImageDigest,
    keyId: string,
    bytes: Buffer,
    opens?: ManifestProof,
  ): Promise<ManifestPlacement> {
    const { objects, policy, views } = this.#parts;
    const others = othersIn(await views.newerThan(policy.viewMs / 2), this.#root);
    const what = `${objects.url}: writing ${manifestKey(this.#root, digest, keyId)}`;
    const bounded = boundedWrites(this.#parts, what, () => this.#checkTime());
    const put = { digest, keyId, bytes, opens };
    const placement = await placeManifest(objects, this.#root, others, put, bounded);
    this.#put.set(digest, [...(this.#put.get(digest) ?? []), keyId]);
    return placement;
  }

  async addManifest(
    digest: ImageDigest,
    keyId: string,
    bytes: Buffer,
    opens?: ManifestProof,
  ): Promise<ManifestPlacement> {
    let placement: ManifestPlacement = 'kept';
    await this.#commit(digest, `manifest of ${digest}`, async (view) => {
      const root = view.active.path;
      const put = { digest, keyId, bytes, opens };
      placement = await placeManifest(this.#parts.objects, root, othersIn(view, root), put);
    });
    return placement;
  }

  async replaceManifest(digest: ImageDigest, keyId: string, bytes: Buffer): Promise<void> {
    const { objects, views } = this.#parts;
    const put = { digest, keyId, bytes };
    await this.#commit(digest, `manifest of ${digest}`, (view) =>
      overwriteManifest(objects, view.active.path, put, false),
    );
    const { active, draining, areas } = await views.newerThan(0);
    if (draining) await overwriteManifest(objects, draining.path, put, true);
    const older = areas.filter((area) => area !== active && area !== draining);
    await objects.delete(older.map(({ path }) => manifestKey(path, digest, keyId)));
  }

  async removeManifest(digest: ImageDigest, keyId: string): Promise<void> {
    const { areas } = await this.#parts.views.newerThan(0);
    await this.#parts.objects.delete(areas.map(({ path }) => manifestKey(path, digest, keyId)));
  }

  async putReference(name: string, digest: ImageDigest, options: SetOptions = {}): Promise<void> {
    if (!isDigest(digest)) throw new LazydiskError('INTERNAL', `image digest ${JSON.stringify(digest)}`);
    const fullName = referenceName(name);
    await this.#commit(digest, fullName, (view, isAgain) =>
      this.#set(view, fullName, digest, options, isAgain),
    );
  }

  async removeReference(name: string, options: SetOptions = {}): Promise<void> {
    const fullName = referenceName(name);
    await this.#commit(undefined, fullName, (view, isAgain) =>
      this.#set(view, fullName, null, options, isAgain),
    );
  }

  /**
   * `write` into the active root, when all of `digest` is there; again for as long as that was no longer the active root
   * when it was written. `isAgain` tells it that it has written already.
   */
  async #commit(
    digest: ImageDigest | undefined,
    what: string,
    write: (view: View, isAgain: boolean) => Promise<void>,
  ): Promise<void> {
    const { views, objects, clock, policy } = this.#parts;
    let view = await views.newerThan(policy.viewMs / 2);
    let isAgain = false;
    for (let tries = 1; ; tries++) {
      const { path, root } = view.active;
      if (digest && !(await ensureIn(this.#parts, view, path, digest, this.#carryOptions(digest))))
        throw new LazydiskError('NOT_FOUND', `${objects.url}: no image ${digest}`);
      this.#checkTime();
      try {
        await write(view, isAgain);
        isAgain = true;
        if (!(await objects.head(stateKey(rootPath(root + 1), 'opened')))) return;
      } catch (error) {
        if (!(error instanceof ChangedError)) throw error;
      }
      if (tries === TRIES_MAX)
        throw new LazydiskError('BUSY', `${what} was written by others at each of ${tries} tries`);
      // A listing may take as long as that to show a root that is open.
      if (isAgain) await clock.sleep(policy.settleMs / 4);
      view = await views.newerThan(0);
    }
  }

  async #set(
    view: View,
    fullName: string,
    digest: ImageDigest | null,
    { expected }: SetOptions,
    isAgain: boolean,
  ): Promise<void> {
    const { objects, references } = this.#parts;
    const { current, ownVersion } = await references.find(view, fullName);
    const was = current?.digest ?? null;
    // The second time it may mean what we made it mean.
    const isOurs = isAgain && was === digest;
    if (digest === null && was === null && !isOurs)
      throw new LazydiskError('NOT_FOUND', `no image ${fullName} in ${objects.url}`);
    if (expected !== undefined && was !== expected && !isOurs)
      throw new LazydiskError(
        'BUSY',
        `${fullName} is ${was ?? 'no name'} and not ${expected ?? 'free'}: it stays`,
      );
    const ifVersion = (await objects.canCompareAndSet()) ? { ifVersion: ownVersion } : {};
    try {
      await references.put(view.active.path, fullName, digest, ifVersion);
    } catch (error) {
      if (error instanceof LazydiskError && error.code === 'BUSY') throw new ChangedError();
      throw error;
    }
  }

  #carryOptions(digest: ImageDigest): CarryOptions {
    return { knownKeys: this.#put.get(digest) ?? [], checkTime: () => this.#checkTime() };
  }

  #checkTime(): void {
    const { clock, policy, objects } = this.#parts;
    const ageMs = clock.ageMs(this.#startedAt);
    if (ageMs <= policy.buildMs) return;
    throw new LazydiskError(
      'TIMEOUT',
      `${objects.url}: this took ${formatDuration(ageMs)}, over the store's ${formatDuration(policy.buildMs)}, and what it stored may be swept: run it again`,
    );
  }
}

/** All areas but `root`, in the order in which they are read. */
function othersIn({ areas }: View, root: AreaPath): AreaPath[] {
  return areas.map(({ path }) => path).filter((path) => path !== root);
}

/** Somebody else wrote the name between our look and our write. */
class ChangedError extends Error {}
