/**
 * Writes images, without a lock, into a store that may be rotated at any moment. Chunks and manifests go to the root
 * that was active at the start. A name goes to the active root, once the whole image is there. Then the writer checks
 * whether the next root has been opened. If not, whoever opens it later will find the name and move it; if so, the name
 * may have been too late for that, and is written to the next root too.
 *
 * Any process may stall anywhere and continue much later, so a check before a write proves nothing. What counts is
 * checked afterwards: the store's time, and, if that is too late or the chunks are not this writer's own, whether the
 * whole image is there now that everyone sees its name. If not, the name is taken back. FORMAT.md has the argument.
 */
import { codeOf, LazydiskError, withMessage } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { type ImageDigest, isDigest } from '../../format/image-digest.ts';
import { formatDuration } from '../../units.ts';
import { referenceName } from '../reference-name.ts';
import type { ManifestPlacement, ManifestProof, SetOptions, StoreWriter } from '../store.ts';
import { ensureIn } from './carry.ts';
import { listChunks } from './chunk-list.ts';
import type { Moment } from './clock.ts';
import { type AreaPath, chunkKey, manifestKey, rootPath, stateKey } from './layout.ts';
import type { StoreParts } from './parts.ts';
import { boundedWrites, overwriteManifest, placeManifest } from './place-manifest.ts';
import type { NamedDigest } from './references.ts';
import type { View } from './view.ts';

/** Maximum attempts to write a name while others write it, or roots change, at the same time. */
const TRIES_MAX = 20;

/** A name as it was written, and what it pointed to before. */
interface Written {
  readonly reference: NamedDigest;
  readonly before: ImageDigest | null;
}

/** Performs a commit's write in the active root; `earlier` is its result in a previous root, if any. */
type Write = (view: View, earlier: Written | undefined) => Promise<Written | undefined>;

export class RootWriter implements StoreWriter {
  readonly epoch: number;
  readonly #parts: StoreParts;
  readonly #root: AreaPath;
  readonly #startedAt: Moment;
  /** The store's time when the writer began. */
  readonly #begunMs: number;
  /** The number of chunks that the caller expects to look for, and the listing that is made for the first of them. */
  readonly #wantedChunks: number;
  #listed: Promise<Map<ChunkId, number> | undefined> | undefined;
  /** Manifests that this writer put and that a listing may not show yet. */
  readonly #put = new Map<ImageDigest, string[]>();

  private constructor(
    parts: StoreParts,
    view: View,
    began: { readonly at: Moment; readonly storeMs: number },
    wantedChunks: number,
  ) {
    this.#parts = parts;
    this.#root = view.active.path;
    this.epoch = view.active.root;
    this.#startedAt = began.at;
    this.#begunMs = began.storeMs;
    this.#wantedChunks = wantedChunks;
  }

  static async open(parts: StoreParts, wantedChunks: number): Promise<RootWriter> {
    const at = parts.clock.now();
    const storeMs = await parts.objects.nowMs();
    const view = await parts.views.newerThan(parts.policy.viewMs / 2);
    return new RootWriter(parts, view, { at, storeMs }, wantedChunks);
  }

  async hasChunk(id: ChunkId, sealedBytes?: number): Promise<boolean> {
    const { objects } = this.#parts;
    this.#listed ??= listChunks(objects, this.#root, this.#wantedChunks);
    const listed = await this.#listed;
    const found = listed ? listed.get(id) : (await objects.head(chunkKey(this.#root, id)))?.sizeBytes;
    return found !== undefined && (sealedBytes === undefined || found === sealedBytes);
  }

  async putChunk(id: ChunkId, sealed: Uint8Array): Promise<void> {
    await this.#parts.objects.put(chunkKey(this.#root, id), sealed, { sha256: id });
    (await this.#listed)?.set(id, sealed.length);
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
      return undefined;
    });
    return placement;
  }

  async replaceManifest(digest: ImageDigest, keyId: string, bytes: Buffer): Promise<void> {
    const { objects, views } = this.#parts;
    const put = { digest, keyId, bytes };
    await this.#commit(digest, `manifest of ${digest}`, async (view) => {
      await overwriteManifest(objects, view.active.path, put, false);
      return undefined;
    });
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
    await this.#commit(digest, fullName, (view, earlier) =>
      this.#set(view, fullName, digest, options, earlier),
    );
  }

  async removeReference(name: string, options: SetOptions = {}): Promise<void> {
    const fullName = referenceName(name);
    await this.#commit(undefined, fullName, (view, earlier) =>
      this.#set(view, fullName, null, options, earlier),
    );
  }

  /**
   * Calls `write` for the active root once all of `digest` is there, and repeats while the root turns out not to have
   * been active when it was written.
   */
  async #commit(digest: ImageDigest | undefined, what: string, write: Write): Promise<void> {
    const { views, objects, clock, policy } = this.#parts;
    let view = await views.newerThan(policy.viewMs / 2);
    let isWritten = false;
    let written: Written | undefined;
    for (let tries = 1; ; tries++) {
      if (digest) await this.#ensure(view, digest, true);
      this.#checkTime();
      try {
        written = await write(view, written);
        isWritten = true;
        const next = rootPath(view.active.root + 1);
        const [turned, storeMs] = await Promise.all([
          objects.head(stateKey(next, 'opened')),
          objects.nowMs(),
        ]);
        if (!turned && (await this.#stands(view, digest, written, storeMs))) return;
      } catch (error) {
        if (!(error instanceof ChangedError)) throw error;
      }
      if (tries === TRIES_MAX)
        throw new LazydiskError('BUSY', `${what} was written by others at each of ${tries} tries`);
      // A listing may take that long to show an opened root.
      if (isWritten) await clock.sleep(policy.settleMs / 4);
      view = await views.newerThan(0);
    }
  }

  /**
   * Whether the write made under `view`, before store time `storeMs`, holds. It does if it was in time and all chunks
   * are ones that this writer has seen itself. Otherwise the whole image is checked once more, now that garbage
   * collectors see it: what is in the root now is live to everyone who could delete it. False if the root has been
   * replaced meanwhile. If the image is incomplete, takes the name back and throws NOT_FOUND or CORRUPT.
   */
  async #stands(
    { active }: View,
    digest: ImageDigest | undefined,
    written: Written | undefined,
    storeMs: number,
  ): Promise<boolean> {
    const { views, policy } = this.#parts;
    const isLate = storeMs - this.#begunMs > policy.buildMs;
    const isProven = digest === undefined || written === undefined || this.#put.has(digest);
    if (!isLate && isProven) return true;
    const view = await views.newerThan(0);
    if (view.active.path !== active.path) return false;
    if (digest === undefined) return true;
    try {
      await this.#ensure(view, digest, false);
      return true;
    } catch (error) {
      const isGone = error instanceof LazydiskError && ['NOT_FOUND', 'CORRUPT'].includes(error.code);
      if (isGone && written) await this.#takeBack(active.path, written, error);
      throw error;
    }
  }

  /** Copies all of the image into the active root. Throws NOT_FOUND if it is not in the store. */
  async #ensure(view: View, digest: ImageDigest, isTrusting: boolean): Promise<void> {
    const isThere = await ensureIn(this.#parts, view, view.active.path, digest, {
      isTrusting,
      knownKeys: this.#put.get(digest) ?? [],
      // A check after the name was written has no deadline.
      checkTime: () => isTrusting && this.#checkTime(),
    });
    if (!isThere) throw new LazydiskError('NOT_FOUND', `${this.#parts.objects.url}: no image ${digest}`);
  }

  /**
   * Restores the previous image of the name, and throws `cause` with the outcome. Without compare-and-set this could
   * overwrite a name that others have set since, so the name then stays.
   */
  async #takeBack(area: AreaPath, { reference, before }: Written, cause: LazydiskError): Promise<never> {
    const { objects, references } = this.#parts;
    const canTake = await objects.canCompareAndSet();
    const isBack = canTake && (await references.takeBack(area, reference, before));
    const end = canTake
      ? isBack
        ? `means ${before ?? 'nothing'} again`
        : 'was set by others since'
      : 'means an image that is not whole: set it again, or remove it';
    throw withMessage(cause, `${cause.message}; ${reference.name} ${end}`);
  }

  async #set(
    view: View,
    fullName: string,
    digest: ImageDigest | null,
    { expected }: SetOptions,
    earlier: Written | undefined,
  ): Promise<Written> {
    const { objects, references } = this.#parts;
    const { current, ownVersion } = await references.find(view, fullName);
    const was = current?.digest ?? null;
    // On a second try it may point to what we set it to.
    const isOurs = earlier !== undefined && was === digest;
    if (digest === null && was === null && !isOurs)
      throw new LazydiskError('NOT_FOUND', `no image ${fullName} in ${objects.url}`);
    if (expected !== undefined && was !== expected && !isOurs)
      throw new LazydiskError(
        'BUSY',
        `${fullName} is ${was ?? 'no name'} and not ${expected ?? 'free'}: it stays`,
      );
    const ifVersion = (await objects.canCompareAndSet()) ? { ifVersion: ownVersion } : {};
    try {
      const options = { begunMs: this.#begunMs, ...ifVersion };
      const reference = await references.put(view.active.path, fullName, digest, options);
      return { reference, before: isOurs ? earlier.before : was };
    } catch (error) {
      if (codeOf(error) === 'BUSY') throw new ChangedError();
      throw error;
    }
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

/** All areas except `root`, in lookup order. */
function othersIn({ areas }: View, root: AreaPath): AreaPath[] {
  return areas.map(({ path }) => path).filter((path) => path !== root);
}

/** Another process wrote the name between our read and our write. */
class ChangedError extends Error {}
