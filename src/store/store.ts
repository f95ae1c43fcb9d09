/**
 * What lies at the origin, behind one small interface: sealed chunks by id, manifests by image digest and key,
 * references by name. A directory implements it now, S3 will. The conformance suite (test/store/store-suite.ts)
 * runs against each implementation.
 *
 * Contract: every put is atomic (readers see nothing or all of it), durable when it resolves, and idempotent: what
 * was there before is replaced atomically. Two writers of one chunk write equal bytes; two manifests of one
 * digest and key differ in randomness and open to the same; of two references the last one written stays. Puts
 * may be in flight together, and are quickest so; the caller bounds how many.
 */
import type { ChunkId } from '../format/chunk-id.ts';

/** `sha256:` and 64 hex digits: SHA-256 of a manifest's clear part. */
export type ImageDigest = `sha256:${string}`;

/** What a name points to. */
export interface Reference {
  readonly name: string;
  readonly digest: ImageDigest;
  /** When it was written, ISO 8601, UTC. */
  readonly updated: string;
}

export interface StoreReadOptions {
  readonly signal?: AbortSignal;
}

export interface Store {
  /** As the user wrote it, without secrets; for messages. */
  readonly url: string;

  /** The sealed bytes, unproven, or undefined if there is no such chunk. Throws UNAVAILABLE, ABORTED. */
  getChunk(id: ChunkId, options?: StoreReadOptions): Promise<Buffer | undefined>;
  /** Whether the chunk is there; one of another length than `sealedBytes`, if that is given, is not. */
  hasChunk(id: ChunkId, sealedBytes?: number): Promise<boolean>;
  /** `sealed` must stay untouched until this resolves. Throws NO_SPACE, UNAVAILABLE, as all puts do. */
  putChunk(id: ChunkId, sealed: Uint8Array): Promise<void>;

  /** The manifest of `digest` whose data key is wrapped by the key named `keyId`, unproven. */
  getManifest(digest: ImageDigest, keyId: string): Promise<Buffer | undefined>;
  putManifest(digest: ImageDigest, keyId: string, manifest: Uint8Array): Promise<void>;

  /** Names are `NAME[:TAG]` (reference-name.ts) and come back in full. Throw USAGE for what is no name. */
  getReference(name: string): Promise<Reference | undefined>;
  putReference(name: string, digest: ImageDigest): Promise<void>;
  /** Sorted by name. */
  listReferences(): Promise<Reference[]>;

  close(): Promise<void>;
}
