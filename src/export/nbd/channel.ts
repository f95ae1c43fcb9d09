/**
 * Clients after their handshake, on the native thread that answers what is in memory (native/nbd-loop.h). All other
 * bytes from the clients come here, and the answers to them go back; so a channel is a socket whose hits are already
 * answered.
 */
import {
  type NbdLoop,
  nbdClose,
  nbdCounts,
  nbdEnd,
  nbdOpen,
  nbdPause,
  nbdServe,
  nbdWrite,
} from '../../../native/index.ts';
import type { BlockDevice } from '../../drive/block-device.ts';
import { LazydiskError } from '../../errors.ts';
import { noteWork } from '../../loop-work.ts';

/** Room for the news of at least two clients. */
const NEWS_BYTES = 256 * 1024;
const NEWS_HEADER_BYTES = 16;
const NEWS_ENDED = 1;
const NEWS_CLOSED = 2;
/** The most parts of one write. */
export const PARTS_MAX = 1023;

/** Receives the events of a channel. */
export interface ChannelOwner {
  /** `bytes` may be reused afterwards. Returns false to pause the client until `resume`. */
  received(bytes: Buffer): boolean;
  /** The kernel has taken some of what was written. */
  sent(): void;
  /** The client will send nothing more. */
  ended(): void;
  /** The last call. */
  closed(): void;
}

/** A write that the kernel has not taken completely. */
interface Pending {
  unsentBytes: number;
  readonly onTaken: () => void;
  /** Must stay unchanged and alive. */
  readonly parts: readonly Uint8Array[];
}

/** All channels of one server. */
export class NbdChannels {
  readonly #loop: NbdLoop;
  readonly #news = Buffer.allocUnsafeSlow(NEWS_BYTES);
  readonly #channels = new Map<number, NbdChannel>();
  #isClosed = false;

  /** Throws an Error if no descriptor or thread is available. */
  constructor() {
    this.#loop = nbdOpen(this.#news, (lengthBytes) => this.#tell(lengthBytes));
  }

  /**
   * A channel to the client at the socket `fd`, which may be closed afterwards; `head` is what the client has already
   * sent. `ownerOf` is called before any event. Throws UNAVAILABLE without a descriptor.
   */
  serve<O extends ChannelOwner>(
    fd: number,
    client: { device: BlockDevice; structured: boolean; head: Buffer },
    ownerOf: (channel: NbdChannel) => O,
  ): O {
    const { device, structured, head } = client;
    const id = nbdServe(this.#loop, fd, device.hitMap?.()?.handle, structured, head);
    if (id === 0) throw new LazydiskError('UNAVAILABLE', 'no descriptor for an NBD client');
    const channel = new NbdChannel(this.#loop, id, device);
    const owner = ownerOf(channel);
    channel.owner = owner;
    this.#channels.set(id, channel);
    return owner;
  }

  /** Reads that memory answered, and their bytes. */
  hits(): { readonly reads: number; readonly readBytes: number } {
    const [reads, readBytes] = nbdCounts(this.#loop);
    return { reads, readBytes };
  }

  /** Closes the remaining clients and ends the thread. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    nbdClose(this.#loop);
  }

  #tell(lengthBytes: number): void {
    const since = performance.now();
    const news = this.#news;
    for (let at = 0; at < lengthBytes; ) {
      const id = news.readUInt32LE(at);
      const bytes = news.readUInt32LE(at + 4);
      const takenBytes = news.readUInt32LE(at + 8);
      const flags = news.readUInt32LE(at + 12);
      at += NEWS_HEADER_BYTES;
      const channel = this.#channels.get(id);
      if ((flags & NEWS_CLOSED) !== 0) this.#channels.delete(id);
      channel?.happened(news.subarray(at, at + bytes), takenBytes, flags);
      at += (bytes + 7) & ~7;
    }
    noteWork('nbd', since);
  }
}

export class NbdChannel {
  owner!: ChannelOwner;
  readonly #loop: NbdLoop;
  readonly #id: number;
  /** Keeps the memory that the thread reads from alive until the client is closed. */
  readonly #device: BlockDevice;
  readonly #pending: Pending[] = [];
  #takenBytes = 0;
  #unsentBytes = 0;
  #hasEnded = false;
  #isEnding = false;
  #isDestroyed = false;

  constructor(loop: NbdLoop, id: number, device: BlockDevice) {
    this.#loop = loop;
    this.#id = id;
    this.#device = device;
  }

  get device(): BlockDevice {
    return this.#device;
  }

  /** Bytes that were written and that the kernel has not taken yet. */
  get unsentBytes(): number {
    return this.#unsentBytes;
  }

  /** True once no more answers are sent. */
  get isDestroyed(): boolean {
    return this.#isDestroyed;
  }

  get isEnding(): boolean {
    return this.#isEnding;
  }

  /**
   * Sends whole messages, `parts` in order. `onTaken` is called once, when they are not needed any more: at once if the
   * kernel takes them, or if the client is gone.
   */
  write(parts: readonly Uint8Array[], onTaken: () => void): void {
    const isOver = this.#isDestroyed || this.#isEnding;
    const unsentBytes = isOver ? 0 : nbdWrite(this.#loop, this.#id, parts);
    if (unsentBytes > 0) {
      this.#pending.push({ unsentBytes, onTaken, parts });
      this.#unsentBytes += unsentBytes;
    } else {
      onTaken();
      this.owner.sent();
    }
  }

  resume(): void {
    nbdPause(this.#loop, this.#id, false);
  }

  /** Sends what was written, then shuts down the sending side. */
  end(): void {
    this.#isEnding = true;
    nbdEnd(this.#loop, this.#id, false);
  }

  destroy(): void {
    this.#isDestroyed = true;
    nbdEnd(this.#loop, this.#id, true);
  }

  /** Called by NbdChannels: news of this client, in the order in which they must be handled. */
  happened(bytes: Buffer, takenBytes: number, flags: number): void {
    const isClosed = (flags & NEWS_CLOSED) !== 0;
    if (isClosed) this.#isDestroyed = true;
    this.#taken(isClosed ? this.#unsentBytes : (takenBytes - this.#takenBytes) >>> 0);
    this.#takenBytes = takenBytes;
    if (bytes.length > 0 && !this.#isDestroyed && !this.owner.received(bytes))
      nbdPause(this.#loop, this.#id, true);
    if ((flags & NEWS_ENDED) !== 0 && !isClosed && !this.#hasEnded) {
      this.#hasEnded = true;
      this.owner.ended();
    }
    if (isClosed) this.owner.closed();
  }

  #taken(bytes: number): void {
    if (bytes === 0) return;
    this.#unsentBytes -= bytes;
    for (let left = bytes; left > 0; ) {
      const first = this.#pending[0]!;
      const taken = Math.min(left, first.unsentBytes);
      first.unsentBytes -= taken;
      left -= taken;
      if (first.unsentBytes > 0) break;
      this.#pending.shift();
      first.onTaken();
    }
    this.owner.sent();
  }
}
