/** What all wrappers share: except for how it is read, each behaves as the tier that it wraps. */
import type { ReadContext } from '../../async/read-context.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ChunkTier, SealedLoan, TierName } from '../tier.ts';

export abstract class WrapperTier implements ChunkTier {
  readonly name: TierName;
  protected readonly inner: ChunkTier;

  constructor(inner: ChunkTier) {
    this.name = inner.name;
    this.inner = inner;
  }

  abstract get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined>;

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
