/**
 * The whole disk of an image, every chunk proven: into a file, which is sparse where the disk is zero and appears
 * only when it is complete, or as a stream of bytes. Chunks are fetched and decoded a few at a time, each lane
 * with one buffer that it uses again and again.
 */
import { randomBytes } from 'node:crypto';
import { type FileHandle, open, realpath, rename, stat, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { OPEN_OK, OPEN_WRONG_ID, openChunk } from '../../native/index.ts';
import { errorText, LazydiskError } from '../errors.ts';
import { CHUNK_BYTES, type ChunkRef } from '../format/chunk-id.ts';
import type { Image } from '../store/image.ts';
import type { Store } from '../store/store.ts';

/** Chunks in flight. */
const LANES = 12;

export interface ExportProgress {
  /** Bytes of the disk done, and of the whole. */
  readonly doneBytes: number;
  readonly diskBytes: number;
}

export interface ExportOptions {
  readonly image: Image;
  readonly store: Store;
  /** A file to make or replace, a device or FIFO to write to, or `-` for standard output. */
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
 * Writes the disk to `out`. Rejects with NOT_FOUND or CORRUPT naming the chunk, NO_SPACE, UNAVAILABLE, ABORTED;
 * then a file that was to be made or replaced is as it was.
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
  // A link to a file is followed: it is the file that is replaced.
  const target = found ? await realpath(options.out) : options.out;
  const temporary = join(dirname(target), `.${basename(target)}.${randomBytes(6).toString('hex')}.tmp`);
  const file = await open(temporary, 'wx', 0o666);
  try {
    await writeSparse(options, chunks, file);
    // All that is left may have been under way when it was cancelled.
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
  let next = 0;
  let done = 0;
  let failed = false;
  const lane = async (): Promise<void> => {
    const buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
    while (next < manifest.storedChunks && !failed) {
      const entry = next++;
      await chunks.open(entry, buffer);
      const index = manifest.indexOf(entry);
      await writeAll(file, buffer, index * CHUNK_BYTES);
      done++;
      options.onProgress?.({
        doneBytes: Math.floor((done / manifest.storedChunks) * manifest.diskBytes),
        diskBytes: manifest.diskBytes,
      });
    }
  };
  const lanes = Array.from({ length: LANES }, () =>
    lane().catch((error) => {
      failed = true;
      throw error;
    }),
  );
  // The file must not be closed under a lane that still writes, so all end before the first failure counts.
  for (const result of await Promise.allSettled(lanes)) {
    if (result.status === 'rejected') throw result.reason;
  }
}

/** Every chunk through `write`, zeroes too, in the order of the disk; some are fetched ahead. */
async function writeInOrder(
  { image: { manifest }, onProgress }: ExportOptions,
  chunks: ChunkSource,
  write: (bytes: Buffer) => Promise<void>,
): Promise<void> {
  const zeroes = Buffer.alloc(CHUNK_BYTES);
  const buffers = Array.from({ length: LANES }, () => Buffer.allocUnsafeSlow(CHUNK_BYTES));
  const ahead: Promise<Buffer>[] = [];
  let entry = 0;
  const fetchNext = (): void => {
    if (entry === manifest.storedChunks) return;
    const opened = chunks.open(entry, buffers[entry % LANES]!);
    opened.catch(() => undefined); // It is awaited when its turn comes.
    ahead.push(opened);
    entry++;
  };
  for (let lane = 0; lane < LANES; lane++) fetchNext();
  try {
    for (let index = 0; index < manifest.chunkCount; index++) {
      if (manifest.entryOf(index) === -1) {
        chunks.checkSignal();
        await write(zeroes);
      } else {
        await write(await ahead.shift()!);
        fetchNext();
      }
      onProgress?.({ doneBytes: (index + 1) * CHUNK_BYTES, diskBytes: manifest.diskBytes });
    }
  } finally {
    await Promise.allSettled(ahead);
  }
}

/** Gets and opens the image's chunks, with failures that name them. */
class ChunkSource {
  readonly #image: Image;
  readonly #store: Store;
  readonly #signal: AbortSignal | undefined;

  constructor({ image, store, signal }: ExportOptions) {
    this.#image = image;
    this.#store = store;
    this.#signal = signal;
  }

  checkSignal(): void {
    if (this.#signal?.aborted)
      throw new LazydiskError('ABORTED', 'the export was cancelled', { cause: this.#signal.reason });
  }

  /** The chunk of `entry` into `target`, CHUNK_BYTES long. */
  async open(entry: number, target: Buffer): Promise<Buffer> {
    this.checkSignal();
    const ref = this.#image.manifest.ref(entry);
    const sealed = await this.#store.getChunk(ref.id, this.#signal && { signal: this.#signal });
    const where = `chunk ${this.#image.manifest.indexOf(entry)} (${ref.id}) of ${this.#image.name}`;
    if (!sealed) throw new LazydiskError('NOT_FOUND', `${where} is not in ${this.#store.url}`);
    const status = await openInto(sealed, ref, target);
    if (status !== OPEN_OK) {
      const why = status === OPEN_WRONG_ID ? 'has wrong bytes' : 'does not open';
      throw new LazydiskError('CORRUPT', `${where} ${why} in ${this.#store.url}`);
    }
    return target;
  }
}

function openInto(sealed: Buffer, ref: ChunkRef, target: Buffer): Promise<number> {
  return new Promise((resolve) => {
    openChunk(sealed, Buffer.from(ref.id, 'hex'), ref.key, target, resolve);
  });
}

/** At `position`, or where the file stands. */
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
  // A reader that goes away shows as a failed write below; the event of the same failure must not be unheard.
  const ignore = (): void => undefined;
  process.stdout.on('error', ignore);
  const write = (bytes: Buffer): Promise<void> =>
    new Promise((resolve, reject) => {
      process.stdout.write(bytes, (error) => (error ? reject(error) : resolve()));
    });
  await writeInOrder(options, chunks, write).finally(() => process.stdout.off('error', ignore));
}
