/**
 * Parts for tests of the read path: small images with their true bytes, a tier over a Map, and a wrapper that makes any
 * tier return wrong bytes, hang or fail on request.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { withDeadline } from '../../src/async/deadline.ts';
import type { ReadClass, ReadContext } from '../../src/async/read-context.ts';
import type { ReadObserver } from '../../src/chunk/observer.ts';
import type { ChunkTier, SealedLoan, TierName } from '../../src/chunk/tier.ts';
import type { ChunkMap } from '../../src/drive/chunk-map.ts';
import { LazydiskError } from '../../src/errors.ts';
import { type EncodedChunk, encodeChunk } from '../../src/format/chunk-codec.ts';
import { CHUNK_BYTES, type ChunkId, type ChunkRef } from '../../src/format/chunk-id.ts';

const SALT = Buffer.from('a salt of the tests');

/** An observer that does nothing. */
export const silentObserver: ReadObserver = {
  tierRead() {},
  verifyFailure() {},
  heal() {},
  singleFlightWait() {},
};

export function demand(timeoutMs = 20_000, signal?: AbortSignal): ReadContext {
  return contextOf('demand', timeoutMs, signal);
}

export function contextOf(readClass: ReadClass, timeoutMs = 20_000, signal?: AbortSignal): ReadContext {
  return { class: readClass, deadline: performance.now() + timeoutMs, ...(signal && { signal }) };
}

/** A disk whose bytes are known, as a drive and as sealed chunks. */
export interface TestImage extends ChunkMap {
  /** The disk's true bytes. */
  readonly disk: Buffer;
  /** One for each stored chunk, in order. */
  readonly chunks: readonly EncodedChunk[];
  readonly refs: readonly ChunkRef[];
}

/**
 * An image with the chunks in `layout`: '.' is a zero chunk, any other character a chunk with its own content; the same
 * letter is the same chunk.
 */
export async function makeImage(layout: string): Promise<TestImage> {
  const disk = Buffer.alloc(layout.length * CHUNK_BYTES);
  const encoded = new Map<string, EncodedChunk>();
  const chunks: EncodedChunk[] = [];
  const indices: number[] = [];
  for (const [index, letter] of [...layout].entries()) {
    if (letter === '.') continue;
    const plain = disk.subarray(index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES);
    // Half of it compresses, so that both a unique pattern and zstd are tested.
    Buffer.alloc(CHUNK_BYTES / 2, `chunk ${letter} `).copy(plain);
    let chunk = encoded.get(letter);
    if (!chunk) {
      randomFor(letter).copy(plain, CHUNK_BYTES / 2);
      chunk = encodeChunk(plain, SALT);
      encoded.set(letter, chunk);
    } else randomFor(letter).copy(plain, CHUNK_BYTES / 2);
    chunks.push(chunk);
    indices.push(index);
  }
  const refs = chunks.map(({ id, key, sealed }) => ({ id, key, sealedBytes: sealed.length }));
  return {
    disk,
    chunks,
    refs,
    diskBytes: disk.length,
    storedChunks: chunks.length,
    entryOf: (index) => indices.indexOf(index),
    indexOf: (entry) => indices[entry]!,
    ref: (entry) => refs[entry]!,
  };
}

const randoms = new Map<string, Buffer>();

/** 16 KiB of random bytes, the same for a letter throughout the process. */
function randomFor(letter: string): Buffer {
  let bytes = randoms.get(letter);
  if (!bytes) {
    bytes = randomBytes(16 * 1024);
    randoms.set(letter, bytes);
  }
  return bytes;
}

/** Sealed chunks in a Map. */
export class MapTier implements ChunkTier {
  readonly name: TierName;
  readonly chunks = new Map<ChunkId, Buffer>();
  /** Ids that `get` was called with, in order. */
  readonly asked: ChunkId[] = [];
  readonly discarded: ChunkId[] = [];
  /** Loans not yet returned; a test asserts that it ends at 0. */
  loans = 0;
  closed = false;

  constructor(name: TierName, chunks: readonly EncodedChunk[] = []) {
    this.name = name;
    for (const { id, sealed } of chunks) this.chunks.set(id, sealed);
  }

  async get(id: ChunkId, _sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    this.asked.push(id);
    if (ctx.signal?.aborted) throw new LazydiskError('ABORTED', `${this.name}: cancelled`);
    const bytes = this.chunks.get(id);
    if (!bytes) return undefined;
    this.loans++;
    return { bytes, release: () => void this.loans-- };
  }

  async put(id: ChunkId, sealed: Uint8Array): Promise<boolean> {
    this.chunks.set(id, Buffer.from(sealed));
    return true;
  }

  discard(id: ChunkId): void {
    this.discarded.push(id);
    this.chunks.delete(id);
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}

/** The faults of a tier. */
export type Fault =
  /** One bit of the copy is flipped. */
  | { readonly kind: 'flip' }
  | { readonly kind: 'truncate' }
  /** Another chunk's bytes, truncated or padded to the right length. */
  | { readonly kind: 'swap'; readonly sealed: Uint8Array }
  | { readonly kind: 'missing' }
  | { readonly kind: 'slow'; readonly delayMs: number }
  | { readonly kind: 'error'; readonly error?: Error }
  /** Accepts the request and never responds, neither at the deadline nor when cancelled. */
  | { readonly kind: 'black hole' };

/** Any tier, with faults that are switched on and off while it runs. */
export class FaultTier implements ChunkTier {
  readonly name: TierName;
  readonly inner: ChunkTier;
  /** The fault of the next reads; undefined for none. */
  fault: Fault | ((id: ChunkId) => Fault | undefined) | undefined;

  constructor(inner: ChunkTier, fault?: Fault) {
    this.name = inner.name;
    this.inner = inner;
    this.fault = fault;
  }

  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    const fault = typeof this.fault === 'function' ? this.fault(id) : this.fault;
    if (!fault) return this.inner.get(id, sealedBytes, ctx);
    switch (fault.kind) {
      case 'missing':
        return undefined;
      case 'error':
        throw fault.error ?? new LazydiskError('UNAVAILABLE', `${this.name}: made to fail`);
      case 'black hole':
        return new Promise(() => {});
      case 'slow':
        await withDeadline(sleep(fault.delayMs, undefined, { ref: false }), ctx, `${this.name}: made slow`);
        return this.inner.get(id, sealedBytes, ctx);
    }
    const loan = await this.inner.get(id, sealedBytes, ctx);
    if (!loan) return undefined;
    let bytes = Buffer.from(loan.bytes);
    if (fault.kind === 'flip') bytes[id.charCodeAt(0) % bytes.length]! ^= 1 << (id.charCodeAt(1) & 7);
    else if (fault.kind === 'truncate') bytes = bytes.subarray(0, bytes.length >> 1);
    else Buffer.alloc(bytes.length, fault.sealed).copy(bytes);
    return { bytes, release: () => loan.release() };
  }

  put(id: ChunkId, sealed: Uint8Array): Promise<boolean> {
    return this.inner.put(id, sealed);
  }

  discard(id: ChunkId): void {
    this.inner.discard(id);
  }

  close(): Promise<void> {
    return this.inner.close();
  }
}

/** Counts what the read path reports. Names are `tier result`, as in `origin hit`. */
export class CountingObserver implements ReadObserver {
  readonly reads: Record<string, number> = {};
  readonly verifyFailures: TierName[] = [];
  readonly heals: TierName[] = [];
  singleFlightWaits = 0;

  tierRead(tier: TierName, result: 'hit' | 'miss' | 'error'): void {
    const name = `${tier} ${result}`;
    this.reads[name] = (this.reads[name] ?? 0) + 1;
  }

  verifyFailure(tier: TierName): void {
    this.verifyFailures.push(tier);
  }

  heal(tier: TierName): void {
    this.heals.push(tier);
  }

  singleFlightWait(): void {
    this.singleFlightWaits++;
  }
}
