/**
 * A store and its users in simulated time: every request takes a while to arrive and to come back, a copy reads first
 * and writes later, listings lag behind writes and deletions by up to the settle time, abandoned requests still take
 * effect, and an actor can be stopped for any time, or killed, between any two steps. One seed determines everything,
 * so a failure can be reproduced.
 */

import { LazydiskError } from '../../src/errors.ts';
import {
  checkKey,
  type ListOptions,
  type ObjectBytes,
  type ObjectInfo,
  type ObjectOptions,
  type ObjectStore,
  type PutOptions,
} from '../../src/store/objects/object-store.ts';

import type { Clock, Moment } from '../../src/store/roots/clock.ts';

/** Numbers from a seed (mulberry32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** 0 to 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number below `end`. */
  below(end: number): number {
    return Math.floor(this.next() * end);
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }
}

interface Event {
  readonly atMs: number;
  readonly serial: number;
  readonly fire: () => void;
}

/** Simulated time: sleepers are woken in the order of their time, and nothing else happens meanwhile. */
export class Simulation {
  readonly random: Random;
  nowMs = 1_000_000;
  #events: Event[] = [];
  #serial = 0;

  constructor(seed: number) {
    this.random = new Random(seed);
  }

  delay(ms: number): Promise<void> {
    return new Promise((resolve) =>
      this.#push({ atMs: this.nowMs + ms, serial: this.#serial++, fire: resolve }),
    );
  }

  /** Runs until nothing waits any more, or `untilMs`; `between` is called after every step. */
  async run(untilMs: number, between: () => void): Promise<void> {
    await new Promise(setImmediate);
    for (let event = this.#pop(untilMs); event; event = this.#pop(untilMs)) {
      this.nowMs = event.atMs;
      event.fire();
      await new Promise(setImmediate);
      between();
    }
    this.nowMs = Math.max(this.nowMs, untilMs);
  }

  get isIdle(): boolean {
    return this.#events.length === 0;
  }

  /** A binary heap by time, then by order of insertion. */
  #push(event: Event): void {
    const heap = this.#events;
    let at = heap.push(event) - 1;
    while (at > 0 && before(event, heap[(at - 1) >> 1]!)) {
      heap[at] = heap[(at - 1) >> 1]!;
      at = (at - 1) >> 1;
    }
    heap[at] = event;
  }

  #pop(untilMs: number): Event | undefined {
    const heap = this.#events;
    const first = heap[0];
    if (!first || first.atMs > untilMs) return undefined;
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
      if (child >= heap.length || !before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function before(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.serial < b.serial);
}

interface StoredObject {
  readonly bytes: Buffer;
  readonly modifiedMs: number;
  readonly version: string;
}

/** What a listing shows of a key from `fromMs` on; null: nothing. */
interface Shown {
  readonly fromMs: number;
  readonly object: StoredObject | null;
}

/** The bytes of one simulated store, shared by its views. */
export class SimStorage {
  readonly objects = new Map<string, StoredObject>();
  readonly shown = new Map<string, Shown[]>();
  /** Objects that belong to others: listings show them, and they can be overwritten and deleted, but not read. */
  readonly refused = new Set<string>();
  #versions = 0;

  set(key: string, bytes: Buffer, nowMs: number, lagMs: number): void {
    const object = { bytes, modifiedMs: nowMs, version: String(++this.#versions) };
    this.objects.set(key, object);
    this.refused.delete(key);
    this.#show(key, object, nowMs + lagMs);
  }

  /** The readable content of `key`. */
  found(key: string): StoredObject | undefined {
    if (this.refused.has(key))
      throw new LazydiskError('UNAVAILABLE', `access denied to ${key}`, { retryable: false });
    return this.objects.get(key);
  }

  remove(key: string, nowMs: number, lagMs: number): void {
    if (this.objects.delete(key)) this.#show(key, null, nowMs + lagMs);
  }

  listed(prefix: string, nowMs: number): ObjectInfo[] {
    const found: ObjectInfo[] = [];
    for (const [key, history] of this.shown) {
      if (!key.startsWith(prefix)) continue;
      const object = history.findLast(({ fromMs }) => fromMs <= nowMs)?.object;
      if (object) found.push({ key, sizeBytes: object.bytes.length, modifiedMs: object.modifiedMs });
    }
    return found;
  }

  #show(key: string, object: StoredObject | null, fromMs: number): void {
    const history = this.shown.get(key) ?? [];
    // A later write never becomes visible earlier.
    const last = history.at(-1)?.fromMs ?? 0;
    this.shown.set(key, [...history.slice(-3), { fromMs: Math.max(fromMs, last), object }]);
  }
}

export interface SimTimes {
  /** The longest one-way time of a request. */
  readonly latencyMs: number;
  /** The longest lag of a listing. */
  readonly lagMs: number;
  /** Some changes hang, as on a network file system whose server is unreachable: their share, and the longest time. */
  readonly hung?: { readonly share: number; readonly untilMs: number };
}

/** One user's view of a simulated store. */
export class SimObjects implements ObjectStore {
  readonly url = 'sim://store';
  readonly isWritable = true;
  /** The user receives no more responses, and sends no more requests. */
  isDead = false;
  #stoppedUntilMs = 0;
  #unnoticedMs = 0;
  #untilStop = Number.POSITIVE_INFINITY;
  #stop: () => void = () => undefined;
  readonly #sim: Simulation;
  readonly #storage: SimStorage;
  readonly #times: SimTimes;
  readonly #canCompareAndSet: boolean;

  constructor(sim: Simulation, storage: SimStorage, times: SimTimes, canCompareAndSet = true) {
    this.#sim = sim;
    this.#storage = storage;
    this.#times = times;
    this.#canCompareAndSet = canCompareAndSet;
  }

  /**
   * Stops the user until then, as a signal or the suspension of a host does; `isNoticed`: its clock shows the gap,
   * which it does not if a machine resumes from a snapshot.
   */
  stop(untilMs: number, isNoticed: boolean): void {
    this.#stoppedUntilMs = untilMs;
    if (!isNoticed) this.#unnoticedMs += untilMs - this.#sim.nowMs;
  }

  /** Calls `stop` before the change that follows this many others. */
  beforeChange(after: number, stop: () => void): void {
    this.#untilStop = after;
    this.#stop = stop;
  }

  /** Simulated time by the user's machine; a dead user sleeps forever. */
  get clock(): Clock {
    const machineMs = () => this.#sim.nowMs - this.#unnoticedMs;
    return {
      now: (): Moment => ({ monotonicMs: machineMs(), wallMs: machineMs() }),
      ageMs: ({ monotonicMs }) => machineMs() - monotonicMs,
      timeout: (ms) => {
        const controller = new AbortController();
        void this.#sim
          .delay(ms)
          .then(() => this.#awake())
          .then(() => controller.abort());
        return controller.signal;
      },
      sleep: async (ms, signal) => {
        await Promise.race([this.#sim.delay(ms), rejectOnAbort(signal)]);
        await this.#awake();
      },
    };
  }

  async get(key: string, bytesMax: number, options?: ObjectOptions): Promise<ObjectBytes | undefined> {
    checkKey(key);
    return this.#ask(() => {
      const found = this.#storage.found(key);
      return found && { bytes: Buffer.from(found.bytes.subarray(0, bytesMax + 1)), version: found.version };
    }, options);
  }

  async head(key: string, options?: ObjectOptions): Promise<ObjectInfo | undefined> {
    checkKey(key);
    return this.#ask(() => {
      const found = this.#storage.found(key);
      return found && { key, sizeBytes: found.bytes.length, modifiedMs: found.modifiedMs };
    }, options);
  }

  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<void> {
    checkKey(key);
    const copy = Buffer.from(bytes);
    await this.#ask(
      () => {
        const { ifVersion } = options;
        const version = this.#storage.objects.get(key)?.version ?? null;
        if (this.#canCompareAndSet && ifVersion !== undefined && ifVersion !== version)
          throw new LazydiskError('BUSY', `${key} has changed`);
        this.#storage.set(key, copy, this.#sim.nowMs, this.#lag());
      },
      options,
      'change',
    );
  }

  async copy(from: string, to: string, options?: ObjectOptions): Promise<boolean> {
    const found = await this.#ask(() => this.#storage.found(from), options);
    if (!found) return false;
    const write = () => this.#storage.set(to, found.bytes, this.#sim.nowMs, this.#lag());
    await this.#ask(write, options, 'change');
    return true;
  }

  async delete(keys: readonly string[], options?: ObjectOptions): Promise<void> {
    await Promise.all(
      keys.map((key) => {
        const remove = () => this.#storage.remove(key, this.#sim.nowMs, this.#lag());
        return this.#ask(remove, options, 'change');
      }),
    );
  }

  async *list(prefix: string, options: ListOptions = {}): AsyncIterable<readonly ObjectInfo[]> {
    checkKey(prefix, 'prefix');
    const all = await this.#ask(() => this.#storage.listed(prefix, this.#sim.nowMs), options);
    const { pageMax = 1000 } = options;
    for (let at = 0; at < all.length; at += pageMax) {
      yield all.slice(at, at + pageMax);
      await this.#ask(() => undefined, options);
    }
  }

  nowMs(options?: ObjectOptions): Promise<number> {
    return this.#ask(() => this.#sim.nowMs, options);
  }

  async canCompareAndSet(): Promise<boolean> {
    return this.#canCompareAndSet;
  }

  async close(): Promise<void> {}

  #lag(): number {
    return this.#sim.random.next() * this.#times.lagMs;
  }

  async #ask<T>(
    effect: () => T,
    options: ObjectOptions = {},
    kind: 'question' | 'change' = 'question',
  ): Promise<T> {
    if (kind === 'change' && this.#untilStop-- === 0) this.#stop();
    await this.#awake();
    const hangsMs = kind === 'change' ? this.#hangsMs() : 0;
    const arrives = this.#sim.delay(hangsMs + this.#sim.random.next() * this.#times.latencyMs);
    // Once sent, it takes effect, whether or not the sender lives or waits.
    const answer = arrives.then(effect);
    answer.catch(() => undefined);
    // A hanging file system call cannot be abandoned; only its process can be killed.
    const aborted = hangsMs > 0 ? never() : rejectOnAbort(options.signal);
    try {
      await Promise.race([arrives, aborted]);
      await Promise.race([this.#sim.delay(this.#sim.random.next() * this.#times.latencyMs), aborted]);
    } finally {
      await this.#awake();
    }
    return answer;
  }

  /** Resolves when the user is awake; never if it is dead. */
  async #awake(): Promise<void> {
    while (this.#sim.nowMs < this.#stoppedUntilMs)
      await this.#sim.delay(this.#stoppedUntilMs - this.#sim.nowMs);
    if (this.isDead) await never();
  }

  #hangsMs(): number {
    const { hung } = this.#times;
    if (!hung || this.#sim.random.next() >= hung.share) return 0;
    return this.#sim.random.next() * Math.max(0, hung.untilMs - this.#sim.nowMs);
  }
}

function never(): Promise<never> {
  return new Promise(() => {});
}

function rejectOnAbort(signal: AbortSignal | undefined): Promise<never> {
  if (!signal) return never();
  return new Promise((_, reject) => {
    const abort = () => reject(new LazydiskError('ABORTED', 'cancelled', { cause: signal.reason }));
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
  });
}
