/**
 * An image store: sealed chunks by id, manifests by image digest and key, references by name. RootStore implements it
 * on any object store; the conformance suite (test/store/store-suite.ts) runs on each of them.
 *
 * Contract: every put is atomic (readers see nothing or all of it), durable when it resolves, and idempotent: an
 * existing object is replaced atomically. Two writers of one chunk write equal bytes; two manifests of one digest and
 * key differ in randomness but have equal contents, so the first of them stays. Puts may be in flight together, and are
 * fastest that way; the caller limits how many.
 */
import type { ChunkId } from '../format/chunk-id.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import type { WrappedKeyStore } from '../keys/wrapped-keys.ts';

/** What a name points to. */
export interface Reference {
  readonly name: string;
  readonly digest: ImageDigest;
  /** When it was written, ISO 8601, UTC. */
  readonly updated: string;
}

/** What a name was set to at one time; null if it was removed. */
export interface PastReference {
  readonly name: string;
  readonly digest: ImageDigest | null;
  readonly updated: string;
}

export interface StoreReadOptions {
  readonly signal?: AbortSignal;
  /**
   * A buffer for the bytes, used if they fit; otherwise they get their own. The caller must not use it for anything
   * else until the call has settled, after which the store does not touch it.
   */
  readonly into?: Buffer | undefined;
}

/** Statistics since the store was opened. */
export interface StoreStats {
  /** Number of roots and trashes by state, as far as known. */
  readonly roots: {
    readonly active: number;
    readonly draining: number;
    readonly retired: number;
    readonly trash: number;
  };
  /** Reads served only by a retired root or a trash, whose deletion they delay. */
  readonly retiredReads: number;
  /** Such reads that could not be recorded in the store, and so do not delay the deletion. */
  readonly unrecordedReads: number;
  /** When the store's credentials expire, in milliseconds since 1970; null if they do not. */
  readonly credentialExpiryMs: number | null;
}

export interface Store extends WrappedKeyStore {
  /** As the user wrote it, without secrets; for messages. */
  readonly url: string;

  /** The sealed bytes, unverified, or undefined if there is no such chunk. Throws UNAVAILABLE, ABORTED. */
  getChunk(id: ChunkId, options?: StoreReadOptions): Promise<Buffer | undefined>;
  /** The same without retries, for callers that do their own. */
  getChunkOnce(id: ChunkId, options?: StoreReadOptions): Promise<Buffer | undefined>;
  /** The manifest of `digest` whose data key is wrapped by the key named `keyId`, unverified. */
  getManifest(digest: ImageDigest, keyId: string): Promise<Buffer | undefined>;
  /**
   * Ids of the keys that there are manifests of `digest` for, sorted. Throws UNSUPPORTED if the store cannot be listed.
   */
  manifestKeys(digest: ImageDigest): Promise<string[]>;
  /** Names are `NAME[:TAG]` (reference-name.ts) and are returned in full. Throws USAGE for an invalid name. */
  getReference(name: string): Promise<Reference | undefined>;
  /** All names, sorted. Throws UNSUPPORTED if the store cannot be listed. */
  listReferences(): Promise<Reference[]>;

  /** What names were set to, oldest first; only `name` if it is given. */
  history(name?: string): Promise<PastReference[]>;

  /**
   * Returns a writer for one operation that ends in writing names: a build, a copy, a tag. `wantedChunks` is the
   * approximate number of chunks that the caller will look for; if there are many, the writer lists them. Throws
   * UNSUPPORTED for a read-only store.
   */
  writer(wantedChunks?: number): Promise<StoreWriter>;

  stats(): StoreStats;
  close(): Promise<void>;
}

/** Returns whether the key of a manifest opens it completely; for callers that have the key. */
export type ManifestProof = (manifest: Buffer) => boolean | Promise<boolean>;

/**
 * The result of putting a manifest. `written`: it was stored; `present`: the same bytes were there, or others that the
 * key opens; `kept`: others were there, and it was not proven that these are better.
 */
export type ManifestPlacement = 'written' | 'present' | 'kept';

/** Compare-and-set options of `putReference` and `removeReference`. */
export interface SetOptions {
  /** What the name must point to now, null for nothing; otherwise the call throws BUSY. Not given: anything. */
  readonly expected?: ImageDigest | null;
}

/**
 * Writes into the root that was active when the writer was made. From then until the last name is written, at most the
 * store's build time may pass. A name is only written when its whole image is in the root that is active then.
 */
export interface StoreWriter {
  /** The salt epoch of new images: the number of the root. */
  readonly epoch: number;
  /**
   * Whether the chunk is there; with `sealedBytes`, only if it has that length. Chunks that others have put since the
   * first call may count as missing.
   */
  hasChunk(id: ChunkId, sealedBytes?: number): Promise<boolean>;
  /** `sealed` must stay untouched until this resolves. Throws NO_SPACE, UNAVAILABLE, as all puts do. */
  putChunk(id: ChunkId, sealed: Uint8Array): Promise<void>;
  /**
   * All chunks of the image must be there. An existing manifest of it for this key stays, unless `opens` proves that
   * the new one is good and the existing one is not. Throws TIMEOUT as `putReference` does.
   */
  putManifest(
    digest: ImageDigest,
    keyId: string,
    manifest: Buffer,
    opens?: ManifestProof,
  ): Promise<ManifestPlacement>;
  /** The same for another key of an image that has a name, whichever root it is in by now. */
  addManifest(
    digest: ImageDigest,
    keyId: string,
    manifest: Buffer,
    opens?: ManifestProof,
  ): Promise<ManifestPlacement>;
  /**
   * Overwrites the manifest for this key wherever it is in the store: nothing of the old one remains. For an image that
   * has a name, and a caller that has verified the new one.
   */
  replaceManifest(digest: ImageDigest, keyId: string, manifest: Buffer): Promise<void>;
  /** Removes the manifest for one key, wherever it is; a missing one is no error. */
  removeManifest(digest: ImageDigest, keyId: string): Promise<void>;
  /**
   * Throws NOT_FOUND if the image is not there completely, BUSY if the name does not point to what was expected,
   * TIMEOUT if the operation took longer than the store allows, after which it must start over.
   */
  putReference(name: string, digest: ImageDigest, options?: SetOptions): Promise<void>;
  /** Throws NOT_FOUND if there is no such name, BUSY. */
  removeReference(name: string, options?: SetOptions): Promise<void>;
}
