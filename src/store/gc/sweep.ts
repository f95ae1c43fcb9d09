/**
 * Moves the garbage of the active root to trash. Nothing is destroyed: whatever no name reaches, and is older than the
 * grace period, moves to this sweep's own trash. Every reader still finds it there, and `purge` deletes it only after
 * the retention and another check of what is live. So a sweep may work from an outdated mark, stall anywhere for any
 * time, or be killed: each object is copied before it is deleted, and the next sweep moves the rest. A sweep closes its
 * trash once it has no operation in progress. Until then the trash stays, because an object that a sweep deletes late,
 * when it is needed again, may exist only in that trash.
 */
import { pooled } from '../../async/pooled.ts';
import { LazydiskError } from '../../errors.ts';
import type { ObjectInfo } from '../objects/object-store.ts';
import {
  type AreaPath,
  chunksPrefix,
  manifestsPrefix,
  meaningOf,
  SHARDS,
  stateKey,
} from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { DatedRecord } from '../roots/references.ts';
import { type View, writeIndex } from '../roots/view.ts';
import { type Journal, journaled } from './journal.ts';
import { type LiveSet, mark } from './mark.ts';
import { inArea, restore } from './restore.ts';

/** Objects moved together: all are copied, then all are deleted. */
const BATCH_MAX = 500;
const COPIES_MAX = 4;
/** Chunk folders listed at once; each copies up to COPIES_MAX objects at once. */
const SHARDS_MAX = 16;

/** Name history records are kept this long after the name was set to something else. */
const HISTORY_MS = 90 * 24 * 60 * 60 * 1000;

export interface SweepProgress {
  readonly phase: 'mark' | 'sweep';
  readonly done: number;
  readonly total: number;
}

export interface GcOptions<Progress> {
  /** Change nothing, and report what would change. */
  readonly dryRun?: boolean;
  onProgress?(progress: Progress): void;
  readonly signal?: AbortSignal;
}

export interface SweepReport {
  /** Chunks found in the active root, and how many of them are live or too young. */
  readonly chunks: number;
  readonly keptChunks: number;
  readonly liveImages: number;
  /** Unnamed images with corrupt manifests; while there are any, no chunk counts as garbage. */
  readonly unknownImages: number;
  /** Names that a stalled writer set to an image that had been deleted by then; set them again, or remove them. */
  readonly lostNames: readonly string[];
  /** What was moved to trash, or would be. */
  readonly sweptChunks: number;
  readonly sweptManifests: number;
  readonly sweptBytes: number;
  /** Objects in the trash of earlier sweeps that turned out to be live, and were restored. */
  readonly restoredObjects: number;
  /** The trash they went to; null if there was nothing to move, or on a dry run. */
  readonly trash: string | null;
}

/** Throws BUSY while images move between roots, and what `mark` throws. */
export async function sweep(parts: StoreParts, options: GcOptions<SweepProgress> = {}): Promise<SweepReport> {
  return journaled(parts.objects, options.dryRun ? 'sweep --dry-run' : 'sweep', async (journal) => {
    const view = await parts.views.newerThan(0);
    if (view.draining)
      throw new LazydiskError(
        'BUSY',
        `images still move from ${view.draining.path} to ${view.active.path}: run \`lazydisk gc rotate\` to its end first`,
      );
    return new Sweep(parts, view, journal, options).run();
  });
}

class Sweep {
  readonly #parts: StoreParts;
  readonly #view: View;
  readonly #journal: Journal;
  readonly #options: GcOptions<SweepProgress>;
  readonly #trash: AreaPath;
  #opening: Promise<void> | undefined;
  readonly #counts = {
    chunks: 0,
    keptChunks: 0,
    sweptChunks: 0,
    sweptManifests: 0,
    sweptBytes: 0,
    restoredObjects: 0,
  };

  constructor(parts: StoreParts, view: View, journal: Journal, options: GcOptions<SweepProgress>) {
    this.#parts = parts;
    this.#view = view;
    this.#journal = journal;
    this.#options = options;
    this.#trash = `trash/${view.active.root}-${journal.id}`;
  }

  async run(): Promise<SweepReport> {
    const { policy } = this.#parts;
    const nowMs = await this.#journal.storeNowMs();
    const youngMs = nowMs - policy.graceMs;
    const live = await mark(this.#parts, this.#view, {
      nowMs,
      unnamedSinceMs: youngMs,
      onProgress: (done, total) => this.#options.onProgress?.({ phase: 'mark', done, total }),
      ...(this.#options.signal && { signal: this.#options.signal }),
    });
    await this.#restore(live);
    try {
      await this.#sweepAll(live, youngMs);
    } catch (error) {
      // Only abandoned operations can be in progress now. A trash that cannot be closed stays until its root goes.
      if (this.#opening) await this.#close().catch(() => undefined);
      throw error;
    }
    if (this.#opening) await this.#close();
    if (!this.#options.dryRun) await this.#forgetHistory(nowMs);
    return {
      ...this.#counts,
      liveImages: live.images.size,
      unknownImages: live.unknown.size,
      lostNames: live.lostNames,
      trash: this.#opening ? this.#trash : null,
    };
  }

  async #sweepAll(live: LiveSet, youngMs: number): Promise<void> {
    // Manifests first, so that no new reader finds an image that is partly in the trash.
    await this.#sweepManifests(live, youngMs);
    let done = 0;
    await pooled(SHARDS_MAX, SHARDS, async (shard) => {
      await this.#sweepChunks(live, youngMs, shard);
      this.#options.onProgress?.({ phase: 'sweep', done: ++done, total: SHARDS.length });
    });
  }

  async #close(): Promise<void> {
    const { objects } = this.#parts;
    await objects.put(stateKey(this.#trash, 'closed'), Buffer.alloc(0));
    await writeIndex(objects);
  }

  /**
   * Restores what earlier sweeps moved and a name reaches by now; otherwise it would be read from the trash forever.
   */
  async #restore(live: LiveSet): Promise<void> {
    const { active, trash } = this.#view;
    for (const area of trash) {
      if (area.root !== active.root || area.isDeleting) continue;
      await this.#each(`${area.path}/`, async (page) => {
        const { objects } = this.#parts;
        const restored = await restore(objects, page, active.path, live, this.#options.dryRun);
        this.#counts.restoredObjects += restored.length;
      });
    }
  }

  async #sweepManifests(live: LiveSet, youngMs: number): Promise<void> {
    const root = this.#view.active.path;
    await this.#each(manifestsPrefix(root), async (page) => {
      const garbage = page.filter(({ key, modifiedMs }) => {
        const meaning = meaningOf(key);
        return meaning?.kind === 'manifest' && modifiedMs < youngMs && !live.images.has(meaning.digest);
      });
      this.#counts.sweptManifests += garbage.length;
      await this.#putAside(garbage);
    });
  }

  async #sweepChunks(live: LiveSet, youngMs: number, shard: string): Promise<void> {
    await this.#each(chunksPrefix(this.#view.active.path, shard), async (page) => {
      const garbage = page.filter(({ key, modifiedMs }) => {
        const meaning = meaningOf(key);
        if (meaning?.kind !== 'chunk' || modifiedMs >= youngMs) return false;
        return live.unknown.size === 0 && !live.chunks.has(meaning.id);
      });
      this.#counts.chunks += page.length;
      this.#counts.keptChunks += page.length - garbage.length;
      this.#counts.sweptChunks += garbage.length;
      await this.#putAside(garbage);
    });
  }

  async #each(prefix: string, work: (page: readonly ObjectInfo[]) => Promise<void>): Promise<void> {
    for await (const page of this.#parts.objects.list(prefix, { pageMax: BATCH_MAX })) {
      this.#options.signal?.throwIfAborted();
      await work(page);
    }
  }

  async #putAside(garbage: readonly ObjectInfo[]): Promise<void> {
    if (garbage.length === 0) return;
    for (const { sizeBytes } of garbage) this.#counts.sweptBytes += sizeBytes;
    if (this.#options.dryRun) return;
    this.#opening ??= this.#openTrash();
    await this.#opening;
    await this.#checkActive();
    const { objects } = this.#parts;
    const moved: string[] = [];
    await pooled(COPIES_MAX, garbage, async ({ key }) => {
      if (await objects.copy(key, inArea(key, this.#trash))) moved.push(key);
    });
    await objects.delete(moved);
  }

  /** Throws BUSY if the root is no longer active: its garbage is then deleted with it. */
  async #checkActive(): Promise<void> {
    const { objects, views, policy } = this.#parts;
    const { active } = await views.newerThan(policy.viewMs);
    if (active.path === this.#view.active.path) return;
    throw new LazydiskError('BUSY', `${objects.url}: ${active.path} was opened meanwhile; run it again`);
  }

  /** Opens the trash once there is something to move; after the wait, every new listing shows it. */
  async #openTrash(): Promise<void> {
    const { objects, clock, policy } = this.#parts;
    await objects.put(stateKey(this.#trash, 'opened'), Buffer.alloc(0));
    await clock.sleep(policy.settleMs, this.#options.signal);
    await writeIndex(objects);
  }

  /**
   * A record stays as long as it keeps the image of its name alive: the record after it tells when the name changed.
   */
  async #forgetHistory(nowMs: number): Promise<void> {
    const { objects, policy, references } = this.#parts;
    const sinceMs = nowMs - Math.max(HISTORY_MS, policy.graceMs);
    const records = (await references.history()).sort((a, b) => a.modifiedMs - b.modifiedMs);
    const last = new Map<string, DatedRecord>();
    const old: string[] = [];
    for (const record of records) {
      const before = last.get(record.name);
      if (before && record.modifiedMs < sinceMs) old.push(before.key);
      last.set(record.name, record);
    }
    await objects.delete(old);
  }
}
