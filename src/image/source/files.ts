/**
 * The files that an image's source consists of, by their relative names. A directory and an archive have the same
 * interface.
 */
import type { FileHandle } from 'node:fs/promises';
import { errorText, LazydiskError } from '../../errors.ts';

export interface SourceFiles {
  /** Where they are, for messages. */
  readonly description: string;
  /** Size of the file in bytes, or undefined if there is none of that name. */
  sizeOf(name: string): Promise<number | undefined>;
  /** Its bytes, each buffer valid until the next is requested. Throws NOT_FOUND, UNAVAILABLE if it cannot be read. */
  read(name: string): AsyncGenerator<Buffer>;
  close(): Promise<void>;
}

/** How much is read from a blob at once. */
const READ_BYTES = 512 * 1024;

/**
 * The bytes of a range of an open file; ends early where the file does. Two buffers alternate: one is filled while the
 * consumer has the other, until it requests the next.
 */
export async function* readRange(
  file: FileHandle,
  offset: number,
  lengthBytes: number,
): AsyncGenerator<Buffer> {
  let at = offset;
  const end = offset + lengthBytes;
  const read = async (buffer: Buffer) => {
    const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, end - at), at);
    at += bytesRead;
    return buffer.subarray(0, bytesRead);
  };
  const roomBytes = Math.min(READ_BYTES, lengthBytes);
  let free = Buffer.allocUnsafeSlow(roomBytes);
  let taken = Buffer.allocUnsafeSlow(roomBytes);
  let ahead = read(free);
  try {
    for (let bytes = await ahead; bytes.length > 0; bytes = await ahead) {
      [free, taken] = [taken, free];
      ahead = read(free);
      // It is awaited later, if at all.
      ahead.catch(() => undefined);
      yield bytes;
    }
  } finally {
    await ahead.catch(() => undefined);
  }
}

/** Returns a whole file of at most `maxBytes`, or undefined if there is none. Throws CORRUPT for a longer one. */
export async function readWhole(
  files: SourceFiles,
  name: string,
  maxBytes: number,
): Promise<Buffer | undefined> {
  const sizeBytes = await files.sizeOf(name);
  if (sizeBytes === undefined) return undefined;
  if (sizeBytes > maxBytes) {
    throw new LazydiskError(
      'CORRUPT',
      `${files.description}: ${name} is ${sizeBytes} bytes, at most ${maxBytes} expected`,
    );
  }
  const parts: Buffer[] = [];
  for await (const part of files.read(name)) parts.push(Buffer.from(part));
  return Buffer.concat(parts);
}

/** A blob that is a file. */
interface BlobFile {
  readonly name: string;
  readonly digest: string;
  /** The size that it is expected to have. */
  readonly sizeBytes: number;
}

/**
 * A blob's bytes, each buffer valid until the next is requested. Throws NOT_FOUND, CORRUPT for another size,
 * UNAVAILABLE.
 */
export async function* readBlob(files: SourceFiles, blob: BlobFile): AsyncGenerator<Buffer> {
  const found = await files.sizeOf(blob.name);
  if (found === undefined) {
    throw new LazydiskError('NOT_FOUND', `blob ${blob.digest} is missing in ${files.description}`);
  }
  if (found !== blob.sizeBytes) throw wrongSize(blob, found);
  yield* files.read(blob.name);
}

export function wrongSize(blob: { digest: string; sizeBytes: number }, found: number): LazydiskError {
  return new LazydiskError('CORRUPT', `blob ${blob.digest} is ${found} bytes, expected ${blob.sizeBytes}`);
}

/** Converts a system error of a source to NOT_FOUND or UNAVAILABLE. */
export function systemError(description: string, error: unknown): LazydiskError {
  if (error instanceof LazydiskError) return error;
  const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
  return new LazydiskError(missing ? 'NOT_FOUND' : 'UNAVAILABLE', `${description}: ${errorText(error)}`, {
    cause: error,
  });
}
