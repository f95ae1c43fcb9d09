/**
 * Where a good copy may be: other areas of the same store, another store, a disk cache, a fleet. What a source gives
 * is proven by whoever asked, so a source may lie; one that fails is passed over, and what it said is kept.
 */
import { hash } from 'node:crypto';
import { type Pauses, retrying } from '../../async/backoff.ts';
import { codeOf, errorText, isRetryable } from '../../errors.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import { MARKER_KEY } from '../roots/layout.ts';
import type { Store } from '../store.ts';

export interface RepairSource {
  /** For people, as they named it. */
  readonly name: string;
  get(id: ChunkId, sealedBytes: number): Promise<Buffer | undefined>;
  /** Of one that has manifests, too. */
  readonly manifests?: Pick<Store, 'getManifest' | 'manifestKeys'>;
}

/** Another store as a source. */
export function storeSource(store: Store): RepairSource {
  return { name: store.url, get: (id) => store.getChunk(id), manifests: store };
}

/** Tries for an object that may be one that the store cannot read. */
const READ_TRIES = 5;
const READ_PAUSES: Pauses = { firstMs: 100, longestMs: 1_000 };

/** Sources asked in turn until one has what proves itself. */
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

  /** What `ask` finds in the first source with manifests in which it finds something. */
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

/** Whether these are the sealed bytes that `id` names. */
export function isChunk(bytes: Uint8Array, id: ChunkId): boolean {
  return hash('sha256', bytes, 'hex') === id;
}

/**
 * The object, or why there is none. A disk with a bad sector must not end the search for others, and a store that is
 * away must: what cannot be read, and again not, is `unreadable` only if the store answers between. For that answer it
 * waits as long as the store's calls do. Rejects with UNAVAILABLE, ABORTED.
 */
export async function readObject(
  objects: ObjectStore,
  key: string,
  bytesMax = SEALED_BYTES_MAX,
): Promise<Buffer | 'absent' | 'unreadable'> {
  // Its own tries: an object that cannot be read is not waited for as long as a store that is away.
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
