/**
 * Seals the chunks of a build and writes them to the store. The thread pool compresses and seals while the main thread
 * produces more; a chunk that this build or the store already has is not written again. Memory is bounded by two
 * windows, chunks being sealed and sealed chunks being written, and the buffers of both are reused. The result does not
 * depend on the order in which operations finish.
 */
import { availableParallelism } from 'node:os';
import { sealChunk } from '../../native/index.ts';
import { Slots } from '../async/slots.ts';
import { LazydiskError } from '../errors.ts';
import { isZero } from '../format/chunk-codec.ts';
import {
  CHUNK_BYTES,
  type ChunkId,
  type ChunkRef,
  chunkIdOf,
  ID_BYTES,
  KEY_BYTES,
  SEALED_BYTES_MAX,
} from '../format/chunk-id.ts';
import type { StoreWriter } from '../store/store.ts';

/** Enough to keep every core compressing while one more chunk is produced; each holds two buffers of 512 KiB. */
const ENCODING_MAX = Math.min(8, Math.max(2, availableParallelism())) + 1;

/** Sealed chunks being written; the store makes them durable together. At most 17 MiB. */
const WRITING_MAX = 32;

/** The part of a store that an encoder needs. */
export type ChunkStore = Pick<StoreWriter, 'hasChunk' | 'putChunk'>;

/** Counts of the chunks so far. */
export interface EncodeCounts {
  /** Chunks that are not all zero. */
  chunks: number;
  /** Of these, written by this build, and their sealed bytes. */
  newChunks: number;
  newBytes: number;
  /** Of these, already in the store, or duplicates within this build. */
  reusedChunks: number;
}

export class ChunkEncoder {
  readonly counts: EncodeCounts = { chunks: 0, newChunks: 0, newBytes: 0, reusedChunks: 0 };
  readonly #store: ChunkStore;
  readonly #salt: Buffer;
  readonly #signal: AbortSignal | undefined;
  readonly #encoding = new Slots(ENCODING_MAX);
  readonly #writing = new Slots(WRITING_MAX);
  readonly #tasks = new Set<Promise<void>>();
  readonly #refs = new Map<ChunkId, ChunkRef>();
  readonly #spareBuffers: Buffer[] = [];
  readonly #spareSealed: Buffer[] = [];
  #failure: { readonly error: unknown } | undefined;

  constructor(store: ChunkStore, salt: Buffer, signal?: AbortSignal) {
    this.#store = store;
    this.#salt = salt;
    this.#signal = signal;
  }

  /**
   * Returns CHUNK_BYTES of memory with arbitrary content, for a chunk to pass to `add`. Buffers are reused, because
   * fresh ones cost page faults, and count against the heap limit until a full garbage collection frees them.
   */
  takeBuffer(): Buffer {
    return this.#spareBuffers.pop() ?? Buffer.allocUnsafeSlow(CHUNK_BYTES);
  }

  /**
   * Adds one chunk and takes ownership of `bytes`. Resolves when there is room for another, long before the chunk is
   * stored. `done` is called with its reference once it is stored, and never for a chunk of zeroes. Rejects with
   * ABORTED, or with the failure of any earlier chunk.
   */
  async add(bytes: Buffer, done: (ref: ChunkRef) => void): Promise<void> {
    this.check();
    if (isZero(bytes)) return this.#spare(bytes);
    await this.#encoding.take();
    const task = this.#encode(bytes, done)
      .catch((error) => {
        this.#failure ??= { error };
      })
      .finally(() => this.#tasks.delete(task));
    this.#tasks.add(task);
  }

  /** Resolves when all chunks are in the store; rejects like `add`. Nothing is in flight afterwards in either case. */
  async drain(): Promise<void> {
    await Promise.all(this.#tasks);
    this.check();
  }

  /** Throws the first failure of any chunk, or ABORTED. */
  check(): void {
    if (this.#failure) throw this.#failure.error;
    if (this.#signal?.aborted)
      throw new LazydiskError('ABORTED', 'the build was cancelled', { cause: this.#signal.reason });
  }

  /** Holds an encoding slot from the start, and releases it when the chunk is sealed and there is room to write it. */
  async #encode(bytes: Buffer, done: (ref: ChunkRef) => void): Promise<void> {
    // Large enough for any sealed chunk. Reused after it is written.
    const room = this.#spareSealed.pop() ?? Buffer.allocUnsafeSlow(SEALED_BYTES_MAX);
    let ref: ChunkRef;
    let known: ChunkRef | undefined;
    try {
      this.check();
      ref = await seal(bytes, this.#salt, room);
      this.#spare(bytes);
      known = this.#refs.get(ref.id);
      if (!known) {
        this.#refs.set(ref.id, ref);
        await this.#writing.take();
      }
    } finally {
      this.#encoding.give();
    }
    this.counts.chunks++;
    if (known) this.counts.reusedChunks++;
    else await this.#write(ref, room).finally(() => this.#writing.give());
    this.#spareSealed.push(room);
    done(known ?? ref);
  }

  async #write({ id, sealedBytes }: ChunkRef, room: Buffer): Promise<void> {
    this.check();
    if (await this.#store.hasChunk(id, sealedBytes)) {
      this.counts.reusedChunks++;
      return;
    }
    await this.#store.putChunk(id, room.subarray(0, sealedBytes));
    this.counts.newChunks++;
    this.counts.newBytes += sealedBytes;
  }

  #spare(bytes: Buffer): void {
    if (this.#spareBuffers.length < ENCODING_MAX) this.#spareBuffers.push(bytes);
  }
}

/** Seals a chunk into `room` as FORMAT.md says; all three buffers must stay untouched until this resolves. */
function seal(plain: Buffer, salt: Buffer, room: Buffer): Promise<ChunkRef> {
  return new Promise((resolve, reject) => {
    const id = Buffer.allocUnsafe(ID_BYTES);
    const key = Buffer.allocUnsafe(KEY_BYTES);
    sealChunk(plain, salt, room, id, key, (sealedBytes) => {
      if (sealedBytes > 0) resolve({ id: chunkIdOf(id), key, sealedBytes });
      else reject(new LazydiskError('INTERNAL', 'a chunk could not be sealed: out of memory'));
    });
  });
}
