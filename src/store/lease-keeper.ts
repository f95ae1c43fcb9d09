/**
 * Keeps this daemon's leases (leases.ts): tells the store which images are attached here, and goes on telling it. An image that
 * was attached by its name is safe for the grace period and the retention without one, so its lease is written behind; one
 * that was asked for by its digest may be garbage already, so there the lease comes first. A store that cannot be told is an
 * alarm long before it is a loss: seven eighths of the retention remain when a renewal fails, three quarters when it is late.
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

/** Leases are renewed after this share of their term, and are late after that one. */
const RENEW_SHARE = 1 / 8;
const LATE_SHARE = 1 / 4;
const WRITES_MAX = 16;
/** Between looks at whether it is late; short enough for any timer. */
const LOOK_MS_MAX = 60 * 60 * 1000;
/** Between tries at a store that fails. */
const PAUSES: Pauses = { firstMs: 500, longestMs: 60_000 };

export interface LeaseStats {
  /**
   * `none`: nothing is attached; `held`: the store knows of all that is, or will in a moment; `late`: it could not be told;
   * `read-only`: nor ever will be, by these credentials.
   */
  readonly state: 'none' | 'held' | 'late' | 'read-only';
  /** Images attached, and those of them that the store does not know of. */
  readonly images: number;
  readonly unleased: number;
  /** Until what the store knows of is garbage, unless it is renewed; null if it knows of nothing. 0 if that is over. */
  readonly expiresInMs: number | null;
  /** Why the last try failed; null if it did not. */
  readonly problem: string | null;
}

export interface LeaseKeeperOptions {
  /** For people: who it is that has an image attached. */
  readonly host: string;
  /** Called when the state is another than before. */
  onChange?(stats: LeaseStats): void;
}

/** The lease of one image: its key, and when it was written last. */
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
  /** Images and how often each is held. */
  readonly #held = new Map<ImageDigest, number>();
  readonly #waiters = new Set<Waiter>();
  readonly #closing = new AbortController();
  /** Held, and without a lease. */
  readonly #untold = new Set<ImageDigest>();
  /** Leases by image, the oldest first; of what is not held any more too, as long as they need no renewal. */
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

  /** Holds `image`, which a name means, until `release` is called as often. */
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
      // Its lease runs out by itself.
      this.#held.delete(image);
      this.#untold.delete(image);
    }
    this.#tell();
  }

  /**
   * Holds `image`, which may have no name: the store knows of it before this resolves, and nothing that deletes it was under
   * way then. Rejects with NOT_FOUND if it is in no root that stays, UNAVAILABLE if the store cannot be told; then it is not
   * held. Where the store is only read it is held all the same, for nobody could do more.
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

  /** Tells the store nothing any more: what it knows of runs out by itself. */
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
        // In the middle of a failure somebody new waits like all others: the store is not asked the more for it.
        const woken = this.#failures > 0 ? new Promise<void>(() => {}) : this.#wake.promise;
        await this.#sleep(waitMs, woken);
        this.#tell();
        continue;
      }
      await this.#write();
    }
  }

  /** Until the store must be told of something. */
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

  /** The lease that runs out first, of those that are held. */
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
      // A store that failed is asked for one first.
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

  /** What the store must be told of now, the new first. Forgets leases that need no renewal, being held no more. */
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
   * A purge takes away leases that are over, and may do so late. So none is written again that may have been over when that
   * took effect: then it is another object.
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

  /** Resolves when the store knows of it, or can never be told. */
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
   * By a look that begins after the lease was written. A purge of a retired root puts its mark and looks at leases once
   * more after that, so one of the two sees the other. What lies in a trash alone may be without some of its chunks.
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
