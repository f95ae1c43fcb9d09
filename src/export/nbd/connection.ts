/**
 * One client after its handshake. All requests in the bytes of one read are processed in one pass. Those for data in
 * memory are answered at once, those that must fetch whenever their data arrives, in any order. A client that sends
 * requests without taking its answers, or asks for too much at once, is not read from until it has been served, so its
 * cost is bounded.
 */
import type { BlockDevice } from '../../drive/block-device.ts';
import { errorText } from '../../errors.ts';
import type { ChannelOwner, NbdChannel } from './channel.ts';
import { type ConnectionContext, unsentBytesMax } from './connection-context.ts';
import type { Session } from './handshake.ts';
import { shareOf } from './limits.ts';
import { opOf } from './ops.ts';
import {
  BLOCK_SIZE,
  COMMAND,
  COMMAND_FLAG,
  NBD_ERROR,
  REQUEST_BYTES,
  type Request,
  readRequest,
} from './protocol.ts';
import { ReadAnswers } from './read-answers.ts';
import { refusalOf } from './refusal.ts';
import { ReplyWriter } from './reply-writer.ts';

/** The most extents in one answer; a client asks again for the rest. */
const EXTENTS_MAX = 4096;
/** A write is refused, but its data still arrives; a client that announces more than this is disconnected. */
const SKIPPED_BYTES_MAX = 2 * BLOCK_SIZE.maximum;

/** The cost of a request besides the bytes of its answer, in bytes that could be copied in that time. */
const REQUEST_COST_BYTES = 4096;
/** How much of each connection that waits for a turn of the event loop is served before the next one. */
const QUANTUM_BYTES = 256 * 1024;

export class NbdConnection implements ChannelOwner {
  readonly #channel: NbdChannel;
  readonly #onClosed: () => void;
  readonly #session: Session;
  readonly #context: ConnectionContext;
  readonly #replies: ReplyWriter;
  readonly #reads: ReadAnswers;
  readonly #abort = new AbortController();
  /** The start of a request whose end has not arrived. */
  #partial: Buffer = Buffer.alloc(0);
  /** Bytes of a refused write's data that are still to be discarded. */
  #skipBytes = 0;
  /** Requests that wait for room; at most those of one read. */
  readonly #queue: Request[] = [];
  #running = 0;
  #runningBytes = 0;
  #isPaused = false;
  #isContinuePlanned = false;
  #waitsForTurn = false;
  #isEnding = false;
  #isClosed = false;
  /** While the connection ends: checks whether the client makes progress, which `#hasMoved` tells. */
  #linger: NodeJS.Timeout | undefined;
  #hasMoved = false;

  constructor(channel: NbdChannel, session: Session, context: ConnectionContext, onClosed: () => void) {
    this.#channel = channel;
    this.#onClosed = onClosed;
    this.#session = session;
    this.#context = context;
    this.#replies = new ReplyWriter(channel, session.structured, context.pool);
    this.#reads = new ReadAnswers(session, context, this.#replies, {
      signal: this.#abort.signal,
      isGone: () => this.#isGone,
      disconnect: () => {
        context.counters.errors++;
        channel.destroy();
      },
    });
  }

  get device(): BlockDevice {
    return this.#session.device;
  }

  /**
   * Processes what the client sent; `bytes` may be reused afterwards. Returns false to pause the channel until resumed.
   */
  received(bytes: Buffer): boolean {
    this.#replies.beginPass();
    let at = 0;
    while (at < bytes.length && !this.#isEnding && !this.#isGone) {
      if (this.#skipBytes > 0) {
        const skip = Math.min(this.#skipBytes, bytes.length - at);
        this.#skipBytes -= skip;
        at += skip;
      } else if (this.#partial.length > 0 || bytes.length - at < REQUEST_BYTES) {
        const take = Math.min(REQUEST_BYTES - this.#partial.length, bytes.length - at);
        this.#partial = Buffer.concat([this.#partial, bytes.subarray(at, at + take)]);
        at += take;
        if (this.#partial.length < REQUEST_BYTES) break;
        this.#accept(readRequest(this.#partial, 0));
        this.#partial = Buffer.alloc(0);
      } else {
        this.#accept(readRequest(bytes, at));
        at += REQUEST_BYTES;
      }
    }
    this.#replies.endPass();
    this.#endIfIdle();
    this.#isPaused = this.#isFull && !this.#isGone;
    return !this.#isPaused;
  }

  /** Accepts no more requests, answers those accepted, and closes. */
  end(): void {
    if (this.#isEnding) return;
    this.#isEnding = true;
    this.#endIfIdle();
    // A client that does not take the remaining answers, or does not close its side, is not waited for.
    this.#linger = setInterval(() => {
      const waitsForClient = this.#running === 0 || this.#replies.unsentBytes > 0;
      if (waitsForClient && !this.#hasMoved) this.#channel.destroy();
      this.#hasMoved = false;
    }, this.#context.limits.lingerTimeoutMs);
  }

  /** Sends no more answers. */
  destroy(): void {
    this.#channel.destroy();
  }

  ended(): void {
    this.end();
  }

  /** Called when the client is gone: cancels what is in flight. */
  closed(): void {
    this.#isClosed = true;
    clearInterval(this.#linger);
    this.#queue.length = 0;
    this.#abort.abort();
    this.#reads.close();
    this.#onClosed();
  }

  /**
   * No more answers are sent. A channel is destroyed well before it is closed; serving it until then would be useless.
   */
  get #isGone(): boolean {
    return this.#isClosed || this.#channel.isDestroyed;
  }

  get #isFull(): boolean {
    return this.#queue.length > 0 || this.#replies.unsentBytes > unsentBytesMax(this.#context);
  }

  /** Whether one more request may start now. */
  #hasRoomFor(request: Request): boolean {
    const { limits, turn } = this.#context;
    if (this.#isGone) return false;
    if (!turn.hasRoom(this.device)) {
      this.#waitForTurn();
      return false;
    }
    if (this.#replies.unsentBytes > unsentBytesMax(this.#context)) return false;
    if (this.#running === 0) return true;
    const bytesMax = shareOf(limits.requestedBytesMax, this.#context.connections(), limits);
    return this.#running < limits.requestsMax && this.#runningBytes + request.lengthBytes <= bytesMax;
  }

  /** Continues in a turn of the event loop that has room for more. */
  #waitForTurn(): void {
    if (this.#waitsForTurn) return;
    this.#waitsForTurn = true;
    this.#context.turn.wait(this.device, () => {
      this.#waitsForTurn = false;
      this.#continue();
    });
  }

  /** Called when the client has taken bytes. */
  sent(): void {
    this.#hasMoved = true;
    this.#reads.moved();
    const isAwaited = this.#reads.isWaiting || this.#queue.length > 0 || this.#isPaused;
    if (!isAwaited || this.#isContinuePlanned) return;
    // Not at once: this may be in the middle of a pass over the queue.
    this.#isContinuePlanned = true;
    setImmediate(() => {
      this.#isContinuePlanned = false;
      this.#reads.wake();
      this.#continue();
    });
  }

  /** Called when there may be room again. */
  #continue(): void {
    if (this.#isGone) return;
    this.#replies.beginPass();
    let served = 0;
    let servedBytes = 0;
    for (const request of this.#queue) {
      if (servedBytes >= QUANTUM_BYTES) this.#waitForTurn();
      if (servedBytes >= QUANTUM_BYTES || !this.#hasRoomFor(request)) break;
      this.#serve(request);
      served++;
      servedBytes += request.lengthBytes;
    }
    this.#queue.splice(0, served);
    this.#replies.endPass();
    this.#endIfIdle();
    if (this.#isPaused && !this.#isFull) {
      this.#isPaused = false;
      this.#channel.resume();
    }
  }

  #accept(request: Request | undefined): void {
    if (!request || (request.type === COMMAND.write && request.lengthBytes > SKIPPED_BYTES_MAX)) {
      // Out of step, or about to be: the rest cannot be parsed.
      this.#context.counters.errors++;
      this.#isClosed = true;
      this.#channel.destroy();
      return;
    }
    if (request.type === COMMAND.disconnect) {
      this.end();
      return;
    }
    if (request.type === COMMAND.write) this.#skipBytes = request.lengthBytes;
    if (this.#queue.length > 0 || !this.#hasRoomFor(request)) this.#queue.push(request);
    else this.#serve(request);
  }

  #serve(request: Request): void {
    const { type, flags, offset, lengthBytes } = request;
    this.#context.turn.use(this.device, REQUEST_COST_BYTES);
    this.#context.counters.ops[opOf(request)]++;
    const refusal = refusalOf(request, this.#session);
    if (refusal) {
      this.#fail(request, refusal.error, refusal.text);
    } else if (type === COMMAND.read) {
      const work = this.#reads.start(request);
      if (work) void this.#wait(request, work);
    } else if (type === COMMAND.blockStatus) {
      const extentsMax = (flags & COMMAND_FLAG.reqOne) !== 0 ? 1 : EXTENTS_MAX;
      this.#replies.blockStatus(request, this.device.extents(offset, lengthBytes, extentsMax));
    } else {
      // The other commands need no answer but success: a cache request is only a hint, and a flush has nothing to
      // write.
      if (type === COMMAND.cache) this.device.prefetch(offset, lengthBytes);
      this.#replies.done(request);
    }
  }

  #fail(request: Request, error: number, text: string): void {
    const { counters } = this.#context;
    counters.errors++;
    if (request.type === COMMAND.read) counters.readErrors++;
    this.#replies.error(request, error, text);
  }

  /** Counts a request as in flight until `work` settles; its error becomes the client's answer. */
  async #wait(request: Request, work: Promise<void>): Promise<void> {
    const { waiting } = this.#context.counters;
    const mark = { startedMs: performance.now() };
    waiting.add(mark);
    this.#running++;
    this.#runningBytes += request.lengthBytes;
    try {
      await work;
    } catch (error) {
      if (!this.#isGone) this.#fail(request, NBD_ERROR.EIO, errorText(error));
    }
    waiting.delete(mark);
    this.#running--;
    this.#runningBytes -= request.lengthBytes;
    if (this.#queue.length > 0 || this.#isPaused || this.#isEnding) this.#continue();
  }

  #endIfIdle(): void {
    if (!this.#isEnding || this.#isGone || this.#running > 0 || this.#queue.length > 0) return;
    this.#replies.flush();
    if (this.#channel.isEnding) return;
    this.#channel.end();
    this.#hasMoved = true;
  }
}
