/**
 * Gets chunks into memory. A chunk already there is returned at once and without a promise; every other chunk is one
 * flight, however many callers ask for it. A flight asks the tiers in order, verifies and decodes each copy into a slab
 * slot in one native job, discards bad copies in the tier that had them, and puts good copies into the tiers above. No
 * caller sees and no tier keeps bytes that have not been verified.
 */
import { OPEN_OK, OPEN_WRONG_ID, openChunk } from '../../native/index.ts';
import { withDeadline } from '../async/deadline.ts';
import { type ReadContext, withNearerDeadline } from '../async/read-context.ts';
import { LazydiskError } from '../errors.ts';
import type { ChunkRef } from '../format/chunk-id.ts';
import { type ChunkRead, Flight } from './flight.ts';
import { type ChunkMemory, memoryKey } from './memory.ts';
import type { ReadObserver } from './observer.ts';
import { type Place, Places } from './places.ts';
import { failuresText, readFailure, type TierFailure } from './read-failure.ts';
import type { PinnedChunk, Slot } from './slab.ts';
import type { ChunkTier, SealedLoan } from './tier.ts';
import { WriteBack, type WriteBackTarget } from './write-back.ts';

export interface ChunkReaderOptions {
  readonly memory: ChunkMemory;
  /** Nearest first. The reader closes them. */
  readonly tiers: readonly ChunkTier[];
  readonly observer: ReadObserver;
  /**
   * How long a tier other than the last may take before the next one is asked (never over half of the read's remaining
   * time), so that a hung cache makes reads slow instead of failed. Default 2 s.
   */
  readonly cacheTimeoutMs?: number;
  /** Chunks being fetched at once; others wait in a fair queue. Default 1024. */
  readonly flightsMax?: number;
  /** Chunks that may wait; beyond that, the newest of the drive with the most is refused. Default 16384. */
  readonly waitingMax?: number;
  /**
   * The most flights of readahead and prefetch together; they do not wait, so one more is refused with OVERLOAD.
   * Default a quarter of the slots in memory, at most 256.
   */
  readonly backgroundFlightsMax?: number;
  /** Memory of sealed bytes being written into one upper tier at once; more is dropped. Default 16 MiB. */
  readonly writeBackBytesMax?: number;
}

export interface ChunkReaderStats {
  /** Chunk reads that memory answered, and those that it did not. */
  readonly memoryHits: number;
  readonly memoryMisses: number;
  /** Chunks being fetched from tiers, and those whose turn has not come. */
  readonly flights: number;
  readonly waiting: number;
  readonly backgroundFlights: number;
  /** Chunks that were not put into a tier above because too much was being written there. */
  readonly droppedWriteBacks: number;
}

/** What one tier returned: the chunk in a slot (pinned once, by the flight), or why not. */
type TierAnswer = { readonly slot: Slot; readonly loan: SealedLoan } | TierFailure;

export class ChunkReader {
  readonly memory: ChunkMemory;
  readonly #tiers: readonly ChunkTier[];
  readonly #observer: ReadObserver;
  readonly #cacheTimeoutMs: number;
  readonly #places: Places;
  readonly #writeBack: WriteBack;
  readonly #flights = new Map<string, Flight>();
  /** The work of every flight, including cancelled ones that are winding up. */
  readonly #running = new Set<Promise<void>>();
  #memoryHits = 0;
  #memoryMisses = 0;
  #closed = false;

  constructor(options: ChunkReaderOptions) {
    this.memory = options.memory;
    this.#tiers = options.tiers;
    this.#observer = options.observer;
    this.#cacheTimeoutMs = options.cacheTimeoutMs ?? 2_000;
    const backgroundMax = options.backgroundFlightsMax ?? Math.max(1, Math.min(256, this.memory.slots >> 2));
    this.#places = new Places({
      name: 'reader',
      places: options.flightsMax ?? 1024,
      backgroundMax,
      // Prefetch leaves half of the background to readahead, which is about to be needed.
      prefetchMax: Math.ceil(backgroundMax / 2),
      queueMax: options.waitingMax ?? 16_384,
    });
    this.#writeBack = new WriteBack(options.writeBackBytesMax ?? 16 * 1024 * 1024, this.#observer);
  }

  /** The chunk, pinned, if it is in memory. Takes well under a microsecond. */
  tryGet(ref: ChunkRef): PinnedChunk | undefined {
    const slot = this.memory.get(memoryKey(ref));
    if (slot) this.#memoryHits++;
    return slot;
  }

  /** Whether the chunk is in memory or being fetched; reading it ahead is then useless. */
  isNear(ref: ChunkRef): boolean {
    const key = memoryKey(ref);
    return this.memory.has(key) || this.#flights.has(key);
  }

  /**
   * The chunk, pinned. A read of a chunk that is being fetched joins that flight and makes it as urgent as itself.
   * Rejects with a LazydiskError that names the chunk, each tier and its cause: NOT_FOUND, CORRUPT, TIMEOUT,
   * UNAVAILABLE, ABORTED; OVERLOAD when its turn did not come before its deadline.
   */
  async get(ref: ChunkRef, ctx: ReadContext): Promise<ChunkRead> {
    const key = memoryKey(ref);
    const slot = this.memory.get(key);
    if (slot) {
      this.#memoryHits++;
      return { chunk: slot, tier: 'memory', fetchedBytes: 0 };
    }
    this.#memoryMisses++;
    if (this.#closed) throw new LazydiskError('ABORTED', `chunk ${ref.id}: the reader is closed`);
    if (ctx.signal?.aborted) throw new LazydiskError('ABORTED', `chunk ${ref.id}: the read was cancelled`);
    const known = this.#flights.get(key);
    if (known) {
      this.#observer.singleFlightWait();
      return known.join(ctx);
    }
    return this.#start(key, ref, ctx);
  }

  stats(): ChunkReaderStats {
    return {
      memoryHits: this.#memoryHits + this.memory.hitMapReads,
      memoryMisses: this.#memoryMisses,
      flights: this.#places.taken,
      waiting: this.#places.waiting,
      backgroundFlights: this.#places.background,
      droppedWriteBacks: this.#writeBack.dropped,
    };
  }

  /** Cancels what is in flight (its callers get ABORTED), waits for write-backs, and closes the tiers. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const flight of this.#flights.values()) flight.cancel();
    while (this.#running.size > 0) await Promise.all(this.#running);
    await this.#writeBack.drain();
    await Promise.all(this.#tiers.map((tier) => tier.close()));
  }

  #start(key: string, ref: ChunkRef, ctx: ReadContext): Promise<ChunkRead> {
    const flight = new Flight(key, ref, ctx, (abandoned) => this.#remove(abandoned));
    const place = this.#places.tryEnter(flight);
    if (!place && ctx.class !== 'demand')
      throw new LazydiskError('OVERLOAD', `chunk ${ref.id}: ${this.#places.taken} chunks are being fetched`);
    this.#flights.set(key, flight);
    const read = flight.join(ctx);
    const running = this.#fly(flight, place).finally(() => this.#running.delete(running));
    this.#running.add(running);
    return read;
  }

  #remove(flight: Flight): void {
    // A cancelled flight has already left the map, and a newer one of the same chunk may be there.
    if (this.#flights.get(flight.key) === flight) this.#flights.delete(flight.key);
  }

  /** Never rejects: errors become the flight's failure. */
  async #fly(flight: Flight, given: Place | undefined): Promise<void> {
    let place = given;
    try {
      place ??= await this.#places.enter(flight);
      await this.#askTiers(flight);
    } catch (error) {
      const cause = error instanceof LazydiskError ? error : undefined;
      flight.fail(
        cause ?? new LazydiskError('INTERNAL', `chunk ${flight.ref.id}: ${error}`, { cause: error }),
      );
    } finally {
      this.#remove(flight);
      if (place) this.#places.leave(place);
    }
  }

  async #askTiers(flight: Flight): Promise<void> {
    const failures: TierFailure[] = [];
    for (const [level, tier] of this.#tiers.entries()) {
      if (flight.signal.aborted) return;
      flight.progress = [failuresText(failures), `${tier.name}: asked`].filter(Boolean).join('; ');
      const answer = await this.#askTier(flight, tier, level === this.#tiers.length - 1);
      if (!('slot' in answer)) {
        failures.push(answer);
        continue;
      }
      this.#remove(flight);
      flight.land(answer.slot, tier.name, answer.loan.bytes.length);
      answer.slot.release();
      const targets = failures.map(
        (failure, above): WriteBackTarget => ({ tier: this.#tiers[above]!, heals: failure.kind === 'bad' }),
      );
      this.#writeBack.offer(targets, flight.ref.id, answer.loan);
      return;
    }
    throw readFailure(flight.ref.id, failures);
  }

  async #askTier(flight: Flight, tier: ChunkTier, isLast: boolean): Promise<TierAnswer> {
    const { id, sealedBytes } = flight.ref;
    const startedAt = performance.now();
    let answeredAt: number | undefined;
    const tell = (result: 'hit' | 'miss' | 'error', bytes: number) => {
      const durationMs = (answeredAt ?? performance.now()) - startedAt;
      this.#observer.tierRead(tier.name, result, flight.class, bytes, durationMs);
    };

    let loan: SealedLoan | undefined;
    try {
      const cacheMs = Math.min(this.#cacheTimeoutMs, (flight.deadline - startedAt) / 2);
      const ctx = isLast ? flight : withNearerDeadline(flight, startedAt + cacheMs);
      // Tiers keep the deadline themselves; one that does not must not hold up the flight and all its callers.
      const asked = tier.get(id, sealedBytes, ctx);
      loan = await withDeadline(asked, ctx, `${tier.name}: no answer`, (late) => late?.release());
    } catch (error) {
      tell('error', 0);
      return { tier: tier.name, kind: 'error', error };
    }
    answeredAt = performance.now();
    if (!loan) {
      tell('miss', 0);
      return { tier: tier.name, kind: 'miss' };
    }

    let answer: TierAnswer;
    try {
      answer = await this.#open(flight, tier, loan);
    } catch (error) {
      loan.release();
      tell('error', 0);
      throw error;
    }
    if ('slot' in answer) {
      tell('hit', sealedBytes);
      return answer;
    }
    loan.release();
    tell('error', 0);
    tier.discard(id);
    this.#observer.verifyFailure(tier.name);
    return answer;
  }

  /** Verifies and decodes a copy. Rejects when no other copy could do better. */
  async #open(flight: Flight, tier: ChunkTier, loan: SealedLoan): Promise<TierAnswer> {
    const { ref } = flight;
    const slot = await this.memory.reserve(flight);
    let status: number;
    try {
      status = await open(loan.bytes, ref, slot);
    } catch (error) {
      this.memory.cancel(slot);
      throw error;
    }
    const { length } = loan.bytes;
    if (status === OPEN_OK && length === ref.sealedBytes)
      return { slot: this.memory.commit(flight.key, slot, flight), loan };
    this.memory.cancel(slot);
    if (status === OPEN_WRONG_ID) {
      const why = length === ref.sealedBytes ? '' : `, ${length} bytes instead of ${ref.sealedBytes}`;
      return { tier: tier.name, kind: 'bad', why: `its SHA-256 is not its id${why}` };
    }
    if (length !== ref.sealedBytes)
      throw new LazydiskError(
        'CORRUPT',
        `chunk ${ref.id}: ${tier.name} has ${length} bytes that match its id, but the manifest says ${ref.sealedBytes}`,
      );
    // The copy matches its id, so every tier's copy is the same. The manifest's key or the writer is wrong, and a drive
    // with a wrong key must not get good copies discarded from a shared cache.
    throw new LazydiskError(
      'CORRUPT',
      `chunk ${ref.id}: ${tier.name} has bytes that match its id, but they do not open with the manifest's key`,
    );
  }
}

/** The native job as a promise of its status. */
function open(sealed: Uint8Array, ref: ChunkRef, slot: Slot): Promise<number> {
  return new Promise((resolve) => {
    openChunk(sealed, Buffer.from(ref.id, 'hex'), ref.key, slot.bytes, resolve);
  });
}
