/**
 * Where the log goes: a stream that never throws, never blocks and never buffers more than a bound, because a log that
 * cannot be written must cost lines, not drives. A full disk, a terminal that is gone and a pipe that nobody reads are
 * handled alike: lines are dropped and counted, and the next line that can be written reports how many.
 *
 * Each kind of descriptor is kept from blocking in its own way. For a socket (systemd's journal), each send takes a
 * flag. A pipe or a terminal is reopened, so that O_NONBLOCK does not affect the processes that share it. A file, for
 * which there is no such flag, is written on the thread pool, one write at a time.
 */
import { constants, fstatSync, openSync, write, writeSync } from 'node:fs';
import { constants as osConstants } from 'node:os';
import { promisify } from 'node:util';
import { socketSend } from '../../native/index.ts';

/** Bytes of log that may wait; lines beyond that are dropped. */
const PENDING_BYTES_MAX = 1024 * 1024;
/** Approximate number of characters per write. */
const BATCH_LENGTH_MAX = 16 * 1024;
/** How long to wait before a full pipe is tried again. */
const RETRY_MS = 100;
const LINE_FEED = 0x0a;

const writeOnPool = promisify(write);

/** Writes some of `bytes` and returns how many, now or later. Throws EAGAIN if it would have to wait. */
export type Sink = (bytes: Buffer) => number | Promise<number>;

interface Batch {
  readonly bytes: Buffer;
  /** Whether it holds log lines, rather than our own report of lost lines. */
  readonly isLogged: boolean;
  /** The number of lost lines that it reports. */
  readonly reports: number;
  written: number;
}

export class LogStream {
  readonly #sink: Sink;
  readonly #lines: string[] = [];
  #pendingBytes = 0;
  #batch: Batch | undefined;
  #retry: NodeJS.Timeout | undefined;
  #isWriting = false;
  /** The last write ended in the middle of a line. */
  #isTorn = false;
  #dropped = 0;
  #unreported = 0;
  #flushed: (() => void)[] = [];

  constructor(sink: Sink = sinkOf(2)) {
    this.#sink = sink;
  }

  /** Lines lost so far. */
  get droppedLines(): number {
    return this.#dropped;
  }

  /** Accepts one line, including its line feed. */
  write(line: string): void {
    const lengthBytes = Buffer.byteLength(line);
    if (this.#pendingBytes + lengthBytes > PENDING_BYTES_MAX) {
      this.#drop(1);
      return;
    }
    this.#lines.push(line);
    this.#pendingBytes += lengthBytes;
    if (!this.#isWriting && !this.#retry) this.#pump();
  }

  /** Calls back when nothing is pending any more: everything has been written or dropped. */
  flush(callback: () => void): void {
    if (this.#isIdle) callback();
    else this.#flushed.push(callback);
  }

  get #isIdle(): boolean {
    return !this.#batch && this.#lines.length === 0;
  }

  #pump(): void {
    while (!this.#isIdle) {
      this.#batch ??= this.#nextBatch();
      const batch = this.#batch;
      try {
        const taken = this.#sink(batch.bytes.subarray(batch.written));
        if (typeof taken !== 'number') {
          this.#isWriting = true;
          taken.then(
            (lengthBytes) => this.#resume(() => this.#took(batch, lengthBytes)),
            (error: unknown) => this.#resume(() => this.#failed(batch, error)),
          );
          return;
        }
        this.#took(batch, taken);
      } catch (error) {
        this.#failed(batch, error);
        if (this.#retry) return;
      }
    }
    for (const callback of this.#flushed.splice(0)) callback();
  }

  #resume(settle: () => void): void {
    this.#isWriting = false;
    settle();
    if (!this.#retry) this.#pump();
  }

  #nextBatch(): Batch {
    if (this.#isTorn) return { bytes: Buffer.from('\n'), isLogged: false, reports: 0, written: 0 };
    if (this.#unreported > 0) {
      const reports = this.#unreported;
      this.#unreported = 0;
      const time = new Date().toISOString();
      const line = {
        level: 'warn',
        time,
        pid: process.pid,
        lost: reports,
        msg: 'lines of this log were lost',
      };
      return { bytes: Buffer.from(`${JSON.stringify(line)}\n`), isLogged: false, reports, written: 0 };
    }
    let count = 1;
    for (
      let length = this.#lines[0]!.length;
      count < this.#lines.length && length < BATCH_LENGTH_MAX;
      count++
    )
      length += this.#lines[count]!.length;
    const bytes = Buffer.from(this.#lines.splice(0, count).join(''));
    this.#pendingBytes -= bytes.length;
    return { bytes, isLogged: true, reports: 0, written: 0 };
  }

  #took(batch: Batch, lengthBytes: number): void {
    batch.written += lengthBytes;
    if (lengthBytes > 0) this.#isTorn = batch.bytes[batch.written - 1] !== LINE_FEED;
    if (batch.written === batch.bytes.length) this.#batch = undefined;
  }

  #failed(batch: Batch, error: unknown): void {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EAGAIN' || code === 'EINTR') {
      this.#retry = setTimeout(() => {
        this.#retry = undefined;
        this.#pump();
      }, RETRY_MS).unref();
      return;
    }
    this.#batch = undefined;
    this.#unreported += batch.reports;
    if (batch.isLogged)
      this.#drop(batch.bytes.subarray(batch.written).filter((byte) => byte === LINE_FEED).length);
    // The lines waiting behind it would fail in the same way.
    this.#drop(this.#lines.length);
    this.#lines.length = 0;
    this.#pendingBytes = 0;
  }

  #drop(lines: number): void {
    this.#dropped += lines;
    this.#unreported += lines;
  }
}

/** Returns a way to write to `fd` without blocking, depending on what `fd` is. */
export function sinkOf(fd: number): Sink {
  const found = fstatSync(fd);
  if (found.isSocket()) {
    return (bytes) => {
      const taken = socketSend(fd, bytes, bytes.length);
      if (taken >= 0) return taken;
      throw Object.assign(new Error('send'), {
        code: taken === -osConstants.errno.EAGAIN ? 'EAGAIN' : 'EIO',
      });
    };
  }
  if (found.isFIFO() || found.isCharacterDevice()) {
    const flags = constants.O_WRONLY | constants.O_APPEND | constants.O_NONBLOCK | constants.O_NOCTTY;
    try {
      const own = openSync(`/proc/self/fd/${fd}`, flags);
      return (bytes) => writeSync(own, bytes);
    } catch {
      // A pipe of another user, inherited before the daemon changed its user: fall back to the pool, as for a file.
    }
  }
  return async (bytes) => (await writeOnPool(fd, bytes)).bytesWritten;
}
