/**
 * What lies at the origin, as images see it: sealed chunks by id, manifests by image digest and key, references by name.
 * RootStore makes it of any store of objects; the conformance suite (test/store/store-suite.ts) runs on each of them.
 *
 * Contract: every put is atomic (readers see nothing or all of it), durable when it resolves, and idempotent: what
 * was there before is replaced atomically. Two writers of one chunk write equal bytes; two manifests of one
 * digest and key differ in randomness and open to the same, so that the first of them stays. Puts may be in flight together, and are quickest so; the
 * caller bounds how many.
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

/** What a name was set to at one time; null: it was removed. */
export interface PastReference {
  readonly name: string;
  readonly digest: ImageDigest | null;
  readonly updated: string;
}

export interface StoreReadOptions {
  readonly signal?: AbortSignal;
  /**
   * Memory that the bytes may lie in if they fit; else they have their own. It must not be used for anything else until
   * the call has settled, after which the store does not touch it.
   */
  readonly into?: Buffer | undefined;
}

/** What has come of reads since the store was opened. */
export interface StoreStats {
  /** Roots and trashes by state, as far as known. */
  readonly roots: {
    readonly active: number;
    readonly draining: number;
    readonly retired: number;
    readonly trash: number;
  };
  /** Objects that were found in a retired root or a trash only: their deletion waits. */
  readonly retiredReads: number;
  /** Of these, those that could not be written down in the store, so that a deletion does not know of them. */
  readonly unrecordedReads: number;
  /** When the store's credentials expire, in milliseconds since 1970; null if they do not. */
  readonly credentialExpiryMs: number | null;
}

export interface Store extends WrappedKeyStore {
  /** As the user wrote it, without secrets; for messages. */
  readonly url: string;

  /** The sealed bytes, unproven, or undefined if there is no such chunk. Throws UNAVAILABLE, ABORTED. */
  getChunk(id: ChunkId, options?: StoreReadOptions): Promise<Buffer | undefined>;
  /** The same, asked once: for whoever decides themselves when to ask again. */
  getChunkOnce(id: ChunkId, options?: StoreReadOptions): Promise<Buffer | undefined>;
  /** The manifest of `digest` whose data key is wrapped by the key named `keyId`, unproven. */
  getManifest(digest: ImageDigest, keyId: string): Promise<Buffer | undefined>;
  /** The keys that there are manifests of `digest` for, sorted. Throws UNSUPPORTED where the store cannot be listed. */
  manifestKeys(digest: ImageDigest): Promise<string[]>;
  /** Names are `NAME[:TAG]` (reference-name.ts) and come back in full. Throws USAGE for what is no name. */
  getReference(name: string): Promise<Reference | undefined>;
  /** Sorted by name. Throws UNSUPPORTED where the store cannot be listed. */
  listReferences(): Promise<Reference[]>;

  /** What names were set to, oldest first; of `name` alone if it is given. */
  history(name?: string): Promise<PastReference[]>;

  /**
   * For one piece of work that ends in names: a build, a copy, a tag. `wantedChunks`: about how many chunks it will be asked
   * for; at a great many, it lists them. Throws UNSUPPORTED for a store that is only read.
   */
  writer(wantedChunks?: number): Promise<StoreWriter>;

  stats(): StoreStats;
  close(): Promise<void>;
}

/** Whether the key of a manifest opens it, whole: for who has the key. */
export type ManifestProof = (manifest: Buffer) => boolean | Promise<boolean>;

/**
 * What putting a manifest came to. `written`: it is there; `present`: the same bytes were there, or others that the key
 * opens; `kept`: others were there, and it was not proven that these are better.
 */
export type ManifestPlacement = 'written' | 'present' | 'kept';

/** How `putReference` and `removeReference` compare before they set. */
export interface SetOptions {
  /** What the name must mean now, null for nothing; else it is BUSY and stays. Not given: whatever it means. */
  readonly expected?: ImageDigest | null;
}

/**
 * Writes into the root that was active when the writer was made. From then on until the last name is written no more than
 * the store's build time may pass; a name is only ever written when all that it means is in the root that is active then.
 */
export interface StoreWriter {
  /** Salt epoch that new images are made under: the number of the root. */
  readonly epoch: number;
  /**
   * Whether the chunk is there; one of another length than `sealedBytes`, if that is given, is not. What others have put
   * since the first call may count as missing.
   */
  hasChunk(id: ChunkId, sealedBytes?: number): Promise<boolean>;
  /** `sealed` must stay untouched until this resolves. Throws NO_SPACE, UNAVAILABLE, as all puts do. */
  putChunk(id: ChunkId, sealed: Uint8Array): Promise<void>;
  /**
   * All chunks of the image must be there. A manifest of it for this key that is in the store already stays, unless
   * `opens` proves that the new one is good and that one is not. Throws TIMEOUT as `putReference` does.
   */
  putManifest(
    digest: ImageDigest,
    keyId: string,
    manifest: Buffer,
    opens?: ManifestProof,
  ): Promise<ManifestPlacement>;
  /** The same for one more key of an image that has a name, whatever root that is in by now. */
  addManifest(
    digest: ImageDigest,
    keyId: string,
    manifest: Buffer,
    opens?: ManifestProof,
  ): Promise<ManifestPlacement>;
  /**
   * Puts a manifest over the one for its key, wherever in the store that is: nothing is left of the old one. For an image
   * that has a name, and who has proven the new one.
   */
  replaceManifest(digest: ImageDigest, keyId: string, manifest: Buffer): Promise<void>;
  /** Takes the manifest for one key away, wherever it is; what is not there is no error. */
  removeManifest(digest: ImageDigest, keyId: string): Promise<void>;
  /**
   * Throws NOT_FOUND if the image is not there (whole), BUSY if the name does not mean what was expected, TIMEOUT when
   * the work took longer than the store allows, after which it must begin anew.
   */
  putReference(name: string, digest: ImageDigest, options?: SetOptions): Promise<void>;
  /** Throws NOT_FOUND if there is no such name, BUSY. */
  removeReference(name: string, options?: SetOptions): Promise<void>;
}
