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
}
