/**
 * Where the log goes: a stream that never throws, never blocks and never holds more than a bound, because a log that
 * nobody can write must cost lines and not drives. A full disk, a terminal that is gone and a pipe that nobody reads
 * all end the same way: the lines are dropped and counted, and the next line that can be written says how many.
 *
 * Its trick is how each kind of descriptor is kept from blocking. A socket (systemd's journal) has a flag for each
 * send. A pipe or a terminal is opened again, so that O_NONBLOCK is ours alone and not that of whoever shares it.
 * A file, where no such flag helps, is written on the thread pool, one write at a time.
 */
import { constants, fstatSync, openSync, write, writeSync } from 'node:fs';
import { constants as osConstants } from 'node:os';
import { promisify } from 'node:util';
import { socketSend } from '../../native/index.ts';

/** Bytes of log that may wait; what comes on top is dropped. */
const PENDING_BYTES_MAX = 1024 * 1024;
/** Characters in one write, about. */
const BATCH_LENGTH_MAX = 16 * 1024;
/** When a pipe that is full is tried again. */
const RETRY_MS = 100;
const LINE_FEED = 0x0a;

const writeOnPool = promisify(write);

/** Takes some of `bytes` and says how many, now or later. Throws EAGAIN where it would have to wait. */
export type Sink = (bytes: Buffer) => number | Promise<number>;

interface Batch {
  readonly bytes: Buffer;
  /** Whether it is what somebody logged, and not our own word about lines that were lost. */
  readonly isLogged: boolean;
  /** Lost lines that it reports. */
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
  /** What was written last ended in the middle of a line. */
  #isTorn = false;
  #dropped = 0;
  #unreported = 0;
  #flushed: (() => void)[] = [];

  constructor(sink: Sink = sinkOf(2)) {
    this.#sink = sink;
  }

  /** Lines that were lost so far. */
  get droppedLines(): number {
    return this.#dropped;
  }

  /** Takes one line with its line feed. */
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

  /** Calls back when nothing waits any more: written, or dropped. */
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
    // What waits behind it would only fail the same way.
    this.#drop(this.#lines.length);
    this.#lines.length = 0;
    this.#pendingBytes = 0;
  }

  #drop(lines: number): void {
    this.#dropped += lines;
    this.#unreported += lines;
  }
}

/** The way to write to `fd` that blocks nobody, for what `fd` is. */
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
      // Another user's pipe, from before the daemon became who it is: then the pool, as for a file.
    }
  }
  return async (bytes) => (await writeOnPool(fd, bytes)).bytesWritten;
}
