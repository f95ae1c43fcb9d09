/**
 * READ requests. The trick is the short way: what is in memory is answered from the memory it lies in, before the
 * next request of the batch is looked at. Only what must be fetched becomes a promise; it stays in `#pending`
 * until it is answered, so that it can be interrupted, counted and drained.
 */
import { constants as osConstants } from 'node:os';
import type { BlockDevice, PinnedBytes } from '../../drive/block-device.ts';
import type { Inode } from './inodes.ts';
import type { PagePush } from './page-push.ts';

const { EINTR, EIO } = osConstants.errno;

/** Where replies go. */
export interface FuseTransport {
  /** `errno` 0 or positive. The parts are taken over before this returns. Returns 0, or why the write failed. */
  reply(unique: number, errno: number, parts: Uint8Array | readonly Uint8Array[]): number;
}

/** `drive` is one of those that share the file; `errno` is 0 or why the reader got an error. */
export type ReadHook = (drive: string, lengthBytes: number, durationMs: number, errno: number) => void;

/** One READ, with its range cut at the end of the file. */
export interface ReadRequest {
  readonly unique: number;
  readonly inode: Inode;
  readonly offset: number;
  /** At least 1. */
  readonly lengthBytes: number;
  /** Opened with O_DIRECT: nothing goes into the page cache. */
  readonly direct: boolean;
}

interface PendingRead {
  readonly startMs: number;
  readonly abort: AbortController;
}

const NOTHING = Buffer.alloc(0);

export class ReadQueue {
  readBytes = 0;
  errors = 0;
  readonly #transport: FuseTransport;
  readonly #push: PagePush | undefined;
  readonly #onRead: ReadHook | undefined;
  /** By request id, in order of arrival. Bounded by the kernel: max_background, and one a reading thread. */
  readonly #pending = new Map<number, PendingRead>();
  #closing = false;
  #onIdle: (() => void) | undefined;

  constructor(transport: FuseTransport, push: PagePush | undefined, onRead: ReadHook | undefined) {
    this.#transport = transport;
    this.#push = push;
    this.#onRead = onRead;
  }

  get inFlight(): number {
    return this.#pending.size;
  }

  /** 0 if nothing is in flight. */
  oldestInFlightMs(): number {
    const [oldest] = this.#pending.values();
    return oldest ? performance.now() - oldest.startMs : 0;
  }

  /** Answers now or later, exactly once. */
  read(request: ReadRequest): void {
    const device = request.inode.device;
    if (!device || this.#closing) {
      this.#failRead(request.unique, device, 0);
      return;
    }
    const startMs = this.#onRead ? performance.now() : 0;
    let pinned: PinnedBytes | undefined;
    try {
      pinned = device.tryRead(request.offset, request.lengthBytes);
    } catch {
      this.#failRead(request.unique, device, 0);
      return;
    }
    if (!pinned) void this.#readLater(request, device);
    else this.#answer(request, device, pinned, startMs);
  }

  /** The reader was killed: ends its read before the bytes are there. Nothing, if it was answered already. */
  interrupt(unique: number): void {
    this.#abandon(unique, EINTR);
  }

  /**
   * From now on every read is answered with EIO at once. Resolves when those under way have been answered; what
   * is not done after `timeoutMs` is aborted and answered with EIO.
   */
  async drain(timeoutMs: number): Promise<void> {
    this.#closing = true;
    if (this.#pending.size === 0) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#onIdle = resolve;
    const timer = setTimeout(() => this.abort(), timeoutMs);
    await promise;
    clearTimeout(timer);
  }

  /** Answers every read under way with EIO. */
  abort(): void {
    for (const unique of [...this.#pending.keys()]) this.#abandon(unique, EIO);
  }

  /** Never rejects. */
  async #readLater(request: ReadRequest, first: BlockDevice): Promise<void> {
    const { unique, inode, offset, lengthBytes } = request;
    const pending = { startMs: performance.now(), abort: new AbortController() };
    this.#pending.set(unique, pending);
    let device: BlockDevice | undefined = first;
    while (device) {
      const asked: BlockDevice = device;
      try {
        const pinned = await asked.read(offset, lengthBytes, pending.abort.signal);
        if (this.#pending.get(unique) === pending) {
          this.#settle(unique);
          this.#answer(request, asked, pinned, pending.startMs);
        } else {
          pinned.release();
        }
        return;
      } catch {
        if (this.#pending.get(unique) !== pending) return;
        // Detached while it read for all that share the file: the others must not suffer. Each turn another
        // drive was removed, so this ends.
        device = inode.device === asked ? undefined : inode.device;
      }
    }
    this.#settle(unique);
    this.#failRead(unique, first, performance.now() - pending.startMs);
  }

  #answer(request: ReadRequest, device: BlockDevice, pinned: PinnedBytes, startMs: number): void {
    const { unique, inode, offset, lengthBytes, direct } = request;
    try {
      const { parts } = pinned;
      this.#transport.reply(unique, 0, parts.length === 1 ? parts[0]! : parts);
    } catch {
      // Parts that the transport cannot send. Nothing was sent, and a reader must never wait for ever.
      this.#failRead(unique, device, performance.now() - startMs);
      return;
    } finally {
      pinned.release();
    }
    this.readBytes += lengthBytes;
    this.#onRead?.(device.name, lengthBytes, performance.now() - startMs, 0);
    if (!direct && device.readOnly) this.#push?.touched(inode, device, offset, lengthBytes);
  }

  #abandon(unique: number, errno: number): void {
    const pending = this.#pending.get(unique);
    if (!pending) return;
    this.#settle(unique);
    this.#transport.reply(unique, errno, NOTHING);
    pending.abort.abort();
  }

  #settle(unique: number): void {
    this.#pending.delete(unique);
    if (this.#pending.size === 0) this.#onIdle?.();
  }

  #failRead(unique: number, device: BlockDevice | undefined, durationMs: number): void {
    this.errors++;
    this.#transport.reply(unique, EIO, NOTHING);
    if (device) this.#onRead?.(device.name, 0, durationMs, EIO);
  }
}
