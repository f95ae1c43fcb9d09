/**
 * Sources of good copies: other areas of the same store, another store, a disk cache, a fleet. The caller verifies what
 * a source returns, so a source may lie. A source that fails is skipped, and its error is kept.
 */
import { hash } from 'node:crypto';
import { type Pauses, retrying } from '../../async/backoff.ts';
import { codeOf, errorText, isRetryable } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import { MARKER_KEY } from '../roots/layout.ts';
import type { Store } from '../store.ts';

export interface RepairSource {
  /** The name that the user gave it, for messages. */
  readonly name: string;
  get(id: ChunkId, sealedBytes: number): Promise<Buffer | undefined>;
  /** Only for a source that has manifests too. */
  readonly manifests?: Pick<Store, 'getManifest' | 'manifestKeys'>;
}

/** Another store as a source. */
export function storeSource(store: Store): RepairSource {
  return { name: store.url, get: (id) => store.getChunk(id), manifests: store };
}

/** Tries for an object that the store may be unable to read. */
const READ_TRIES = 5;
const READ_PAUSES: Pauses = { firstMs: 100, longestMs: 1_000 };

/** Asks sources in turn until one has a valid copy. */
export class Sources {
  /** The last failure of each source. */
  readonly errors: Record<string, string> = {};
  readonly #sources: readonly RepairSource[];

  constructor(sources: readonly RepairSource[]) {
    this.#sources = sources;
  }

  async chunk(id: ChunkId, sealedBytes: number): Promise<{ bytes: Buffer; from: string } | undefined> {
    for (const source of this.#sources) {
      const bytes = await this.#ask(source, () => source.get(id, sealedBytes));
      if (bytes && isChunk(bytes, id)) return { bytes, from: source.name };
    }
    return undefined;
  }

  /** Returns the first result that `ask` finds in a source with manifests. */
  async manifest<T>(
    ask: (manifests: NonNullable<RepairSource['manifests']>) => Promise<T | undefined>,
  ): Promise<{ found: T; from: string } | undefined> {
    for (const source of this.#sources) {
      const { manifests } = source;
      const found = manifests && (await this.#ask(source, () => ask(manifests)));
      if (found !== undefined) return { found, from: source.name };
    }
    return undefined;
  }

  async #ask<T>(source: RepairSource, ask: () => Promise<T | undefined>): Promise<T | undefined> {
    try {
      return await ask();
    } catch (error) {
      this.errors[source.name] = errorText(error);
      return undefined;
    }
  }
}

/** Whether these are the sealed bytes of chunk `id`. */
export function isChunk(bytes: Uint8Array, id: ChunkId): boolean {
  return hash('sha256', bytes, 'hex') === id;
}

/**
 * The object, or why it could not be read. A bad disk sector must not end the check of other objects, but an
 * unavailable store must. So an object that repeatedly cannot be read is `unreadable` only if the store answers in
 * between; it waits for that answer as long as the store's calls do. Rejects with UNAVAILABLE, ABORTED.
 */
export async function readObject(
  objects: ObjectStore,
  key: string,
  bytesMax: number,
): Promise<Buffer | 'absent' | 'unreadable'> {
  // Fewer tries of its own: an unreadable object is not worth waiting for as long as an unavailable store.
  const once = objects.withoutRetries;
  const read = once
    ? () => retrying({ tries: READ_TRIES, pauses: READ_PAUSES }, () => once.get(key, bytesMax))
    : () => objects.get(key, bytesMax);
  for (let failed = 1; ; failed++) {
    try {
      return (await read())?.bytes ?? 'absent';
    } catch (error) {
      const isUnavailable = codeOf(error) === 'UNAVAILABLE';
      if (!isUnavailable && !isRetryable(error)) throw error;
      if (!(await objects.get(MARKER_KEY, 1).catch(() => undefined))) throw error;
      if (failed < 2 && isRetryable(error)) continue;
      if (isUnavailable) return 'unreadable';
      throw error;
    }
  }
}
