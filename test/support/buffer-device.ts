/**
 * A block device over a Buffer, so that exports are tested without the tiers. `cold: true` makes `tryRead` succeed only
 * for chunks that `read` has touched, as a real drive does; `fail` makes reads reject.
 */
import { type HitMap, SlabResidency } from '../../src/chunk/hit-map.ts';
import type { BlockDevice, BlockExtent, PinnedBytes } from '../../src/drive/block-device.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';

export interface BufferDeviceOptions {
  name?: string;
  readOnly?: boolean;
  imageDigest?: string;
  cold?: boolean;
  readTimeoutMs?: number;
  /** Whether native threads may read whole chunks. */
  hits?: boolean;
  /** Called before each asynchronous read; it may throw or delay. */
  beforeRead?: (offset: number, lengthBytes: number) => Promise<void> | void;
}

const zeroes = Buffer.alloc(CHUNK_BYTES);

export class BufferDevice implements BlockDevice {
  readonly name: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly imageDigest: string;
  readonly readTimeoutMs: number;
  /** Loans not yet released; a test asserts that it ends at 0. */
  pinned = 0;
  /** Ranges passed to `prefetch`. */
  readonly prefetched: [number, number][] = [];
  readonly #bytes: Buffer;
  readonly #warm = new Set<number>();
  readonly hitMap?: () => HitMap;
  readonly #options: BufferDeviceOptions;

  constructor(bytes: Buffer, options: BufferDeviceOptions = {}) {
    this.#bytes = bytes;
    this.#options = options;
    this.name = options.name ?? 'test';
    this.sizeBytes = bytes.length;
    this.readTimeoutMs = options.readTimeoutMs ?? 20_000;
    this.readOnly = options.readOnly ?? true;
    this.imageDigest = options.imageDigest ?? `sha256:${this.name}`;
    if (options.hits) {
      const chunks = Math.floor(bytes.length / CHUNK_BYTES);
      const stored = Array.from({ length: chunks }, (_, index) => index).filter((index) => {
        const at = index * CHUNK_BYTES;
        return bytes.compare(zeroes, 0, CHUNK_BYTES, at, at + CHUNK_BYTES) !== 0;
      });
      const map = new SlabResidency(bytes, CHUNK_BYTES).hitMap(chunks, stored);
      for (const index of stored) map.publish(index, index);
      this.hitMap = () => map;
    }
  }

  tryRead(offset: number, lengthBytes: number): PinnedBytes | undefined {
    if (this.#options.cold) {
      for (let at = Math.floor(offset / CHUNK_BYTES); at * CHUNK_BYTES < offset + lengthBytes; at++) {
        if (!this.#warm.has(at)) return undefined;
      }
    }
    return this.#pin(offset, lengthBytes);
  }

  async read(offset: number, lengthBytes: number): Promise<PinnedBytes> {
    await this.#options.beforeRead?.(offset, lengthBytes);
    for (let at = Math.floor(offset / CHUNK_BYTES); at * CHUNK_BYTES < offset + lengthBytes; at++)
      this.#warm.add(at);
    return this.#pin(offset, lengthBytes);
  }

  extents(offset: number, lengthBytes: number, extentsMax: number): BlockExtent[] {
    const runs: { lengthBytes: number; zero: boolean }[] = [];
    const end = offset + lengthBytes;
    for (let at = offset; at < end; ) {
      const next = Math.min(end, (Math.floor(at / CHUNK_BYTES) + 1) * CHUNK_BYTES);
      const zero = this.#bytes.compare(zeroes, 0, next - at, at, next) === 0;
      const last = runs.at(-1);
      if (last && last.zero === zero) last.lengthBytes += next - at;
      else if (runs.length === extentsMax) break;
      else runs.push({ lengthBytes: next - at, zero });
      at = next;
    }
    return runs;
  }

  prefetch(offset: number, lengthBytes: number): void {
    this.prefetched.push([offset, lengthBytes]);
  }

  #pin(offset: number, lengthBytes: number): PinnedBytes {
    this.pinned++;
    const parts: Buffer[] = [];
    for (let at = offset; at < offset + lengthBytes; ) {
      const next = Math.min(offset + lengthBytes, (Math.floor(at / CHUNK_BYTES) + 1) * CHUNK_BYTES);
      parts.push(this.#bytes.subarray(at, next));
      at = next;
    }
    return { parts, release: () => void this.pinned-- };
  }
}
