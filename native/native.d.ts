/** The interface of the compiled addon (native/*.cc), function by function. */

export interface NativeAddon {
  /**
   * Verifies and decodes one sealed chunk in one job, on threads that only compute, one per core, so that no hung file
   * system holds it up: the SHA-256 of `sealed` against `id` (32 bytes), AES-256-GCM under `key` (32 bytes, copied,
   * wiped afterwards), the codec byte, and exactly `target.length` decoded bytes into `target`. `sealed` and `target`
   * must not be touched until `callback` is called with an `OPEN_*` constant. Unless that is OPEN_OK, the content of
   * `target` is undefined. Throws a TypeError for invalid arguments.
   */
  openChunk(
    sealed: Uint8Array,
    id: Uint8Array,
    key: Uint8Array,
    target: Uint8Array,
    callback: (status: number) => void,
  ): void;

  /**
   * Seals `plain` (1 byte to 512 KiB) as `encodeChunk` does, in one job on libuv's thread pool. The sealed bytes are
   * written to the start of `sealed` (at least 17 bytes longer than `plain`), the chunk's id and key to `id` and `key`
   * (32 bytes each). None of them may be touched until `callback` is called with the number of sealed bytes, or 0 if
   * memory ran out. Throws a TypeError for invalid arguments.
   */
  sealChunk(
    plain: Uint8Array,
    salt: Uint8Array,
    sealed: Uint8Array,
    id: Uint8Array,
    key: Uint8Array,
    callback: (sealedBytes: number) => void,
  ): void;

  /**
   * Writes the SHA-256 of `bytes` into `digest` (32 bytes), in one job on libuv's thread pool. Neither may be touched
   * until `callback` is called with 1, or with 0 if memory ran out. Throws a TypeError for invalid arguments.
   */
  sha256(bytes: Uint8Array, digest: Uint8Array, callback: (isDone: number) => void): void;

  /**
   * A decoder for one layer's blob. `compression` is 0 for none, 1 for gzip, 2 for zstd. The hashes, 'sha256', 'sha512'
   * or '' for none, are of the blob's bytes and of the decoded bytes.
   */
  decoderOpen(compression: number, blobHash: string, tarHash: string): LayerDecoder;

  /**
   * Decodes and hashes in one job on libuv's thread pool, until `input` is used up or `output` (1 byte to 16 MiB) is
   * full. Writes the number of bytes consumed and produced to `counts`, two 32-bit little-endian numbers. If `output`
   * is full, more output may follow, even without input. Without compression nothing is written to `output`: the input
   * is the output. Members and frames may follow one another; zeroes after the last one are padding, and everything
   * after them is ignored. No argument may be touched until `callback` is called with DECODED, DECODE_CORRUPT or, if
   * memory ran out, 2; until then another run throws a TypeError.
   */
  decoderRun(
    decoder: LayerDecoder,
    input: Uint8Array,
    output: Uint8Array,
    counts: Uint8Array,
    callback: (status: number) => void,
  ): void;

  /**
   * Whether the input ended at the end of a member or frame, and the two digests in hexadecimal. Call once, at the end.
   */
  decoderEnd(decoder: LayerDecoder): [boolean, string, string];

  /**
   * Opens /dev/fuse and mounts `type` ("fuse.NAME") from `source` (any text) on `dir`, read-only, with the mount data
   * "fd=N," + `options`. Returns the descriptor, or a negative errno. Needs CAP_SYS_ADMIN.
   */
  fuseMount(source: string, dir: string, type: string, options: string): number;

  /**
   * umount2 with MNT_DETACH, and with MNT_FORCE if `abort` (which ends the connection, even that of a dead daemon).
   * Runs on the thread pool, because the kernel may wait for reads in it. `callback` is called with 0 or an errno.
   */
  fuseUnmount(dir: string, abort: boolean, callback: (errno: number) => void): void;

  /** A connected pair of Unix stream sockets, closed on exec. */
  socketPair(): [number, number];

  /** The descriptor that was already sent over `socket`, closed on exec; a negative errno if there is none. */
  receiveFd(socket: number): number;

  /**
   * Sends as many of the first `lengthBytes` of `bytes` on the stream socket `fd` as fit, without waiting and without
   * SIGPIPE. Returns the number of bytes that the kernel took, or a negative errno (-EAGAIN: none fit).
   */
  socketSend(fd: number, bytes: Uint8Array, lengthBytes: number): number;

  /**
   * flock(2) on `fd`, exclusive and without waiting. Returns 0, or the errno (EWOULDBLOCK: another process has the
   * lock). The kernel releases it when the descriptor is closed, and therefore also when the process dies.
   */
  lockFile(fd: number): number;

  /**
   * Sends `bytes` as one datagram to the Unix socket at `address` (a path; a leading NUL means the abstract namespace),
   * without waiting. Returns 0, or the errno (EAGAIN: the receiver has no room).
   */
  datagramSend(address: Uint8Array, bytes: Uint8Array): number;

  /** Exits the process with _exit(2): at once, even if the thread pool hangs, and without flushing anything. */
  exitNow(code: number): never;

  /**
   * For a slab with slots of `slotBytes`, keeps what other threads need to read from it. The caller keeps the slab in
   * place and alive as long as any hit map of it is in use.
   */
  residencyOpen(slab: Uint8Array, slotBytes: number): Residency;

  /**
   * Takes back everything that was published for `slot`. True: nothing reads it, and it may be overwritten. False: a
   * thread is reading it; it must not be overwritten, and must be published again.
   */
  residencyClaim(residency: Residency, slot: number): boolean;

  /** Whether another thread has read from `slot` since the last call. */
  residencyTakeUsed(residency: Residency, slot: number): boolean;

  /** Chunks that were read through all its hit maps. */
  residencyReads(residency: Residency): number;

  /**
   * Which of a drive's `chunks` chunks, each the size of a slot, are in which slots; 8 bytes for each published chunk.
   * Chunk n is all zero unless bit n % 8 of `stored[n >> 3]` is set. `stored` has a bit for each chunk and is copied.
   */
  hitMapOpen(residency: Residency, chunks: number, stored: Uint8Array): HitMapHandle;

  /** Publishes that `slot` holds all of `chunk`, until it is claimed. */
  hitMapPublish(hitMap: HitMapHandle, chunk: number, slot: number): void;

  /** What was read through the map: [reads, bytes]. */
  hitMapCounts(hitMap: HitMapHandle): [number, number];

  /**
   * Starts a thread that serves NBD clients after their handshake. News for the event loop is put into `news` (8-byte
   * aligned, 132 KiB or more), and `onNews` is called with the number of bytes there; it must have processed them when
   * it returns. Each record begins on an 8-byte boundary with four 32-bit integers, little-endian: the client's id; how
   * many bytes from it follow; how many of the bytes that nbdWrite left over the kernel has taken so far, modulo 2^32;
   * and the sum of 1 if it will send nothing more and 2 if it is closed and forgotten. Throws an Error if memory or
   * descriptors run out.
   */
  nbdOpen(news: Uint8Array, onNews: (lengthBytes: number) => void): NbdLoop;

  /** Closes all clients, ends the thread, and delivers the last news before it returns. Call once. */
  nbdClose(loop: NbdLoop): void;

  /**
   * Serves the client at the stream socket `fd`, which it duplicates. Reads that `hitMap` can answer are answered; all
   * other bytes from the client become news. `head` is what the client has already sent. Returns the client's id, or 0
   * if there is no descriptor.
   */
  nbdServe(
    loop: NbdLoop,
    fd: number,
    hitMap: HitMapHandle | undefined,
    structured: boolean,
    head: Uint8Array,
  ): number;

  /**
   * Sends `parts` (1 to 1023 of them), together whole messages, in order and with nothing in between. Returns how many
   * of their bytes the kernel has not taken (0 if the client is gone). Those must not be touched until the news says
   * that they are taken or that the client is closed.
   */
  nbdWrite(loop: NbdLoop, id: number, parts: readonly Uint8Array[]): number;

  /** Stops or resumes reading from the client. */
  nbdPause(loop: NbdLoop, id: number, isPaused: boolean): void;

  /**
   * Ends the client: what is written is still sent, then the sending side is shut down, and the socket is closed when
   * the client closes it. `atOnce`: it is closed now. A client that is gone is ignored.
   */
  nbdEnd(loop: NbdLoop, id: number, atOnce: boolean): void;

  /** What the thread itself has answered, for all clients ever: [reads, bytes]. */
  nbdCounts(loop: NbdLoop): [number, number];

  /**
   * Serves the FUSE descriptor `fd`, which it owns from now on, from this thread's event loop. Requests are put into
   * `requests` (8-byte aligned, 8 KiB or more), each on an 8-byte boundary, and `onRequests` is called with the number
   * of bytes there; it must have processed them when it returns. `onLost` is called with the errno when the kernel
   * ended the connection (ENODEV: unmounted); nothing is read after that, and `fuseClose` must still be called.
   */
  fuseOpen(
    fd: number,
    requests: Uint8Array,
    onRequests: (lengthBytes: number) => void,
    onLost: (errno: number) => void,
  ): FuseChannel;

  /**
   * Answers request `unique` with `errno` (0 or positive) and the bytes of `parts` (at most 1023 of them), which the
   * kernel has copied when this returns. Returns 0 or the errno of the write: ENOENT means that no reader waits for the
   * answer any more.
   */
  fuseReply(
    channel: FuseChannel,
    unique: number,
    errno: number,
    parts: Uint8Array | readonly Uint8Array[],
  ): number;

  /**
   * Queues the `lengthBytes` (1 to 512 KiB) at `offset` of inode `nodeId` for the page cache: zeroes without `hitMap`,
   * otherwise the chunk that begins there, which stays pinned in its slot until a thread has written it. Returns false
   * if 16 chunks or about a quarter of the slots are already waiting, the chunk is not in memory, or the channel is
   * closing.
   */
  fusePush(
    channel: FuseChannel,
    nodeId: number,
    offset: number,
    lengthBytes: number,
    hitMap: HitMapHandle | undefined,
  ): boolean;

  /** Pushes [sent, failed, waiting]. A failed push found its inode or connection gone. */
  fusePushed(channel: FuseChannel): [number, number, number];

  /**
   * Ends the channel; call once. Waiting pushes are dropped, and when the kernel has released the pushing thread, the
   * descriptor is closed and `callback` is called. Until then requests still arrive and must be answered, because the
   * thread may wait for a page that one of them has locked.
   */
  fuseClose(channel: FuseChannel, callback: () => void): void;

  /**
   * Erasure code over GF(2^8), k + m <= 16. `shards` holds k + m shards of equal length one after another; the first k
   * are data, the last m are computed. Synchronous: some 10 µs for one parity shard of a 512 KiB chunk.
   */
  erasureEncode(k: number, m: number, shards: Uint8Array): void;

  /**
   * Rebuilds in place the data shards whose bit (1 << index) in `present` is clear, from k shards that are present.
   * Returns false if fewer than k are present.
   */
  erasureReconstruct(k: number, m: number, shards: Uint8Array, present: number): boolean;

  /** Row `index` of the generator matrix: the k coefficients that compute shard `index` from the data. */
  erasureRow(k: number, m: number, index: number): Buffer;
}

/** An open channel. */
export interface FuseChannel {
  readonly __brand: 'FuseChannel';
}

/** See residencyOpen. */
export interface Residency {
  readonly __brand: 'Residency';
}

/** See hitMapOpen. */
export interface HitMapHandle {
  readonly __brand: 'HitMap';
}

/** See nbdOpen. */
export interface NbdLoop {
  readonly __brand: 'NbdLoop';
}

/** A decoder of one layer. */
export interface LayerDecoder {
  readonly __brand: 'LayerDecoder';
}
