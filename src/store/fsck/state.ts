/**
 * The progress of a run, in a file, so that a run that was stopped or killed can resume. The file is written whole
 * after each chunk folder, by rename. It includes what was found in each folder; a folder with more findings than fit
 * is not done, and is checked again.
 */
import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { errorText, LazydiskError } from '../../errors.ts';
import { checked, list, matching, number, object, oneOf, record, text } from '../../shape.ts';
import { type Damage, damageShape, type Problem, problemShape } from './report.ts';

/** Maximum suspects in one folder; a folder with more is not done. */
export const SUSPECTS_MAX = 1000;

const VERSION = 3;

/** The findings in one chunk folder, over all areas. */
export interface ShardResult {
  /** Which chunks were needed then (LiveChunks.mix), and how many of those were not found. */
  mix: number;
  absent: number;
  found: number;
  suspects: string[];
  readChunks: number;
  readBytes: number;
  inTrash: number;
  leased: { chunks: number; bytes: number };
  young: { chunks: number; bytes: number };
  garbage: { chunks: number; bytes: number };
  foreign: { objects: number; bytes: number; examples: string[] };
}

const counted = object({ chunks: number, bytes: number });
const shardShape = object<ShardResult>({
  mix: number,
  absent: number,
  found: number,
  suspects: list(matching(/^[0-9a-f]{64}$/)),
  readChunks: number,
  readBytes: number,
  inTrash: number,
  leased: counted,
  young: counted,
  garbage: counted,
  foreign: object({ objects: number, bytes: number, examples: list(text()) }),
});

export interface FsckState {
  readonly kind: 'lazydisk fsck';
  readonly version: typeof VERSION;
  readonly store: string;
  /** Roots whose names were checked. */
  readonly roots: readonly string[];
  readonly sample: number;
  readonly seed: number;
  shards: Record<string, ShardResult>;
  /** What earlier runs have repaired, and this run finds intact. */
  mended: {
    chunks: number;
    manifests: number;
    unproven: number;
    bySource: Record<string, number>;
    problems: Problem[];
    damaged: Damage[];
  };
}

const stateShape = object<FsckState>({
  kind: oneOf('lazydisk fsck'),
  version: oneOf(VERSION),
  store: text(),
  roots: list(text()),
  sample: number,
  seed: number,
  shards: record(shardShape, /^[0-9a-f]{2}$/),
  mended: object<FsckState['mended']>({
    chunks: number,
    manifests: number,
    unproven: number,
    bySource: record(number),
    problems: list(problemShape),
    damaged: list(damageShape),
  }),
});

/** The parameters of a run; a file with other parameters is rejected. */
export interface FsckRun {
  readonly store: string;
  readonly roots: readonly string[];
  readonly sample: number;
  /** Undefined: the file's seed, or today's. */
  readonly seed: number | undefined;
}

export class StateFile {
  readonly state: FsckState;
  readonly #path: string | undefined;
  #saving: Promise<void> = Promise.resolve();

  private constructor(path: string | undefined, state: FsckState) {
    this.#path = path;
    this.state = state;
  }

  /** Without a path nothing is kept. Throws USAGE for the file of another run or not a state file, UNAVAILABLE. */
  static async open(path: string | undefined, run: FsckRun): Promise<StateFile> {
    const known = path === undefined ? undefined : await readState(path);
    if (known) checkSame(path!, known, run);
    const { store, roots, sample } = run;
    return new StateFile(
      path,
      known ?? {
        kind: 'lazydisk fsck',
        version: VERSION,
        store,
        roots: [...roots],
        sample,
        seed: run.seed ?? today(),
        shards: {},
        mended: { chunks: 0, manifests: 0, unproven: 0, bySource: {}, problems: [], damaged: [] },
      },
    );
  }

  /** Writes the current state; calls made while one is being written are written in turn. Rejects with UNAVAILABLE. */
  save(): Promise<void> {
    if (this.#path === undefined) return this.#saving;
    const path = this.#path;
    this.#saving = this.#saving.then(async () => {
      try {
        await writeFile(`${path}.tmp`, `${JSON.stringify(this.state)}\n`, { mode: 0o600, flush: true });
        await rename(`${path}.tmp`, path);
      } catch (cause) {
        throw new LazydiskError('UNAVAILABLE', `cannot write ${path}: ${errorText(cause)}`, { cause });
      }
    });
    return this.#saving;
  }

  /** Deletes the file: a complete run has nothing to resume. */
  async remove(): Promise<void> {
    await this.#saving;
    if (this.#path !== undefined) await rm(this.#path, { force: true });
  }
}

async function readState(path: string): Promise<FsckState | undefined> {
  let json: string;
  try {
    json = await readFile(path, 'utf8');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new LazydiskError('UNAVAILABLE', `cannot read ${path}: ${errorText(cause)}`, { cause });
  }
  try {
    return checked(stateShape, JSON.parse(json), { code: 'USAGE', name: path });
  } catch (cause) {
    throw new LazydiskError('USAGE', `${path} is not what fsck has written; give a new file`, { cause });
  }
}

function checkSame(path: string, known: FsckState, run: FsckRun): void {
  const differs = (what: string, was: unknown, is: unknown) =>
    new LazydiskError(
      'USAGE',
      `${path} is of a run with ${what} ${was}, and this has ${is}; give a new file`,
    );
  if (known.store !== run.store) throw differs('store', known.store, run.store);
  if (known.roots.join() !== run.roots.join()) throw differs('roots', known.roots, run.roots);
  if (known.sample !== run.sample) throw differs('sample', known.sample, run.sample);
  if (run.seed !== undefined && known.seed !== run.seed) throw differs('seed', known.seed, run.seed);
}

/** Days since 1970, so that a nightly run checks other chunks every night. */
function today(): number {
  return Math.floor(Date.now() / (24 * 60 * 60 * 1000));
}
