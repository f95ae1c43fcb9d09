/**
 * READ requests. A read of data in memory is answered in place before the next request of the batch is parsed, so a hit
 * never waits behind a miss. A read that must fetch becomes a promise, and each file has a bounded number of those;
 * further reads wait in a queue per file, as small objects. A read stays in `#pending` until it is answered, so that it
 * can be interrupted, counted and drained.
 */
import { constants as osConstants } from 'node:os';
import type { BlockDevice, PinnedBytes } from '../../drive/block-device.ts';
import { type ByteBudget, SHORT_READ_BYTES } from '../byte-budget.ts';
import type { TurnBudget } from '../turn-budget.ts';
import type { Inode } from './inodes.ts';
import type { PagePush } from './page-push.ts';

const { EINTR, EIO } = osConstants.errno;

/** Where replies go. */
export interface FuseTransport {
  /** `errno` is 0 or positive. The parts are consumed before this returns. Returns 0, or why the write failed. */
  reply(unique: number, errno: number, parts: Uint8Array | readonly Uint8Array[]): number;
}

/** `drive` is one of those that share the file; `errno` is 0 or the error that the reader got. */
export type ReadHook = (drive: string, lengthBytes: number, durationMs: number, errno: number) => void;

/** One READ, with its range cut at the end of the file. */
export interface ReadRequest {
  readonly unique: number;
  /** The thread that reads; 0 if unknown. */
  readonly pid: number;
  readonly inode: Inode;
  readonly offset: number;
  /** At least 1. */
  readonly lengthBytes: number;
  /** Opened with O_DIRECT: nothing goes into the page cache. */
  readonly direct: boolean;
}

/** Reads of one file that wait for its drive at once; a guest's disk has at most this many in its own queue. */
const RUNNING_MAX = 256;
/** How often interrupted readers are checked for dying, and how many at a time. */
const DYING_LOOK_MS = 100;
const DYING_LOOKS_MAX = 64;

interface PendingRead {
  readonly request: ReadRequest;
  readonly startMs: number;
  readonly abort: AbortController;
}

/** The reads of one file that missed memory. */
interface Lane {
  running: number;
  readonly waiting: Set<PendingRead>;
}

const NOTHING = Buffer.alloc(0);

export interface ReadQueueOptions {
  readonly transport: FuseTransport;
  readonly push: PagePush | undefined;
  readonly onRead: ReadHook | undefined;
  /** Whether the thread `pid` is being killed. */
  readonly isDying: (pid: number) => boolean;
  readonly turn: TurnBudget;
  readonly budget: ByteBudget;
}

export class ReadQueue {
  readBytes = 0;
  /** Reads that got their bytes. */
  answered = 0;
  errors = 0;
  readonly #transport: FuseTransport;
  readonly #push: PagePush | undefined;
  readonly #onRead: ReadHook | undefined;
  readonly #isDying: (pid: number) => boolean;
  readonly #turn: TurnBudget;
  readonly #budget: ByteBudget;
  /** By request id, in order of arrival. Bounded by the kernel: max_background, plus one per reading thread. */
  readonly #pending = new Map<number, PendingRead>();
  /** The pending reads whose reader had a signal and was not dying when last checked. */
  readonly #interrupted = new Set<PendingRead>();
  readonly #lanes = new Map<Inode, Lane>();
  #dyingLook: NodeJS.Timeout | undefined;
  #closing = false;
  #onIdle: (() => void) | undefined;

  constructor({ transport, push, onRead, isDying, turn, budget }: ReadQueueOptions) {
    this.#turn = turn;
    this.#budget = budget;
    this.#transport = transport;
    this.#push = push;
    this.#onRead = onRead;
    this.#isDying = isDying;
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
    if (!pinned) {
      this.#enqueue(request);
      return;
    }
    this.#turn.use(request.inode, request.lengthBytes);
    this.#answer(request, device, pinned, startMs);
  }

  /**
   * Called when the reader has a signal. If the signal kills it, its read is answered before the bytes are there;
   * otherwise the read goes on, because a signal does not end a read of a file. In both cases the fetch goes on for
   * later readers. Does nothing if the read was already answered.
   */
  interrupt(unique: number): void {
    const pending = this.#pending.get(unique);
    if (!pending) return;
    this.#interrupted.add(pending);
    // The kernel sends one INTERRUPT only, and another signal may kill the reader later.
    this.#dyingLook ??= setInterval(() => this.#letDyingGo(), DYING_LOOK_MS).unref();
    this.#letGoIfDying(pending);
  }

  /**
   * From now on every new read is answered with EIO at once. Resolves when the reads in flight have been answered;
   * those not finished after `timeoutMs` are aborted and answered with EIO.
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

  /** Answers every read in flight with EIO. */
  abort(): void {
    for (const pending of [...this.#pending.values()]) {
      this.#settle(pending);
      this.#transport.reply(pending.request.unique, EIO, NOTHING);
      pending.abort.abort();
    }
  }

  #enqueue(request: ReadRequest): void {
    const pending = { request, startMs: performance.now(), abort: new AbortController() };
    this.#pending.set(request.unique, pending);
    const lane = this.#lanes.get(request.inode) ?? { running: 0, waiting: new Set() };
    this.#lanes.set(request.inode, lane);
    lane.waiting.add(pending);
    this.#runLane(request.inode, lane);
  }

  #runLane(inode: Inode, lane: Lane): void {
    for (const next of lane.waiting) {
      if (lane.running === RUNNING_MAX) break;
      lane.waiting.delete(next);
      lane.running++;
      void this.#readLater(next).finally(() => {
        lane.running--;
        this.#runLane(inode, lane);
      });
    }
    if (lane.running === 0 && lane.waiting.size === 0) this.#lanes.delete(inode);
  }

  /** Never rejects. */
  async #readLater(pending: PendingRead): Promise<void> {
    const { request, startMs } = pending;
    const { unique, inode, offset, lengthBytes } = request;
    const first = inode.device;
    for (let device = first; device; ) {
      const asked: BlockDevice = device;
      try {
        const pinned = asked.tryRead(offset, lengthBytes) ?? (await this.#fetch(asked, pending));
        if (!this.#turn.hasRoom(inode)) await this.#laterTurn(inode, lengthBytes);
        else this.#turn.use(inode, lengthBytes);
        if (this.#isPending(pending)) {
          this.#settle(pending);
          this.#answer(request, asked, pinned, startMs);
        } else {
          pinned.release();
        }
        return;
      } catch {
        if (!this.#isPending(pending)) return;
        // The drive was detached while it read for all that share the file, and the others must not suffer. Each
        // iteration means another removed drive, so this ends.
        device = inode.device === asked ? undefined : inode.device;
      }
    }
    this.#settle(pending);
    this.#failRead(unique, first, performance.now() - startMs);
  }

  #answer(request: ReadRequest, device: BlockDevice, pinned: PinnedBytes, startMs: number): void {
    const { unique, inode, offset, lengthBytes, direct } = request;
    try {
      const { parts } = pinned;
      this.#transport.reply(unique, 0, parts.length === 1 ? parts[0]! : parts);
    } catch {
      // The transport cannot send these parts. Nothing was sent, and a reader must never wait forever.
      this.#failRead(unique, device, performance.now() - startMs);
      return;
    } finally {
      pinned.release();
    }
    this.readBytes += lengthBytes;
    this.answered++;
    this.#onRead?.(device.name, lengthBytes, performance.now() - startMs, 0);
    if (!direct && device.readOnly) this.#push?.touched(inode, device, offset, lengthBytes);
  }

  /** The wait for room shares the read's deadline; the bytes of a long read may have to be copied while it waits. */
  async #fetch(device: BlockDevice, { request, abort: { signal } }: PendingRead): Promise<PinnedBytes> {
    const { offset, lengthBytes } = request;
    if (lengthBytes <= SHORT_READ_BYTES) return device.read(offset, lengthBytes, signal);
    const deadline = performance.now() + device.readTimeoutMs;
    const held = await this.#budget.take(device, lengthBytes, { deadline, signal });
    try {
      const bytes = await device.read(offset, lengthBytes, signal, deadline);
      return {
        parts: bytes.parts,
        release: () => {
          bytes.release();
          held.release();
        },
      };
    } catch (error) {
      held.release();
      throw error;
    }
  }

  #laterTurn(inode: Inode, lengthBytes: number): Promise<void> {
    return new Promise((resolve) => {
      this.#turn.wait(inode, () => {
        this.#turn.use(inode, lengthBytes);
        resolve();
      });
    });
  }

  #isPending(pending: PendingRead): boolean {
    return this.#pending.get(pending.request.unique) === pending;
  }

  #letDyingGo(): void {
    let looks = 0;
    for (const pending of this.#interrupted) {
      if (looks++ === DYING_LOOKS_MAX) return;
      // Moved to the end, so that all get their turn.
      this.#interrupted.delete(pending);
      this.#interrupted.add(pending);
      this.#letGoIfDying(pending);
    }
  }

  #letGoIfDying(pending: PendingRead): void {
    const { unique, pid } = pending.request;
    if (!this.#isDying(pid)) return;
    this.#settle(pending);
    this.#transport.reply(unique, EINTR, NOTHING);
  }

  #settle(pending: PendingRead): void {
    this.#pending.delete(pending.request.unique);
    this.#lanes.get(pending.request.inode)?.waiting.delete(pending);
    if (this.#interrupted.delete(pending) && this.#interrupted.size === 0) {
      clearInterval(this.#dyingLook);
      this.#dyingLook = undefined;
    }
    if (this.#pending.size === 0) this.#onIdle?.();
  }

  #failRead(unique: number, device: BlockDevice | undefined, durationMs: number): void {
    this.errors++;
    this.#transport.reply(unique, EIO, NOTHING);
    if (device) this.#onRead?.(device.name, 0, durationMs, EIO);
  }
}
