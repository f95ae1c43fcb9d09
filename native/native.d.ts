/** The shape of the compiled addon (native/*.cc), function by function. */

export interface NativeAddon {
  /**
   * Proves and decodes one sealed chunk in one job on libuv's thread pool: SHA-256 of `sealed` against `id`
   * (32 bytes), AES-256-GCM under `key` (32 bytes, copied, wiped afterwards), codec byte, and exactly
   * `target.length` decoded bytes into `target`. `sealed` and `target` must stay untouched until `callback` gets
   * its status: an `OPEN_*` constant. Unless it is OPEN_OK, what `target` holds is undefined. Throws a TypeError
   * for arguments of another shape.
   */
  openChunk(
    sealed: Uint8Array,
    id: Uint8Array,
    key: Uint8Array,
    target: Uint8Array,
    callback: (status: number) => void,
  ): void;

  /**
   * Erasure code over GF(2^8), k + m <= 16. `shards` holds k + m shards of equal length behind one another; the
   * first k are data, the last m are computed. Synchronous: about 40 us for one parity shard of a 512 KiB chunk.
   */
  erasureEncode(k: number, m: number, shards: Uint8Array): void;

  /**
   * Rebuilds in place the data shards whose bit (1 << index) in `present` is clear, from k present ones. False
   * if fewer than k are present.
   */
  erasureReconstruct(k: number, m: number, shards: Uint8Array, present: number): boolean;

  /** Row `index` of the generator matrix: the k coefficients that make shard `index` out of the data. */
  erasureRow(k: number, m: number, index: number): Buffer;
}
