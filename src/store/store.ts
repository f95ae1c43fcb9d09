/**
 * What lies at the origin, behind one small interface: sealed chunks by id, manifests by image digest and key,
 * references by name. A directory implements it now, S3 will. The conformance suite (test/store/store-suite.ts)
 * runs against each implementation.
 *
 * Contract: every put is atomic (readers see nothing or all of it), durable when it resolves, and idempotent;
 * two writers of one chunk or manifest write equal bytes. A reference is replaced atomically, last writer wins.
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
  hasChunk(id: ChunkId): Promise<boolean>;
  putChunk(id: ChunkId, sealed: Uint8Array): Promise<void>;

  /** The manifest of `digest` whose data key is wrapped by the key named `keyId`, unproven. */
  getManifest(digest: ImageDigest, keyId: string): Promise<Buffer | undefined>;
  putManifest(digest: ImageDigest, keyId: string, manifest: Uint8Array): Promise<void>;

  getReference(name: string): Promise<Reference | undefined>;
  putReference(name: string, digest: ImageDigest): Promise<void>;
  /** Sorted by name. */
  listReferences(): Promise<Reference[]>;

  close(): Promise<void>;
}
