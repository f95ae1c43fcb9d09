/**
 * Writes the whole disk of an image, with every chunk verified, to a file, which is sparse where the disk is zero and
 * appears only when it is complete, or as a stream of bytes. The number of concurrent fetches grows as long as
 * throughput does, and a few chunks are decoded at once; the buffers of both are reused.
 */
import { randomBytes } from 'node:crypto';
import { type FileHandle, open, realpath, rename, stat, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { OPEN_OK, OPEN_WRONG_ID, openChunk } from '../../native/index.ts';
import { Lanes } from '../async/lanes.ts';
import { pooled } from '../async/pooled.ts';
import { Slots } from '../async/slots.ts';
import { errorText, LazydiskError } from '../errors.ts';
import { CHUNK_BYTES, type ChunkRef, SEALED_BYTES_MAX } from '../format/chunk-id.ts';
import type { Image } from '../store/image.ts';
import type { Store } from '../store/store.ts';

/** Chunks that are decoded and written concurrently: enough for the thread pool's four threads. */
const OPENING_MAX = 8;

export interface ExportProgress {
  /** Bytes of the disk written so far, and its size. */
  readonly doneBytes: number;
  readonly diskBytes: number;
}

export interface ExportOptions {
  readonly image: Image;
  readonly store: Store;
  /** A file to create or replace, a device or FIFO to write to, or `-` for standard output. */
  readonly out: string;
  onProgress?(progress: ExportProgress): void;
  readonly signal?: AbortSignal;
}

export interface ExportReport {
  readonly diskBytes: number;
  /** Bytes of the disk in chunks that are not all zero. */
  readonly dataBytes: number;
  readonly durationMs: number;
}

/**
 * Writes the disk to `out`. Rejects with NOT_FOUND or CORRUPT naming the chunk, NO_SPACE, UNAVAILABLE, ABORTED; a file
 * that was to be created or replaced is then unchanged.
 */
export async function exportImage(options: ExportOptions): Promise<ExportReport> {
  const startMs = performance.now();
  const { diskBytes, storedChunks } = options.image.manifest;
  const chunks = new ChunkSource(options);
  try {
    if (options.out === '-') await writeStdout(options, chunks);
    else await writePath(options, chunks);
  } catch (cause) {
    if (cause instanceof LazydiskError) throw cause;
    const { code } = cause as NodeJS.ErrnoException;
    const full = code === 'ENOSPC' || code === 'EDQUOT' || code === 'EFBIG';
    const text = `cannot write ${options.out === '-' ? 'standard output' : options.out}: ${errorText(cause)}`;
    throw new LazydiskError(full ? 'NO_SPACE' : 'UNAVAILABLE', text, { cause });
  }
  return { diskBytes, dataBytes: storedChunks * CHUNK_BYTES, durationMs: performance.now() - startMs };
}

async function writePath(options: ExportOptions, chunks: ChunkSource): Promise<void> {
  const found = await stat(options.out).catch(() => undefined);
  if (found?.isDirectory()) throw new LazydiskError('USAGE', `${options.out} is a directory`);
  if (found && !found.isFile()) {
    const device = await open(options.out, 'r+');
    try {
      await writeInOrder(options, chunks, (bytes) => writeAll(device, bytes, null));
    } finally {
      await device.close();
    }
    return;
  }
  // A symlink to a file is followed, and its target is replaced.
  const target = found ? await realpath(options.out) : options.out;
  const temporary = join(dirname(target), `.${basename(target)}.${randomBytes(6).toString('hex')}.tmp`);
  const file = await open(temporary, 'wx', 0o666);
  try {
    await writeSparse(options, chunks, file);
    // The last chunks may already have been in flight when the export was cancelled.
    chunks.checkSignal();
    await file.sync();
    await file.close();
    await rename(temporary, target);
  } catch (error) {
    await file.close().catch(() => undefined);
    await unlink(temporary).catch(() => undefined);
    throw error;
  }
}

async function writeSparse(options: ExportOptions, chunks: ChunkSource, file: FileHandle): Promise<void> {
  const { manifest } = options.image;
  await file.truncate(manifest.diskBytes);
  let done = 0;
  const entries = Array.from({ length: manifest.storedChunks }, (_, entry) => entry);
  const opening = new Slots(OPENING_MAX);
  const spare: Buffer[] = [];
  await pooled(chunks.lanes, entries, async (entry) => {
    const fetched = await chunks.fetch(entry);
    await opening.take();
    try {
      const buffer = spare.pop() ?? Buffer.allocUnsafeSlow(CHUNK_BYTES);
      await chunks.open(fetched, buffer);
      await writeAll(file, buffer, manifest.indexOf(entry) * CHUNK_BYTES);
      spare.push(buffer);
    } finally {
      opening.give();
    }
    done++;
    options.onProgress?.({
      doneBytes: Math.floor((done / manifest.storedChunks) * manifest.diskBytes),
      diskBytes: manifest.diskBytes,
    });
  });
}

/** Passes every chunk to `write`, zeroes too, in the order of the disk; some are fetched ahead. */
async function writeInOrder(
  { image: { manifest }, onProgress }: ExportOptions,
  chunks: ChunkSource,
  write: (bytes: Buffer) => Promise<void>,
): Promise<void> {
  const zeroes = Buffer.alloc(CHUNK_BYTES);
  const buffers = Array.from({ length: OPENING_MAX }, () => Buffer.allocUnsafeSlow(CHUNK_BYTES));
  const fetching: Promise<Fetched>[] = [];
  const opening: Promise<Buffer>[] = [];
  let fetched = 0;
  let opened = 0;
  const goAhead = (): void => {
    for (; opening.length < OPENING_MAX && opened < manifest.storedChunks; opened++) {
      if (fetching.length === 0) fetching.push(chunks.fetch(fetched++));
      const buffer = buffers[opened % OPENING_MAX]!;
      opening.push(fetching.shift()!.then((one) => chunks.open(one, buffer)));
      opening.at(-1)!.catch(() => undefined); // It is awaited when its turn comes.
    }
    const ahead = Math.min(manifest.storedChunks, opened + chunks.lanes.limit);
    for (; fetched < ahead; fetched++) {
      fetching.push(chunks.fetch(fetched));
      fetching.at(-1)!.catch(() => undefined);
    }
  };
  goAhead();
  try {
    for (let index = 0; index < manifest.chunkCount; index++) {
      if (manifest.entryOf(index) === -1) {
        chunks.checkSignal();
        await write(zeroes);
      } else {
        await write(await opening.shift()!);
        goAhead();
      }
      onProgress?.({ doneBytes: (index + 1) * CHUNK_BYTES, diskBytes: manifest.diskBytes });
    }
  } finally {
    await Promise.allSettled([...fetching, ...opening]);
  }
}

/** Sealed bytes of one entry, as fetched. */
interface Fetched {
  readonly entry: number;
  readonly ref: ChunkRef;
  readonly sealed: Buffer;
  /** The buffer that `sealed` may be a view of. */
  readonly room: Buffer;
}

/** Fetches and opens the image's chunks, with errors that name them. */
class ChunkSource {
  readonly #image: Image;
  readonly #store: Store;
  readonly #signal: AbortSignal | undefined;
  /** The limit on concurrent fetches. */
  readonly lanes = new Lanes();
  readonly #spare: Buffer[] = [];

  constructor({ image, store, signal }: ExportOptions) {
    this.#image = image;
    this.#store = store;
    this.#signal = signal;
  }

  checkSignal(): void {
    if (this.#signal?.aborted)
      throw new LazydiskError('ABORTED', 'the export was cancelled', { cause: this.#signal.reason });
  }

  async fetch(entry: number): Promise<Fetched> {
    this.checkSignal();
    const ref = this.#image.manifest.ref(entry);
    const room = this.#spare.pop() ?? Buffer.allocUnsafeSlow(SEALED_BYTES_MAX);
    const options = { into: room, ...(this.#signal && { signal: this.#signal }) };
    const sealed = await this.#store.getChunk(ref.id, options);
    if (!sealed)
      throw new LazydiskError('NOT_FOUND', `${this.#where(entry, ref)} is not in ${this.#store.url}`);
    this.lanes.ended(sealed.length);
    return { entry, ref, sealed, room };
  }

  /** Decodes what was fetched into `target`, CHUNK_BYTES long; the buffer of the sealed bytes is reused. */
  async open({ entry, ref, sealed, room }: Fetched, target: Buffer): Promise<Buffer> {
    const status = await openInto(sealed, ref, target);
    this.#spare.push(room);
    if (status === OPEN_OK) return target;
    const why = status === OPEN_WRONG_ID ? 'has wrong bytes' : 'does not decrypt';
    throw new LazydiskError('CORRUPT', `${this.#where(entry, ref)} ${why} in ${this.#store.url}`);
  }

  #where(entry: number, { id }: ChunkRef): string {
    return `chunk ${this.#image.manifest.indexOf(entry)} (${id}) of ${this.#image.name}`;
  }
}

function openInto(sealed: Buffer, ref: ChunkRef, target: Buffer): Promise<number> {
  return new Promise((resolve) => {
    openChunk(sealed, Buffer.from(ref.id, 'hex'), ref.key, target, resolve);
  });
}

/** Writes at `position`, or at the file's current position if it is null. */
async function writeAll(file: FileHandle, bytes: Buffer, position: number | null): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    const { bytesWritten } = await file.write(
      bytes,
      at,
      bytes.length - at,
      position === null ? null : position + at,
    );
    at += bytesWritten;
  }
}

async function writeStdout(options: ExportOptions, chunks: ChunkSource): Promise<void> {
  // If the reader goes away, a write below fails; without a listener, the error event would also crash the process.
  const ignore = (): void => undefined;
  process.stdout.on('error', ignore);
  const write = (bytes: Buffer): Promise<void> =>
    new Promise((resolve, reject) => {
      process.stdout.write(bytes, (error) => (error ? reject(error) : resolve()));
    });
  await writeInOrder(options, chunks, write).finally(() => process.stdout.off('error', ignore));
}
