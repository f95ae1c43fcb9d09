/**
 * The third part of fsck: checks the chunks that the scan did not find intact, one by one, where their readers would
 * look, and repairs them if asked to. The scan knows them only by fingerprint, so their ids come from another pass over
 * the manifests, in rounds of a limited number of chunks; without damage there is no such pass.
 */
import { pooled } from '../../async/pooled.ts';
import { type ChunkId, chunkIdOf, ID_BYTES, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import { type AreaPath, chunkKey } from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { Area, View } from '../roots/view.ts';
import type { KnownImage } from './images.ts';
import {
  DAMAGED,
  HANDLED,
  isNeeded,
  type LiveChunks,
  NEEDED,
  SEEN,
  SUSPECT,
  TRASHED,
} from './live-chunks.ts';
import { type ChunkHit, type Damage, type DamageKind, HITS_MAX } from './report.ts';
import { isChunk, readObject, type Sources } from './source.ts';

const ROUND_MAX = 50_000;
const MANIFESTS_MAX = 4;
const CHUNKS_MAX = 8;
/** The state is saved after this many repairs. */
const SAVE_EVERY = 100;

export interface DamageOptions {
  /** Folders with no absent chunk, although this run has not seen their chunks. */
  readonly skipped: Uint8Array;
  readonly sources: Sources;
  /** Also look for good copies outside the store; and write them into it. */
  readonly repair: boolean;
  readonly write: boolean;
  report(damage: Damage): void;
  save(): Promise<void>;
  onProgress?(done: number, total: number): void;
  readonly signal: AbortSignal | undefined;
}

interface Candidate {
  readonly id: ChunkId;
  readonly flags: number;
  /** Lengths according to the manifests. */
  readonly lengths: Set<number>;
  readonly hits: { readonly image: KnownImage; readonly indices: number[] }[];
  moreImages: number;
}

/** The object in one area under a chunk's key. */
interface Copy {
  readonly area: AreaPath;
  readonly state: 'good' | 'content' | 'unreadable';
  /** Null if it cannot be read. */
  readonly bytes: Buffer | null;
}

export class DamageCheck {
  inTrash = 0;
  readonly #parts: StoreParts;
  /** The root that was active during the scan. */
  readonly #active: AreaPath;
  readonly #images: readonly KnownImage[];
  readonly #live: LiveChunks;
  readonly #options: DamageOptions;
  #looked = 0;
  #repaired = 0;

  constructor(
    parts: StoreParts,
    active: AreaPath,
    images: readonly KnownImage[],
    live: LiveChunks,
    options: DamageOptions,
  ) {
    this.#parts = parts;
    this.#active = active;
    this.#images = images;
    this.#live = live;
    this.#options = options;
  }

  /** Throws UNAVAILABLE, NO_SPACE, ABORTED. */
  async run(): Promise<void> {
    const absent = this.#options.skipped.reduce(
      (sum, skipped, shard) => sum + (skipped ? 0 : this.#live.absent(shard)),
      0,
    );
    const total = absent + this.#live.suspects;
    for (let size = total > 0 ? ROUND_MAX : 0; size === ROUND_MAX; ) {
      const candidates = await this.#collect();
      size = candidates.size;
      // What moved during the scan is where the newest view says.
      const view = await this.#parts.views.newerThan(0);
      await pooled(CHUNKS_MAX, candidates.values(), async (candidate) => {
        this.#options.signal?.throwIfAborted();
        await this.#handle(candidate, view);
        this.#options.onProgress?.(Math.min(++this.#looked, total), total);
      });
    }
  }

  async #collect(): Promise<Map<ChunkId, Candidate>> {
    const found = new Map<ChunkId, Candidate>();
    await pooled(MANIFESTS_MAX, this.#images, async (image) => {
      this.#options.signal?.throwIfAborted();
      const clear = await image.clear();
      for (let entry = 0; entry < clear.storedChunks; entry++) {
        const flags = this.#live.flagsAt(clear.ids, entry * ID_BYTES);
        if (!this.#isCandidate(flags, clear.ids[entry * ID_BYTES]!)) continue;
        const id = chunkIdOf(clear.ids.subarray(entry * ID_BYTES, (entry + 1) * ID_BYTES));
        let candidate = found.get(id);
        if (!candidate) {
          if (found.size === ROUND_MAX) continue;
          candidate = { id, flags, lengths: new Set(), hits: [], moreImages: 0 };
          found.set(id, candidate);
        }
        candidate.lengths.add(clear.sealedBytesOf(entry));
        addHit(candidate, image, clear.indexOf(entry));
      }
    });
    return found;
  }

  #isCandidate(flags: number, shard: number): boolean {
    if (!isNeeded(flags) || flags & HANDLED) return false;
    return (flags & SUSPECT) !== 0 || (!(flags & (SEEN | TRASHED)) && !this.#options.skipped[shard]);
  }

  async #handle(candidate: Candidate, view: View): Promise<void> {
    const { id, lengths } = candidate;
    const found = await this.#find(candidate, view);
    if (found.state === 'well') {
      this.#live.note(id, HANDLED);
      return;
    }
    const { state: what, copy } = found;
    const sealedBytes = [...lengths][0]!;
    const mended = what === 'manifest' ? undefined : await this.#mend(id, sealedBytes, view);
    // Marked only now, so that a run that stops earlier checks it again.
    this.#live.note(id, HANDLED | DAMAGED);
    const size = copy && (await this.#sizeOf(copy, id));
    this.#options.report({
      id,
      what: what === 'content' && size !== sealedBytes ? 'length' : what,
      area: copy?.area ?? null,
      sealedBytes,
      foundBytes: size ?? null,
      hits: hitsOf(candidate),
      moreImages: candidate.moreImages,
      copyIn: mended?.from ?? null,
      repaired: mended?.isWritten ?? false,
    });
    if (mended?.isWritten && ++this.#repaired % SAVE_EVERY === 0) await this.#options.save();
  }

  /** Finds what a reader of the chunk gets, and whether it will stay available. */
  async #find(
    candidate: Candidate,
    view: View,
  ): Promise<{ state: 'well' } | { state: DamageKind; copy: Copy | undefined }> {
    const { id, flags, lengths } = candidate;
    const { active, draining } = view;
    // If a root was opened meanwhile, the previous root remains a valid place until it is retired.
    const isOld = active.path !== this.#active || !(flags & NEEDED);
    const roots = [active, ...(draining && isOld ? [draining] : [])];
    const { area, copy } = await this.#firstCopy(view, id);
    if (!area || !copy) return { state: 'missing', copy: undefined };
    if (copy.state !== 'good') return { state: copy.state, copy };
    if (lengths.size > 1 || !lengths.has(copy.bytes!.length)) return { state: 'manifest', copy };
    if (roots.includes(area)) return { state: 'well' };
    // A sweep restores live chunks from there.
    for (const trash of view.trash) {
      if (!roots.some(({ root }) => root === trash.root)) continue;
      if (trash !== area && (await this.#copyIn(trash.path, id))?.state !== 'good') continue;
      if (!(flags & TRASHED)) this.inTrash++;
      return { state: 'well' };
    }
    return { state: 'misplaced', copy };
  }

  async #firstCopy(view: View, id: ChunkId): Promise<{ area?: Area; copy?: Copy }> {
    for (const area of view.areas) {
      const copy = await this.#copyIn(area.path, id);
      if (copy) return { area, copy };
    }
    return {};
  }

  async #copyIn(area: AreaPath, id: ChunkId): Promise<Copy | undefined> {
    const bytes = await readObject(this.#parts.objects, chunkKey(area, id), SEALED_BYTES_MAX);
    if (bytes === 'absent') return undefined;
    if (bytes === 'unreadable') return { area, state: 'unreadable', bytes: null };
    return { area, state: isChunk(bytes, id) ? 'good' : 'content', bytes };
  }

  /** The copy's length; if it is longer than any chunk, only the store knows it. */
  async #sizeOf({ area, bytes }: Copy, id: ChunkId): Promise<number | undefined> {
    if (!bytes || bytes.length <= SEALED_BYTES_MAX) return bytes?.length;
    return (await this.#parts.objects.head(chunkKey(area, id)))?.sizeBytes;
  }

  /** Finds a good copy; if writing, puts it into the active root and verifies it. */
  async #mend(
    id: ChunkId,
    sealedBytes: number,
    view: View,
  ): Promise<{ from: string; isWritten: boolean } | undefined> {
    const { objects } = this.#parts;
    const found = await this.#goodCopy(id, sealedBytes, view);
    if (!found) return undefined;
    if (!this.#options.write) return { from: found.from, isWritten: false };
    await objects.put(chunkKey(view.active.path, id), found.bytes);
    const back = await this.#copyIn(view.active.path, id);
    return { from: found.from, isWritten: back?.state === 'good' };
  }

  async #goodCopy(
    id: ChunkId,
    sealedBytes: number,
    view: View,
  ): Promise<{ bytes: Buffer; from: string } | undefined> {
    for (const { path } of view.areas) {
      const copy = await this.#copyIn(path, id);
      if (copy?.state === 'good') return { bytes: copy.bytes!, from: path };
    }
    const found = this.#options.repair ? await this.#options.sources.chunk(id, sealedBytes) : undefined;
    // If a copy has the right hash and another length, the manifest is wrong.
    return found?.bytes.length === sealedBytes ? found : undefined;
  }
}

function hitsOf({ hits }: Candidate): ChunkHit[] {
  const named = hits.map(({ image: { names, digest }, indices }) => {
    return { name: names[0] ?? digest, digest, indices, paths: null };
  });
  return named.sort((a, b) => (a.name < b.name ? -1 : 1));
}

function addHit(candidate: Candidate, image: KnownImage, index: number): void {
  const known = candidate.hits.find((hit) => hit.image === image);
  if (known) {
    if (known.indices.length < HITS_MAX) known.indices.push(index);
  } else if (candidate.hits.length < HITS_MAX) candidate.hits.push({ image, indices: [index] });
  else candidate.moreImages++;
}
