/**
 * How the reads of one client are answered. What is in memory is answered at once. Other reads fetch; long ones are sent
 * in pieces if the client allows that, so that little is pinned at a time, and as one copy otherwise. All pieces of a
 * read share its deadline, and wait while the client does not take what it was sent.
 */
import type { BlockDevice, PinnedBytes } from '../../drive/block-device.ts';
import { LazydiskError } from '../../errors.ts';
import { AnswerRoom } from './answer-room.ts';
import { type ConnectionContext, unsentBytesMax } from './connection-context.ts';
import type { Session } from './handshake.ts';
import { COMMAND_FLAG, type Request } from './protocol.ts';
import { HOLE_BYTES_MIN, PIECE_BYTES_MAX, type Piece, piecesOf } from './read-pieces.ts';
import { PooledCopy, type ReplyWriter } from './reply-writer.ts';

/** The client that sends the reads. */
export interface ReadClient {
  /** Aborted when the client is gone. */
  readonly signal: AbortSignal;
  /** Whether no more answers are sent. */
  isGone(): boolean;
  /** Called when the client holds memory that others wait for, and takes nothing of its answers. */
  disconnect(): void;
}

export class ReadAnswers {
  readonly #device: BlockDevice;
  readonly #structured: boolean;
  readonly #context: ConnectionContext;
  readonly #replies: ReplyWriter;
  readonly #client: ReadClient;
  readonly #room: AnswerRoom;
  /** Long answers that wait until the client has taken what was sent. */
  #waiting: (() => void)[] = [];

  constructor(session: Session, context: ConnectionContext, replies: ReplyWriter, client: ReadClient) {
    this.#device = session.device;
    this.#structured = session.structured;
    this.#context = context;
    this.#replies = replies;
    this.#client = client;
    this.#room = new AnswerRoom(session.device, context.budget, {
      signal: client.signal,
      stallMs: context.limits.lingerTimeoutMs,
      isOwed: () => replies.unsentBytes > 0,
      onStall: () => client.disconnect(),
    });
  }

  /** Whether long answers wait for the client; call `wake` when it has taken bytes. */
  get isWaiting(): boolean {
    return this.#waiting.length > 0;
  }

  /**
   * Answers a valid read. Returns undefined if it has been answered, otherwise a promise that resolves when it has been.
   * The promise rejects if the read fails; the caller then answers with the error.
   */
  start(request: Request): Promise<void> | undefined {
    const { flags, offset, lengthBytes } = request;
    const mayBeCut = this.#structured && (flags & COMMAND_FLAG.df) === 0;
    if (mayBeCut && lengthBytes >= HOLE_BYTES_MIN) {
      const pieces = piecesOf(this.#device, offset, lengthBytes);
      if (pieces.length > 1) return this.#sendPieces(request, pieces);
      if (pieces[0]!.hole) {
        this.#sendHole(request, offset, lengthBytes, true);
        return undefined;
      }
    } else if (lengthBytes > PIECE_BYTES_MAX) {
      return this.#sendWhole(request);
    }
    const bytes = this.#room.tryRead(offset, lengthBytes);
    if (!bytes) return this.#sendFetched(request);
    this.#sendData(request, offset, lengthBytes, bytes, true);
    return undefined;
  }

  /** Called when the client has taken bytes. */
  moved(): void {
    this.#room.moved();
  }

  /** Continues the answers that wait for the client. */
  wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }

  /** Called when the client is gone: ends the answers that wait for it. */
  close(): void {
    this.#room.close();
    this.wake();
  }

  /** The deadline of a read that starts now, for all of its pieces. */
  #deadline(): number {
    return performance.now() + this.#device.readTimeoutMs;
  }

  /** The bytes, with room in the budget for them; releasing the bytes releases the room. */
  #readInRoom(offset: number, lengthBytes: number, deadline: number): Promise<PinnedBytes> {
    return this.#room.read(lengthBytes, deadline, () => this.#fetch(offset, lengthBytes, deadline));
  }

  /** Bytes of the device, pinned. If the connection has gone in the meantime, releases them and throws. */
  async #fetch(offset: number, lengthBytes: number, deadline: number): Promise<PinnedBytes> {
    const bytes =
      this.#device.tryRead(offset, lengthBytes) ??
      (await this.#device.read(offset, lengthBytes, this.#client.signal, deadline));
    if (!this.#client.isGone()) return bytes;
    bytes.release();
    throw new LazydiskError('ABORTED', 'the client has gone');
  }

  async #sendFetched(request: Request): Promise<void> {
    const { offset, lengthBytes } = request;
    const bytes = await this.#readInRoom(offset, lengthBytes, this.#deadline());
    this.#sendData(request, offset, lengthBytes, bytes, true);
  }

  /** Sends a structured reply, with one piece pinned at a time. */
  async #sendPieces(request: Request, pieces: readonly Piece[]): Promise<void> {
    let deadline = this.#deadline();
    for (const [n, { offset, lengthBytes, hole }] of pieces.entries()) {
      const isLast = n === pieces.length - 1;
      const pausedAt = performance.now();
      while (this.#replies.unsentBytes > unsentBytesMax(this.#context) && !this.#client.isGone()) {
        await new Promise<void>((resolve) => this.#waiting.push(resolve));
      }
      // The time in which the client was slow, and nothing was read, does not count.
      deadline += performance.now() - pausedAt;
      if (this.#client.isGone()) throw new LazydiskError('ABORTED', 'the client has gone');
      if (!hole) {
        const bytes = await this.#readInRoom(offset, lengthBytes, deadline);
        this.#sendData(request, offset, lengthBytes, bytes, isLast);
        continue;
      }
      this.#sendHole(request, offset, lengthBytes, isLast);
    }
  }

  /** Sends a long reply in one piece: it is first copied together, because an error cannot be sent after its header. */
  async #sendWhole(request: Request): Promise<void> {
    const { offset, lengthBytes } = request;
    const deadline = this.#deadline();
    const held = await this.#room.take(lengthBytes, deadline);
    const whole = new PooledCopy(this.#context.pool, lengthBytes);
    try {
      for (let at = 0; at < lengthBytes; at += PIECE_BYTES_MAX) {
        const bytes = await this.#fetch(offset + at, Math.min(PIECE_BYTES_MAX, lengthBytes - at), deadline);
        for (const part of bytes.parts) whole.append(part);
        bytes.release();
        await this.#turn(PIECE_BYTES_MAX);
      }
    } catch (error) {
      whole.release();
      held.release();
      throw error;
    }
    this.#sendData(request, offset, lengthBytes, this.#room.holding(whole, held), true);
  }

  /** Resolves once this many bytes may be copied in this turn of the event loop. */
  #turn(bytes: number): Promise<void> {
    const { turn } = this.#context;
    return new Promise((resolve) => {
      turn.wait(this.#device, () => {
        turn.use(this.#device, bytes);
        resolve();
      });
    });
  }

  #sendData(
    request: Request,
    offset: number,
    lengthBytes: number,
    bytes: PinnedBytes,
    isLast: boolean,
  ): void {
    this.#context.turn.use(this.#device, lengthBytes);
    this.#countRead(lengthBytes, isLast);
    this.#replies.data(request, offset, lengthBytes, bytes, isLast);
  }

  #sendHole(request: Request, offset: number, lengthBytes: number, isLast: boolean): void {
    this.#countRead(lengthBytes, isLast);
    this.#replies.hole(request, offset, lengthBytes, isLast);
  }

  #countRead(lengthBytes: number, isLast: boolean): void {
    const { counters } = this.#context;
    counters.readBytes += lengthBytes;
    if (isLast) counters.readsOk++;
  }
}
