/** The shape of the compiled addon (native/*.cc), function by function. */

export interface NativeAddon {
  /**
   * Proves and decodes one sealed chunk in one job, on threads that only compute, one a core, so that no file system
   * that hangs holds it up: SHA-256 of `sealed` against `id` (32 bytes), AES-256-GCM under `key` (32 bytes, copied, wiped afterwards), codec byte, and exactly
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
   * Seals `plain` (1 byte to 512 KiB) as `encodeChunk` does, in one job on libuv's thread pool: the sealed bytes go
   * to the front of `sealed` (17 bytes longer than `plain` or more), the chunk's id and its key to `id` and `key` (32
   * bytes each). All of them must stay untouched until `callback` gets how many bytes are sealed, or 0 where memory
   * ran out. Throws a TypeError for arguments of another shape.
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
   * SHA-256 of `bytes` into `digest` (32 bytes), in one job on libuv's thread pool. Both must stay untouched until `callback`
   * gets 1, or 0 where memory ran out. Throws a TypeError for arguments of another shape.
   */
  sha256(bytes: Uint8Array, digest: Uint8Array, callback: (isDone: number) => void): void;

  /**
   * A decoder of one layer's blob: `compression` is 0 for none, 1 for gzip, 2 for zstd; the hashes, 'sha256', 'sha512' or
   * '' for none, are of the blob's bytes and of what they decode to.
   */
  decoderOpen(compression: number, blobHash: string, tarHash: string): LayerDecoder;

  /**
   * Decodes and hashes in one job on libuv's thread pool, until `input` is used up or `output` (1 byte to 16 MiB) is full:
   * how many bytes of each were moved goes to `counts`, two 32-bit numbers, lowest byte first. Output that is full means
   * that more may come, without input, too. Without compression nothing is moved to `output`: the input is what it is.
   * Members and frames follow one another; zeroes behind the last are padding, and all behind them is passed over. All
   * arguments must stay untouched until `callback` gets DECODED, DECODE_CORRUPT or, where memory ran out, 2; until then
   * another run is a TypeError.
   */
  decoderRun(
    decoder: LayerDecoder,
    input: Uint8Array,
    output: Uint8Array,
    counts: Uint8Array,
    callback: (status: number) => void,
  ): void;

  /** Whether the input ended where a member or frame did, and the two digests in hexadecimal; once, at the end. */
  decoderEnd(decoder: LayerDecoder): [boolean, string, string];

  /**
   * Opens /dev/fuse and mounts `type` ("fuse.NAME") from `source` (any text) on `dir`, read-only, with the mount
   * data "fd=N," + `options`.
   * Returns the descriptor, or a negative errno. Needs CAP_SYS_ADMIN.
   */
  fuseMount(source: string, dir: string, type: string, options: string): number;

  /**
   * umount2 with MNT_DETACH, and with MNT_FORCE if `abort` (which ends the connection, also that of a daemon that
   * is dead). On the thread pool, because the kernel may wait for reads in it. `callback` gets 0 or an errno.
   */
  fuseUnmount(dir: string, abort: boolean, callback: (errno: number) => void): void;

  /** A connected pair of Unix stream sockets, closed on exec. */
  socketPair(): [number, number];

  /** The descriptor that was sent over `socket` already, closed on exec; a negative errno if there is none. */
  receiveFd(socket: number): number;

  /**
   * Sends the first `lengthBytes` of `bytes` on the stream socket `fd` as far as they fit, without waiting and
   * without SIGPIPE. Returns how many the kernel took, or a negative errno (-EAGAIN: none fit).
   */
  socketSend(fd: number, bytes: Uint8Array, lengthBytes: number): number;

  /**
   * flock(2) on `fd`, exclusive and without waiting: 0, or the errno (EWOULDBLOCK: somebody has it). The kernel lets go
   * of it when the descriptor is closed, so also when the process dies.
   */
  lockFile(fd: number): number;

  /**
   * Sends `bytes` as one datagram to the Unix socket at `address` (a path; a NUL in front means the abstract namespace),
   * without waiting: 0, or the errno (EAGAIN: its receiver has no room).
   */
  datagramSend(address: Uint8Array, bytes: Uint8Array): number;

  /** Ends the process as _exit(2) does: at once, whatever hangs in the thread pool; nothing is flushed. */
  exitNow(code: number): never;

  /**
   * Keeps, for a slab of slots of `slotBytes`, what other threads must know to read from it. The caller keeps the slab
   * in place and alive as long as any hit map of it is in use.
   */
  residencyOpen(slab: Uint8Array, slotBytes: number): Residency;

  /**
   * Takes back all that was published for `slot`. True: nobody reads it, and it may be written to. False: somebody does
   * just now; it may not, and is to be published anew.
   */
  residencyClaim(residency: Residency, slot: number): boolean;

  /** Whether another thread read from `slot` since this was asked last. */
  residencyTakeUsed(residency: Residency, slot: number): boolean;

  /** Chunks that were read by way of all its hit maps. */
  residencyReads(residency: Residency): number;

  /**
   * Which chunks of a drive, `chunks` of them of a slot's size, lie in which slots; 8 bytes for each that is published.
   * Chunk n is all zero unless bit n % 8 of `stored[n >> 3]` is set. `stored` has a bit for each chunk and is copied.
   */
  hitMapOpen(residency: Residency, chunks: number, stored: Uint8Array): HitMapHandle;

  /** Says that `slot` holds `chunk` whole, until it is claimed. */
  hitMapPublish(hitMap: HitMapHandle, chunk: number, slot: number): void;

  /** What was read by way of the map: [reads, bytes]. */
  hitMapCounts(hitMap: HitMapHandle): [number, number];

  /**
   * A thread that serves NBD clients past their handshake. News for the event loop are put into `news` (8-byte aligned,
   * 132 KiB or more) and `onNews` is called with the number of bytes there; it must be done with them when it returns.
   * Each piece of news begins on an 8-byte boundary with four 32-bit integers, little-endian: the client's id; how many
   * bytes from it follow; how many bytes that nbdWrite left the kernel has taken by now, modulo 2^32; and the sum of 1 if
   * it sends nothing more and 2 if it is closed and forgotten. Throws an Error without the memory or the descriptors.
   */
  nbdOpen(news: Uint8Array, onNews: (lengthBytes: number) => void): NbdLoop;

  /** Closes all clients, ends the thread, and tells the last news before it returns. Once. */
  nbdClose(loop: NbdLoop): void;

  /**
   * Serves the client at the stream socket `fd`, of which it makes a descriptor of its own. Reads that `hitMap` can
   * answer are answered; every other byte that the client sends becomes news. `head` is what it has sent by now. Returns
   * the client's id, or 0 if there is no descriptor.
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
   * bytes of them the kernel has not taken (0 if the client is gone): they must stay untouched until the news say that
   * they are taken, or that the client is closed.
   */
  nbdWrite(loop: NbdLoop, id: number, parts: readonly Uint8Array[]): number;

  /** Whether the client is not read from. */
  nbdPause(loop: NbdLoop, id: number, isPaused: boolean): void;

  /**
   * Ends the client: what is written is still sent, then it is told that nothing more comes, and it is closed when it
   * closes. `atOnce`: it is closed now. A client that is gone is ignored.
   */
  nbdEnd(loop: NbdLoop, id: number, atOnce: boolean): void;

  /** What the thread answered by itself, of all clients ever: [reads, bytes]. */
  nbdCounts(loop: NbdLoop): [number, number];

  /**
   * Serves the FUSE descriptor `fd`, which it owns from now on, from this thread's event loop. Requests are put
   * into `requests` (8-byte aligned, 8 KiB or more), each on an 8-byte boundary, and `onRequests` is called
   * with the number of bytes there; it must be done with them when it returns. `onLost` gets the errno when the
   * connection ended from the kernel's side (ENODEV: unmounted); nothing is read any more then, and `fuseClose`
   * is still due.
   */
  fuseOpen(
    fd: number,
    requests: Uint8Array,
    onRequests: (lengthBytes: number) => void,
    onLost: (errno: number) => void,
  ): FuseChannel;

  /**
   * Answers request `unique` with `errno` (0 or positive) and the bytes of `parts` (at most 1023 of them), which
   * the kernel has copied when this returns. Returns 0 or the errno of the write: ENOENT means that nobody waits
   * for the answer any more.
   */
  fuseReply(
    channel: FuseChannel,
    unique: number,
    errno: number,
    parts: Uint8Array | readonly Uint8Array[],
  ): number;

  /**
   * Queues the `lengthBytes` (1 to 512 KiB) at `offset` of inode `nodeId` for the page cache: zeroes without `hitMap`, else
   * those of the chunk that begins there, which stays pinned in its slot until a thread has written it. False if 16 chunks
   * or about a quarter of the slots wait already, the chunk is not in memory, or the channel is closing.
   */
  fusePush(
    channel: FuseChannel,
    nodeId: number,
    offset: number,
    lengthBytes: number,
    hitMap: HitMapHandle | undefined,
  ): boolean;

  /** Pushes [sent, failed, waiting]. A failed one met an inode or a connection that is gone. */
  fusePushed(channel: FuseChannel): [number, number, number];

  /**
   * Ends the channel, once: what waits to be pushed is dropped, and when the kernel has let go of the pushing
   * thread, the descriptor is closed and `callback` called. Until then requests still come and must be answered,
   * because the thread may wait for a page that one of them locked.
   */
  fuseClose(channel: FuseChannel, callback: () => void): void;

  /**
   * Erasure code over GF(2^8), k + m <= 16. `shards` holds k + m shards of equal length behind one another; the
   * first k are data, the last m are computed. Synchronous: some 10 us for one parity shard of a 512 KiB chunk.
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

/** An open channel, seen from JavaScript. */
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

/** A decoder of a layer, seen from JavaScript. */
export interface LayerDecoder {
  readonly __brand: 'LayerDecoder';
}
