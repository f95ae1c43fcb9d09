/**
 * Keeps this daemon's leases (leases.ts): records in the store which images are attached here, and renews the records.
 * An image attached by name is safe without a lease for the grace period plus the retention, so its lease is written in
 * the background. An image asked for by digest may be garbage already, so its lease is written first. Failing to write
 * leases raises an alarm long before anything is lost: seven eighths of the retention remain when a renewal fails,
 * three quarters when it is late.
 */
import { randomBytes } from 'node:crypto';
import { type Pauses, pauseAfterMs } from '../async/backoff.ts';
import { pooled } from '../async/pooled.ts';
import { errorText, isRefusal, LazydiskError, withContext } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import { leaseTermMs } from './leases.ts';
import { manifestKeysIn } from './roots/carry.ts';
import type { Moment } from './roots/clock.ts';
import { leaseKey } from './roots/layout.ts';
import type { StoreParts } from './roots/parts.ts';

/** Fractions of the term after which leases are renewed, and after which they are late. */
const RENEW_SHARE = 1 / 8;
const LATE_SHARE = 1 / 4;
const WRITES_MAX = 16;
/** Interval between checks for late leases; short enough for any timer. */
const LOOK_MS_MAX = 60 * 60 * 1000;
/** Pauses between tries while the store fails. */
const PAUSES: Pauses = { firstMs: 500, longestMs: 60_000 };

export interface LeaseStats {
  /**
   * `none`: nothing is attached; `held`: all leases are written, or about to be; `late`: leases could not be written in
   * time; `read-only`: these credentials cannot write leases.
   */
  readonly state: 'none' | 'held' | 'late' | 'read-only';
  /** Attached images, and how many of them have no current lease. */
  readonly images: number;
  readonly unleased: number;
  /** Time until the oldest lease expires unless renewed, 0 if it has; null without leases. */
  readonly expiresInMs: number | null;
  /** Why the last try failed; null if it succeeded. */
  readonly problem: string | null;
}

export interface LeaseKeeperOptions {
  /** This host's name in leases, for people. */
  readonly host: string;
  /** Called when the state changes. */
  onChange?(stats: LeaseStats): void;
}

/** The lease of one image: its key, and when it was last written. */
interface Lease {
  readonly key: string;
  readonly at: Moment;
}

interface Waiter {
  readonly image: ImageDigest;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export class LeaseKeeper {
  readonly #parts: StoreParts;
  readonly #options: LeaseKeeperOptions;
  /** Held images, with the number of holders. */
  readonly #held = new Map<ImageDigest, number>();
  readonly #waiters = new Set<Waiter>();
  readonly #closing = new AbortController();
  /** Held images without a lease. */
  readonly #untold = new Set<ImageDigest>();
  /** Leases by image, oldest first; includes images no longer held whose lease needs no renewal yet. */
  readonly #leases = new Map<ImageDigest, Lease>();
  #isReadOnly: boolean;
  #problem: unknown;
  #failures = 0;
  #failedAt: Moment | undefined;
  #wake = Promise.withResolvers<void>();
  #running: Promise<void> | undefined;
  #state: LeaseStats['state'] = 'none';

  constructor(parts: StoreParts, options: LeaseKeeperOptions) {
    this.#parts = parts;
    this.#options = options;
    this.#isReadOnly = !parts.objects.isWritable;
  }

  /** Holds `image`, which a name points to, until `release` is called as often as `add`. */
  add(image: ImageDigest): void {
    this.#held.set(image, (this.#held.get(image) ?? 0) + 1);
    const lease = this.#leases.get(image);
    if (!lease || this.#isLate(lease)) {
      this.#leases.delete(image);
      this.#untold.add(image);
    }
    this.#poke();
    this.#tell();
  }

  release(image: ImageDigest): void {
    const count = this.#held.get(image);
    if (count === undefined) throw new LazydiskError('INTERNAL', `image ${image} is not held`);
    if (count > 1) this.#held.set(image, count - 1);
    else {
      // Its lease expires by itself.
      this.#held.delete(image);
      this.#untold.delete(image);
    }
    this.#tell();
  }

  /**
   * Holds `image`, which may have no name: when this resolves, its lease is written, and no deletion of it was in
   * progress. Rejects with NOT_FOUND if no root that stays has it, UNAVAILABLE if the lease cannot be written; then it
   * is not held. In a read-only store it is held anyway, because nothing more can be done.
   */
  async hold(image: ImageDigest): Promise<void> {
    this.add(image);
    try {
      await this.#told(image);
      if (!this.#isReadOnly) await this.#checkStays(image);
    } catch (error) {
      this.release(image);
      throw error;
    }
  }

  stats(): LeaseStats {
    const { clock, policy } = this.#parts;
    const termMs = leaseTermMs(policy);
    let unleased = this.#untold.size;
    for (const [image, { at }] of this.#leases) {
      if (clock.ageMs(at) < termMs) break;
      if (this.#held.has(image)) unleased++;
    }
    const oldest = this.#oldest();
    return {
      state: this.#stateNow(),
      images: this.#held.size,
      unleased,
      expiresInMs: oldest ? Math.max(0, termMs - clock.ageMs(oldest.at)) : null,
      problem: this.#problem === undefined ? null : errorText(this.#problem),
    };
  }

  /** Stops renewing leases; they expire by themselves. */
  async close(): Promise<void> {
    this.#closing.abort();
    for (const waiter of this.#waiters) waiter.reject(new LazydiskError('ABORTED', 'the daemon is stopping'));
  }

  #poke(): void {
    if (!this.#parts.objects.isWritable) return;
    this.#wake.resolve();
    this.#running ??= this.#run();
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      this.#wake = Promise.withResolvers<void>();
      const waitMs = this.#waitMs();
      if (waitMs > 0) {
        // While the store fails, new images wait like all others, so as not to add requests.
        const woken = this.#failures > 0 ? new Promise<void>(() => {}) : this.#wake.promise;
        await this.#sleep(waitMs, woken);
        this.#tell();
        continue;
      }
      await this.#write();
    }
  }

  /** Milliseconds until a lease must be written. */
  #waitMs(): number {
    const { clock } = this.#parts;
    if (this.#failedAt) {
      const pauseMs = Math.min(pauseAfterMs(this.#failures, PAUSES), this.#renewMs);
      return pauseMs - clock.ageMs(this.#failedAt);
    }
    if (this.#untold.size > 0) return 0;
    const oldest = this.#oldest();
    return oldest ? this.#renewMs - clock.ageMs(oldest.at) : Number.POSITIVE_INFINITY;
  }

  /** The held lease that expires first. */
  #oldest(): Lease | undefined {
    for (const [image, lease] of this.#leases) if (this.#held.has(image)) return lease;
    return undefined;
  }

  #isLate({ at }: Lease): boolean {
    const { clock, policy } = this.#parts;
    return clock.ageMs(at) > leaseTermMs(policy) * LATE_SHARE;
  }

  get #renewMs(): number {
    return leaseTermMs(this.#parts.policy) * RENEW_SHARE;
  }

  async #sleep(ms: number, woken: Promise<void>): Promise<void> {
    const { clock } = this.#parts;
    const slept = new AbortController();
    const signal = AbortSignal.any([this.#closing.signal, slept.signal]);
    const sleeping = clock.sleep(Math.ceil(Math.min(ms, LOOK_MS_MAX)), signal).catch(() => undefined);
    await Promise.race([sleeping, woken]);
    slept.abort();
  }

  async #write(): Promise<void> {
    const at = this.#parts.clock.now();
    try {
      // A store that failed gets a single request first.
      const lanes = { limit: this.#failures > 0 ? 1 : WRITES_MAX };
      await pooled(lanes, this.#due(), async (image) => {
        await this.#writeOne(image, at);
        lanes.limit = WRITES_MAX;
      });
      this.#isReadOnly = false;
      this.#failures = 0;
      this.#failedAt = undefined;
      this.#problem = undefined;
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      this.#failedAt = this.#parts.clock.now();
      this.#failures++;
      this.#problem = error;
      this.#isReadOnly = isRefusal(error);
      for (const waiter of this.#waiters) {
        if (this.#isReadOnly) waiter.resolve();
        else waiter.reject(error);
      }
    }
    this.#tell();
  }

  /**
   * Images whose lease must be written now, new ones first. Forgets leases that are due for renewal and no longer held.
   */
  #due(): ImageDigest[] {
    const due = [...this.#untold];
    for (const [image, { at }] of this.#leases) {
      if (this.#parts.clock.ageMs(at) < this.#renewMs) break;
      if (this.#held.has(image)) due.push(image);
      else this.#leases.delete(image);
    }
    return due;
  }

  /**
   * A purge deletes expired leases, and may do so late. So a lease that may have been expired when the write took
   * effect is written again under a new key.
   */
  async #writeOne(image: ImageDigest, at: Moment): Promise<void> {
    const { objects, clock, policy } = this.#parts;
    const { signal } = this.#closing;
    const before = this.#leases.get(image);
    const write = (key: string) => objects.put(key, Buffer.alloc(0), { signal });
    let key = before?.key;
    if (key) await write(key);
    if (!key || clock.ageMs(before!.at) >= leaseTermMs(policy)) {
      key = leaseKey(image, `${this.#options.host}-${randomBytes(4).toString('hex')}`);
      await write(key);
    }
    this.#leases.delete(image);
    this.#leases.set(image, { key, at });
    this.#untold.delete(image);
    for (const waiter of this.#waiters) if (waiter.image === image) waiter.resolve();
  }

  /** Resolves when the lease is written, or can never be. */
  async #told(image: ImageDigest): Promise<void> {
    if (this.#isReadOnly || !this.#untold.has(image)) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const waiter: Waiter = { image, resolve, reject };
    this.#waiters.add(waiter);
    try {
      await promise;
    } catch (cause) {
      throw withContext(cause, `the store cannot be told that image ${image} is attached`, 'UNAVAILABLE');
    } finally {
      this.#waiters.delete(waiter);
    }
  }

  /**
   * Checks, with a view newer than the lease, that a root that stays has the image. A purge of a retired root writes
   * its marker and then checks leases again, so one of the two sees the other. An image found only in trash may lack
   * some of its chunks.
   */
  async #checkStays(image: ImageDigest): Promise<void> {
    const { objects, views } = this.#parts;
    const { areas } = await views.newerThan(0);
    const roots = areas.filter(({ path, isDeleting }) => path.startsWith('roots/') && !isDeleting);
    for (const { path } of roots) if ((await manifestKeysIn(objects, path, image)).length > 0) return;
    for (const { path } of areas)
      if (
        !roots.some((root) => root.path === path) &&
        (await manifestKeysIn(objects, path, image)).length > 0
      )
        throw new LazydiskError(
          'NOT_FOUND',
          `image ${image} was put aside, since nothing means it: give it a name (\`lazydisk tag ${image} NAME\`), and it comes back`,
        );
    throw new LazydiskError('NOT_FOUND', `no image ${image} in ${objects.url}`);
  }

  #stateNow(): LeaseStats['state'] {
    if (this.#held.size === 0) return 'none';
    if (this.#isReadOnly) return 'read-only';
    const oldest = this.#oldest();
    const isUntold = this.#failures > 0 && this.#untold.size > 0;
    return isUntold || (oldest && this.#isLate(oldest)) ? 'late' : 'held';
  }

  #tell(): void {
    const state = this.#stateNow();
    if (state === this.#state) return;
    this.#state = state;
    this.#options.onChange?.(this.stats());
  }
}
