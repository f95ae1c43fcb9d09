/**
 * Checks a whole store: names, their manifests, the chunks of these, and stray objects; and repairs damage if it finds
 * a good copy. It deletes nothing and writes only good copies, so it may run beside builds, sweeps and rotations:
 * anything that looks wrong is checked again before it is reported.
 */
import { pooled } from '../../async/pooled.ts';
import { LazydiskError } from '../../errors.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import type { KeyRing } from '../../keys/key-ring.ts';
import { journaled } from '../gc/journal.ts';
import { areasOfRoot, imagesIn, latelyNamed } from '../gc/mark.ts';
import { leasedOf, leaseTermMs } from '../leases.ts';
import { storeTimeMs } from '../roots/clock-skew.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { View } from '../roots/view.ts';
import { ChunkScan } from './chunk-scan.ts';
import { DamageCheck } from './damage.ts';
import { type DiskPaths, describeHits } from './hit-images.ts';
import { ImageCheck, type KnownImage } from './images.ts';
import { LATE, LEASED, LiveChunks, NEEDED, NEEDED_DRAINING } from './live-chunks.ts';
import { type NamedImage, namedImages } from './names.ts';
import {
  Capped,
  type Counted,
  DAMAGED_MAX,
  type Damage,
  EXAMPLES_MAX,
  type FsckReport,
  IMAGES_MAX,
  PROBLEMS_MAX,
  type Problem,
} from './report.ts';
import { type RepairSource, Sources } from './source.ts';
import { type FsckState, type ShardResult, StateFile } from './state.ts';
import { findStrays, type Strays, type UnnamedImages } from './strays.ts';

const MANIFESTS_MAX = 4;

export interface FsckProgress {
  readonly phase: 'manifests' | 'chunks' | 'damage';
  readonly done: number;
  readonly total: number;
}

export interface FsckOptions {
  /** The fraction of the chunks that is read and verified, 0 to 1; the others are only looked for. */
  readonly sample: number;
  /** Selects these chunks: consecutive seeds select different ones. Default: the number of the day. */
  readonly seed?: number;
  /** Opens manifests, which verifies their sealed parts and allows paths to be found. */
  readonly keys?: KeyRing;
  /** Finds paths; needs keys. */
  readonly paths?: DiskPaths;
  /** Repair damage, from the store itself and from these sources in turn. */
  readonly repair?: { readonly sources: readonly RepairSource[]; readonly dryRun?: boolean };
  /** A file for the run's state, to resume from if it exists; deleted when the run is complete. */
  readonly resume?: string;
  onProgress?(progress: FsckProgress): void;
  readonly signal?: AbortSignal;
}

/**
 * Throws UNSUPPORTED for a store that cannot be listed, USAGE for the state file of another run, NO_SPACE, UNAVAILABLE,
 * ABORTED. With a state file, the same call resumes later.
 */
export async function fsck(parts: StoreParts, options: FsckOptions): Promise<FsckReport> {
  const { objects } = parts;
  if (!objects.isWritable)
    throw new LazydiskError('UNSUPPORTED', `${objects.url} cannot be listed: check it where it is written`);
  if (!(options.sample >= 0 && options.sample <= 1))
    throw new LazydiskError('USAGE', `a sample of ${options.sample}: want 0 to 1`);
  const view = await parts.views.newerThan(0);
  const roots = [view.active.path, ...(view.draining ? [view.draining.path] : [])];
  const { sample, seed } = options;
  const file = await StateFile.open(options.resume, { store: objects.url, roots, sample, seed });
  const run = new Run(parts, view, file, options);
  if (!options.repair || options.repair.dryRun) return run.toEnd();
  let report: FsckReport | undefined;
  await journaled(objects, 'fsck --repair', async () => {
    report = await run.toEnd();
    const { damagedChunks, remaining, repair } = report;
    return { problems: report.problems.length + report.moreProblems, damagedChunks, remaining, ...repair };
  });
  return report!;
}

class Run {
  readonly #parts: StoreParts;
  readonly #view: View;
  readonly #file: StateFile;
  readonly #options: FsckOptions;
  readonly #sources: Sources;
  readonly #live = new LiveChunks();
  readonly #problems = new Capped<Problem>(PROBLEMS_MAX);
  readonly #damaged = new Capped<Damage>(DAMAGED_MAX);
  /** When the run began, by the store's clock, in milliseconds since 1970. */
  #nowMs = 0;
  /** That of the state, or in a dry run a copy that is discarded. */
  readonly #mended: FsckState['mended'];
  #remaining = 0;

  constructor(parts: StoreParts, view: View, file: StateFile, options: FsckOptions) {
    this.#parts = parts;
    this.#view = view;
    this.#file = file;
    this.#options = options;
    this.#sources = new Sources(options.repair?.sources ?? []);
    const { mended } = file.state;
    for (const problem of mended.problems) this.#problems.add(problem);
    for (const damage of mended.damaged) this.#damaged.add(damage);
    this.#problems.more += mended.manifests - mended.problems.length;
    this.#damaged.more += mended.chunks - mended.damaged.length;
    this.#mended = options.repair?.dryRun ? structuredClone(mended) : mended;
  }

  async toEnd(): Promise<FsckReport> {
    try {
      const report = await this.#check();
      await this.#file.remove();
      return report;
    } catch (error) {
      // A resumed run does not find what was repaired since the last save.
      await this.#file.save().catch(() => undefined);
      throw error;
    }
  }

  async #check(): Promise<FsckReport> {
    const { repair, signal } = this.#options;
    const write = repair !== undefined && !repair.dryRun;
    this.#nowMs = await storeTimeMs(this.#parts.objects);
    const named = await namedImages(this.#parts, this.#view, (problem) => this.#addProblem(problem));
    const check = new ImageCheck(this.#parts, this.#view, {
      keys: this.#options.keys,
      sources: this.#sources,
      write,
      report: (problem) => this.#addProblem(problem),
      signal,
    });
    const known = await this.#readManifests(check, named);
    const unnamed = await this.#readUnnamed(check, named);

    const scan = new ChunkScan(this.#parts, this.#view, this.#live, this.#file, {
      nowMs: this.#nowMs,
      onProgress: (done, total) => this.#options.onProgress?.({ phase: 'chunks', done, total }),
      signal,
    });
    await scan.run();
    const damage = await this.#findDamage(known, scan.skipped, write);
    const { list } = this.#damaged;
    const hits =
      this.#damaged.total === 0
        ? []
        : await describeHits(this.#parts, known, this.#live, list, {
            paths: this.#options.keys && this.#options.paths,
            signal,
          });
    const images = new Set(named.keys());
    const strays = await findStrays(this.#parts, this.#view, images, unnamed, {
      nowMs: this.#nowMs,
      signal,
    });

    const results = scan.results();
    const sum = (of: (result: (typeof results)[number]) => number) =>
      results.reduce((total, result) => total + of(result), 0);
    const { state } = this.#file;
    return {
      store: this.#parts.objects.url,
      sample: state.sample,
      seed: state.seed,
      names: [...named.values()].reduce((total, { names }) => total + names.length, 0),
      images: named.size,
      manifests: check.manifests,
      openedManifests: check.opened,
      liveChunks: this.#live.needed(),
      readChunks: sum((one) => one.readChunks),
      readBytes: sum((one) => one.readBytes),
      inTrash: sum((one) => one.inTrash) + damage.inTrash + check.inTrash,
      problems: this.#problems.list.sort(byName),
      moreProblems: this.#problems.more,
      damagedChunks: this.#damaged.total,
      damaged: list.sort(byId),
      hitImages: hits.slice(0, IMAGES_MAX),
      moreHitImages: Math.max(0, hits.length - IMAGES_MAX),
      unknownImages: named.size - known.length,
      orphans: {
        leased: orphansOf(results, strays, 'leased'),
        young: orphansOf(results, strays, 'young'),
        garbage: orphansOf(results, strays, 'garbage'),
      },
      foreign: {
        objects: sum(({ foreign }) => foreign.objects) + strays.foreign.objects,
        bytes: sum(({ foreign }) => foreign.bytes) + strays.foreign.bytes,
        examples: [strays, ...results].flatMap(({ foreign }) => foreign.examples).slice(0, EXAMPLES_MAX),
      },
      repair: repair === undefined ? null : this.#repairReport(repair.dryRun ?? false),
      remaining: this.#remaining,
    };
  }

  async #findDamage(known: readonly KnownImage[], skipped: Uint8Array, write: boolean): Promise<DamageCheck> {
    const damage = new DamageCheck(this.#parts, this.#view.active.path, known, this.#live, {
      skipped,
      sources: this.#sources,
      repair: this.#options.repair !== undefined,
      write,
      report: (found) => this.#addDamage(found),
      save: () => this.#file.save(),
      onProgress: (done, total) => this.#options.onProgress?.({ phase: 'damage', done, total }),
      signal: this.#options.signal,
    });
    await damage.run();
    return damage;
  }

  async #readManifests(
    check: ImageCheck,
    named: ReadonlyMap<ImageDigest, NamedImage>,
  ): Promise<KnownImage[]> {
    const known: KnownImage[] = [];
    let done = 0;
    await pooled(MANIFESTS_MAX, named.values(), async (image) => {
      const found = await check.check(image);
      this.#options.onProgress?.({ phase: 'manifests', done: ++done, total: named.size });
      if (!found) return;
      known.push(found.known);
      this.#live.add(found.clear, found.known.isDraining ? NEEDED_DRAINING : NEEDED);
    });
    return known;
  }

  /** Finds images without a name that are not garbage: drives use them, or may be about to. */
  async #readUnnamed(check: ImageCheck, named: ReadonlyMap<ImageDigest, NamedImage>): Promise<UnnamedImages> {
    const { references, policy, objects } = this.#parts;
    const current = [...named.values()].flatMap(({ digest, names }) =>
      names.map((name) => ({ name, digest, updated: '' })),
    );
    const there = await imagesIn(objects, areasOfRoot(this.#view, this.#view.active));
    const { leased } = await leasedOf(objects, there, {
      sinceMs: this.#nowMs - leaseTermMs(policy),
      except: named,
      signal: this.#options.signal,
    });
    const late = latelyNamed(await references.history(), current, this.#nowMs - policy.graceMs);
    for (const digest of named.keys()) late.delete(digest);
    await pooled(MANIFESTS_MAX, new Set([...leased.keys(), ...late]), async (digest) => {
      const host = leased.get(digest);
      const clear = await check.unnamedClear(digest, host ? `attached on ${host}` : 'named until lately');
      if (clear) this.#live.add(clear, host ? LEASED : LATE);
    });
    return { leased: new Set(leased.keys()), late };
  }

  #addProblem(problem: Problem): void {
    this.#problems.add(problem);
    if (!problem.repaired) this.#remaining++;
    if (!this.#countMended(problem, problem.unproven && problem.kind === 'manifest')) return;
    this.#mended.manifests++;
    if (problem.unproven) this.#mended.unproven++;
    if (this.#mended.problems.length < PROBLEMS_MAX) this.#mended.problems.push(problem);
  }

  #addDamage(damage: Damage): void {
    this.#damaged.add(damage);
    if (!damage.repaired) this.#remaining++;
    if (!this.#countMended(damage)) return;
    this.#mended.chunks++;
    if (this.#mended.damaged.length < DAMAGED_MAX) this.#mended.damaged.push(damage);
  }

  /** Whether it was repaired, or in a dry run would be; counts the source. */
  #countMended({ copyIn, repaired }: Problem | Damage, isNotProven = false): boolean {
    const { repair } = this.#options;
    if (!repaired && (!repair?.dryRun || copyIn === null || isNotProven)) return false;
    const { bySource } = this.#mended;
    bySource[copyIn!] = (bySource[copyIn!] ?? 0) + 1;
    return true;
  }

  #repairReport(dryRun: boolean): FsckReport['repair'] {
    const { chunks, manifests, unproven, bySource } = this.#mended;
    return { dryRun, chunks, manifests, unproven, bySource, sourceErrors: this.#sources.errors };
  }
}

function orphansOf(
  results: readonly ShardResult[],
  strays: Strays,
  kind: 'leased' | 'young' | 'garbage',
): Counted {
  const sum = (of: 'chunks' | 'bytes') => results.reduce((total, result) => total + result[kind][of], 0);
  const { manifests, bytes } = strays[kind];
  return { chunks: sum('chunks'), manifests, bytes: sum('bytes') + bytes };
}

function byId(a: Damage, b: Damage): number {
  return a.id < b.id ? -1 : 1;
}

function byName(a: Problem, b: Problem): number {
  return a.names.join() + a.text < b.names.join() + b.text ? -1 : 1;
}
