/**
 * Limits how many drives start at once while the origin is the bottleneck. A cold fleet in front of a slow origin has
 * two stable states: either the starts that the origin can feed finish and fill the fleet, or so many share it that
 * each misses its deadline, fails and is retried, and nothing is ever filled (Brooker et al., "On-demand Container
 * Loading in AWS Lambda", section 5: metastable failure). So while the origin is strained, only a few drives may be
 * starting; further attaches queue, and are refused when the queue is full or they have waited too long.
 *
 * A drive is starting from its attach until it has fetched nothing from the origin for a moment.
 *
 * A host that reboots starts all its drives at once, before any read could show strain. So without strain, too, the
 * number of new drives is limited: to the bound plus the drives known to make progress. The number doubles while all
 * goes well.
 */
import { LazydiskError } from '../errors.ts';

/** What admission needs to know of a drive. */
export interface StartingDrive {
  readonly name: string;
  /** Reads answered and chunks fetched from the origin so far, and reads in flight. */
  progress(): { readonly reads: number; readonly originChunks: number; readonly inFlight: number };
}

export interface AdmissionOptions {
  /** Drives that may be starting at once while the origin is strained. */
  readonly startsMax: number;
  /** Whether reads are queueing for the origin, or it is failing. */
  readonly isStrained: () => boolean;
  /** Attaches that may wait. */
  readonly queueMax?: number;
  /** How long an attach may wait. */
  readonly waitMs?: number;
  /** The clock for `tick`. */
  readonly now?: () => number;
}

export interface AdmissionStats {
  readonly strained: boolean;
  readonly starting: number;
  readonly waiting: number;
  /** Attaches that had to wait, and attaches that were refused. */
  readonly waited: number;
  readonly refused: number;
}

/** A drive has started after this long without a fetch from the origin, and after START_MS_MAX in any case. */
const QUIET_MS = 2_000;
const START_MS_MAX = 60_000;
/** A drive is new until one of its reads is answered, or for this long: its guest may take a while to read at all. */
const NEW_MS = 500;
/** Strain is remembered for a while because it comes and goes with every batch of reads. */
const STRAIN_MS = 5_000;
const TICK_MS = 250;

interface Start {
  drive: StartingDrive | undefined;
  readonly sinceMs: number;
  originChunks: number;
  activeMs: number;
  isNew: boolean;
}

interface Waiter {
  readonly untilMs: number;
  enter(): void;
  refuse(error: LazydiskError): void;
}

/** A place among the starting drives. */
export interface Admitted {
  /** The drive exists and is watched from now on. */
  started(drive: StartingDrive): void;
  /** There will be no drive, or it is gone. */
  cancel(): void;
}

export class Admission {
  readonly #options: Required<AdmissionOptions>;
  readonly #starts = new Set<Start>();
  readonly #waiters: Waiter[] = [];
  #timer: NodeJS.Timeout | undefined;
  #strainedMs = Number.NEGATIVE_INFINITY;
  #waited = 0;
  #refused = 0;

  constructor(options: AdmissionOptions) {
    this.#options = { queueMax: 1024, waitMs: 20_000, now: () => performance.now(), ...options };
  }

  /** Resolves when another drive may start. Rejects with OVERLOAD, or with ABORTED once `signal` is aborted. */
  admit(signal?: AbortSignal): Promise<Admitted> {
    if (signal?.aborted) return Promise.reject(aborted());
    this.#look();
    if (this.#hasPlace && this.#waiters.length === 0) return Promise.resolve(this.#enter());
    const { queueMax, waitMs, now } = this.#options;
    if (this.#waiters.length >= queueMax) {
      this.#refused++;
      return Promise.reject(this.#overload());
    }
    this.#waited++;
    return new Promise((resolve, reject) => {
      const leave = () => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        reject(aborted());
      };
      const waiter: Waiter = {
        untilMs: now() + waitMs,
        enter: () => {
          signal?.removeEventListener('abort', leave);
          resolve(this.#enter());
        },
        refuse: (error) => {
          signal?.removeEventListener('abort', leave);
          reject(error);
        },
      };
      signal?.addEventListener('abort', leave, { once: true });
      this.#waiters.push(waiter);
      this.#schedule();
    });
  }

  /** Finds the drives that have started and admits waiting attaches. A timer calls it while there is anything to do. */
  tick(): void {
    this.#look();
    const nowMs = this.#options.now();
    for (const start of this.#starts) {
      if (!start.drive) continue;
      const { reads, originChunks, inFlight } = start.drive.progress();
      if (reads > 0 || nowMs - start.activeMs >= NEW_MS) start.isNew = false;
      if (originChunks > start.originChunks || inFlight > 0) start.activeMs = nowMs;
      start.originChunks = originChunks;
      if (nowMs - start.activeMs >= QUIET_MS || nowMs - start.sinceMs >= START_MS_MAX)
        this.#starts.delete(start);
    }
    while (this.#waiters.length > 0 && this.#hasPlace) this.#waiters.shift()!.enter();
    // The waiters are in the order of their deadlines.
    while (this.#waiters.length > 0 && this.#waiters[0]!.untilMs <= nowMs) {
      this.#refused++;
      this.#waiters.shift()!.refuse(this.#overload());
    }
    if (this.#starts.size === 0 && this.#waiters.length === 0) this.close();
  }

  stats(): AdmissionStats {
    return {
      strained: this.#strained,
      starting: this.#starts.size,
      waiting: this.#waiters.length,
      waited: this.#waited,
      refused: this.#refused,
    };
  }

  /** Stops the timer and rejects all waiters. */
  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    for (const waiter of this.#waiters.splice(0))
      waiter.refuse(new LazydiskError('UNAVAILABLE', 'the daemon is stopping'));
  }

  get #strained(): boolean {
    return this.#options.now() - this.#strainedMs < STRAIN_MS;
  }

  get #hasPlace(): boolean {
    const { startsMax } = this.#options;
    if (this.#strained) return this.#starts.size < startsMax;
    let news = 0;
    for (const { isNew } of this.#starts) if (isNew) news++;
    return news < startsMax + (this.#starts.size - news);
  }

  #look(): void {
    if (this.#options.isStrained()) this.#strainedMs = this.#options.now();
  }

  #enter(): Admitted {
    const nowMs = this.#options.now();
    const start: Start = { drive: undefined, sinceMs: nowMs, originChunks: 0, activeMs: nowMs, isNew: true };
    this.#starts.add(start);
    this.#schedule();
    return {
      started: (drive) => {
        start.drive = drive;
        start.activeMs = this.#options.now();
      },
      cancel: () => {
        if (this.#starts.delete(start)) this.tick();
      },
    };
  }

  #schedule(): void {
    this.#timer ??= setInterval(() => this.tick(), TICK_MS).unref();
  }

  #overload(): LazydiskError {
    const { startsMax } = this.#options;
    const why = this.#strained ? 'the origin is slow' : 'too many drives start at once';
    return new LazydiskError(
      'OVERLOAD',
      `${why}: ${this.#starts.size} drives are starting (of ${startsMax} that may), ${this.#waiters.length} wait; try again later`,
    );
  }
}

function aborted(): LazydiskError {
  return new LazydiskError('ABORTED', 'whoever wanted the drive has gone');
}
