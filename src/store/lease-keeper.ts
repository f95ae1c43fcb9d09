/**
 * Keeps this daemon's lease (leases.ts): tells the store which images are attached here, and goes on telling it. An image that
 * was attached by its name is safe for the grace period and the retention without it, so its lease is written behind; one
 * that was asked for by its digest may be garbage already, so there the lease comes first. A store that cannot be told is an
 * alarm long before it is a loss: seven eighths of the retention remain when a renewal fails, three quarters when it is late.
 */
import { createHash, randomUUID } from 'node:crypto';
import { readFile, readlink } from 'node:fs/promises';
import { type Pauses, pauseAfterMs } from '../async/backoff.ts';
import { codeOf, errorText, isRetryable, LazydiskError, withContext } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import { encodeLease, leaseTermMs } from './leases.ts';
import { manifestKeysIn } from './roots/carry.ts';
import type { Moment } from './roots/clock.ts';
import { hostName } from './roots/host-reads.ts';
import { leaseKey } from './roots/layout.ts';
import type { StoreParts } from './roots/parts.ts';

/** Leases are renewed after this share of their term, or an hour, and are late after that one. */
const RENEW_SHARE = 1 / 8;
const RENEW_MS_MAX = 60 * 60 * 1000;
const LATE_SHARE = 1 / 4;
/** Between tries at a store that fails. */
const PAUSES: Pauses = { firstMs: 500, longestMs: 60_000 };
/** How long a daemon that stops waits for its last word. */
const CLOSE_MS_MAX = 2_000;

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
  /** A name that no other daemon of this store has: `leaseHost`. */
  readonly host: string;
  /** Called when the state is another than before. */
  onChange?(stats: LeaseStats): void;
}

/** What was written last, and when that began. */
interface Written {
  readonly images: ReadonlySet<ImageDigest>;
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
  #written: Written | undefined;
  #isReadOnly: boolean;
  #problem: unknown;
  #failures = 0;
  /** A try that failed may take effect after the ones that follow it, so they are not the last. */
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
    if (!this.#written?.images.has(image)) this.#poke();
    this.#tell();
  }

  release(image: ImageDigest): void {
    const count = this.#held.get(image);
    if (count === undefined) throw new LazydiskError('INTERNAL', `image ${image} is not held`);
    if (count > 1) this.#held.set(image, count - 1);
    else this.#held.delete(image);
    // The store is told at the next renewal: there is no hurry.
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
    const written = this.#written;
    let unleased = 0;
    for (const image of this.#held.keys()) if (!written?.images.has(image)) unleased++;
    const knows = written !== undefined && written.images.size > 0;
    const expiresInMs = knows ? Math.max(0, leaseTermMs(policy) - clock.ageMs(written.at)) : null;
    return {
      state: this.#stateNow(),
      images: this.#held.size,
      unleased: expiresInMs === 0 ? this.#held.size : unleased,
      expiresInMs,
      problem: this.#problem === undefined ? null : errorText(this.#problem),
    };
  }

  /** Lets go of everything, and says so to the store if that answers soon. */
  async close(): Promise<void> {
    this.#closing.abort();
    for (const waiter of this.#waiters) waiter.reject(new LazydiskError('ABORTED', 'the daemon is stopping'));
    const { objects, clock } = this.#parts;
    if (!this.#written || this.#written.images.size === 0 || this.#isReadOnly) return;
    // What is not said in time runs out by itself.
    const done = new AbortController();
    const signal = AbortSignal.any([done.signal, clock.timeout(CLOSE_MS_MAX)]);
    const lastWord = (async () => {
      await this.#running;
      await objects.put(leaseKey(this.#options.host), encodeLease([]), { signal });
    })();
    const said = lastWord.catch(() => undefined).finally(() => done.abort());
    await Promise.race([said, clock.sleep(CLOSE_MS_MAX, done.signal).catch(() => undefined)]);
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

  /** Until the store must be told; nothing is to be told it of nothing. */
  #waitMs(): number {
    const { clock, policy } = this.#parts;
    const written = this.#written;
    if (this.#failedAt && this.#failures > 0) {
      const pauseMs = Math.min(pauseAfterMs(this.#failures, PAUSES), this.#renewMs);
      return pauseMs - clock.ageMs(this.#failedAt);
    }
    for (const image of this.#held.keys()) if (!written?.images.has(image)) return 0;
    if (this.#failedAt) return policy.settleMs - clock.ageMs(this.#failedAt);
    if (!written || (written.images.size === 0 && this.#held.size === 0)) return Number.POSITIVE_INFINITY;
    return this.#renewMs - clock.ageMs(written.at);
  }

  get #renewMs(): number {
    return Math.min(leaseTermMs(this.#parts.policy) * RENEW_SHARE, RENEW_MS_MAX);
  }

  async #sleep(ms: number, woken: Promise<void>): Promise<void> {
    const { clock } = this.#parts;
    const slept = new AbortController();
    const signal = AbortSignal.any([this.#closing.signal, slept.signal]);
    // Also to see when it is late, and short enough for any timer.
    const sleeping = clock.sleep(Math.ceil(Math.min(ms, this.#renewMs)), signal).catch(() => undefined);
    await Promise.race([sleeping, woken]);
    slept.abort();
  }

  async #write(): Promise<void> {
    const { objects, clock, policy } = this.#parts;
    const images = new Set(this.#held.keys());
    const at = clock.now();
    try {
      await objects.put(leaseKey(this.#options.host), encodeLease(images));
      this.#written = { images, at };
      this.#isReadOnly = false;
      this.#failures = 0;
      this.#problem = undefined;
      // A try that was given up before has taken effect by then, or never will.
      if (this.#failedAt && clock.ageMs(this.#failedAt) - clock.ageMs(at) >= policy.settleMs)
        this.#failedAt = undefined;
      for (const waiter of this.#waiters) if (images.has(waiter.image)) waiter.resolve();
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      this.#failedAt = clock.now();
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

  /** Resolves when the store knows of it, or can never be told. */
  async #told(image: ImageDigest): Promise<void> {
    if (this.#isReadOnly || this.#written?.images.has(image)) return;
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
    const { clock, policy } = this.#parts;
    if (this.#held.size === 0) return 'none';
    if (this.#isReadOnly) return 'read-only';
    const lateMs = leaseTermMs(policy) * LATE_SHARE;
    const { images, at } = this.#written ?? {};
    const isOld = images !== undefined && images.size > 0 && clock.ageMs(at!) > lateMs;
    const isUntold =
      this.#failures > 0 && [...this.#held.keys()].some((one) => !this.#written?.images.has(one));
    return isOld || isUntold ? 'late' : 'held';
  }

  #tell(): void {
    const state = this.#stateNow();
    if (state === this.#state) return;
    this.#state = state;
    this.#options.onChange?.(this.stats());
  }
}

/** Nobody but a person can change it. */
function isRefusal(error: unknown): boolean {
  return codeOf(error) === 'UNAVAILABLE' && !isRetryable(error);
}

/**
 * A name for the lease of the daemon in `runDir`, which no other daemon has at the same time: of each kernel's namespaces, only
 * one daemon has the run directory. The same one after a restart, so that nothing is left behind.
 */
export async function leaseHost(runDir: string): Promise<string> {
  const parts = await Promise.all([
    readFile('/proc/sys/kernel/random/boot_id', 'latin1'),
    readlink('/proc/self/ns/pid'),
    readlink('/proc/self/ns/mnt'),
    // Where the system does not tell, a name that nobody has had.
  ]).catch(() => [randomUUID()]);
  const digest = createHash('sha256')
    .update(JSON.stringify([...parts, runDir]))
    .digest('hex');
  return `${hostName()}-${digest.slice(0, 16)}`;
}
