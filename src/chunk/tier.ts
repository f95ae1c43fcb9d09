/**
 * The one interface of everything that holds sealed chunks: disk cache, fleet, origin, and the wrappers around them
 * (retry, limit, fault). A tier knows ids and sealed bytes, and nothing of images, keys or drives.
 *
 * Contract, which the conformance suite (test/chunk/tier-suite.ts) runs against each tier:
 * - `get` of an absent chunk resolves to undefined; it rejects only when the tier could not tell.
 * - `get` may return wrong bytes (from a faulty disk or node). The reader verifies them by their id before anyone uses
 *   them, and calls `discard` when they fail; after that, this copy must not be returned again. A tier that only relays
 *   what others hold (the origin) forgets nothing and may be asked again.
 * - `put` is called only with verified bytes, copies or writes them before it resolves, and may drop them; it resolves
 *   to whether the tier has them now.
 * - `close` may be called twice; a wrapper closes what it wraps.
 * - after `ctx.deadline` or `ctx.signal` a pending `get` soon rejects (TIMEOUT, ABORTED).
 */
import type { ReadContext } from '../async/read-context.ts';
import type { ChunkId } from '../format/chunk-id.ts';

/** Nearest to the guest first. */
export const TIERS = ['memory', 'disk', 'fleet', 'origin'] as const;

export type TierName = (typeof TIERS)[number];

/** Sealed bytes on loan: `bytes` may be a pooled buffer and is valid until `release()`, which must be called once. */
export interface SealedLoan {
  readonly bytes: Uint8Array;
  /**
   * Called when the read is done and only others still need `bytes`: frees the place at the tier that the loan holds,
   * if it holds one. `release` does so too.
   */
  freePlace?(): void;
  release(): void;
}

export interface ChunkTier {
  readonly name: TierName;
  get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined>;
  put(id: ChunkId, sealed: Uint8Array): Promise<boolean>;
  /** The copy that `get` returned for `id` failed verification: never return it again. */
  discard(id: ChunkId): void;
  close(): Promise<void>;
}
