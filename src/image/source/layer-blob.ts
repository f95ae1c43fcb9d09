/**
 * A layer's blob as a stream of plain tar, proven as it flows: size and digest of the blob, digest of what it
 * unpacks to. zlib works on the thread pool while the two hashes and the reader run here, so its buffers are big
 * and a few of them may be ahead.
 */
import { createHash, type Hash } from 'node:crypto';
import { PassThrough, Readable, type Transform } from 'node:stream';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { errorText, LazydiskError } from '../../errors.ts';
import type { SourceFiles } from './files.ts';
import type { Compression } from './media-types.ts';

const INFLATED_BUFFER_BYTES = 256 * 1024;
const READ_AHEAD_BYTES = 1024 * 1024;

export interface BlobDescription {
  /** The blob's file among the source's. */
  readonly name: string;
  /** For messages. */
  readonly digest: string;
  readonly sizeBytes: number;
  readonly compression: Compression;
  /** Digest of the blob's bytes; undefined where the source states none. */
  readonly blobDigest: string | undefined;
  readonly diffId: string;
}

/** The blob's tar. The stream fails with CORRUPT naming the blob, with UNAVAILABLE, or the signal's reason. */
export function openBlob(
  files: SourceFiles,
  blob: BlobDescription,
  signal?: AbortSignal,
  onInput?: (lengthBytes: number) => void,
): Readable {
  return Readable.from(inflated(files, blob, signal, onInput), {
    objectMode: true,
    highWaterMark: 1,
  });
}

async function* inflated(
  files: SourceFiles,
  blob: BlobDescription,
  signal?: AbortSignal,
  onInput?: (lengthBytes: number) => void,
): AsyncGenerator<Buffer> {
  const raw = checkedBlob(files, blob, signal, onInput);
  // A plain tar's two digests are of the same bytes, so one pass proves both.
  if (blob.compression === 'none' && (blob.blobDigest ?? blob.diffId) === blob.diffId) {
    yield* raw;
    return;
  }
  const inflate = inflater(blob.compression);
  const feeding = feed(raw, inflate);
  // A failure comes out below; this keeps it from being unhandled when the reader stops early.
  feeding.catch(() => {});
  const hash = hashOf(blob.diffId);
  try {
    for await (const part of inflate) {
      // Here too: a bomb inflates for long after its last byte was read.
      signal?.throwIfAborted();
      hash.update(part as Buffer);
      yield part as Buffer;
    }
    await feeding;
  } catch (error) {
    if (error instanceof LazydiskError || signal?.aborted) throw error;
    throw new LazydiskError('CORRUPT', `blob ${blob.digest}: ${errorText(error)}`, { cause: error });
  } finally {
    inflate.destroy();
  }
  checkDigest(hash, blob.diffId, `blob ${blob.digest}: what it unpacks to`);
}

/**
 * Writes the blob into `inflate`, and reads on where that has seen the end of its data: behind it lies padding, which
 * unpacks to nothing and still counts for the digest.
 */
async function feed(raw: AsyncGenerator<Buffer>, inflate: Transform): Promise<void> {
  try {
    for await (const bytes of raw) {
      if (inflate.readableEnded) continue;
      if (inflate.destroyed) return;
      if (!inflate.write(bytes)) await roomIn(inflate);
    }
    if (!inflate.destroyed) inflate.end();
  } catch (error) {
    inflate.destroy(error as Error);
    throw error;
  }
}

/** Resolves when the stream takes more, or never will. */
function roomIn(stream: Transform): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      for (const event of ['drain', 'end', 'close']) stream.off(event, done);
      resolve();
    };
    for (const event of ['drain', 'end', 'close']) stream.on(event, done);
  });
}

/** The blob's own bytes, counted and hashed. */
async function* checkedBlob(
  files: SourceFiles,
  blob: BlobDescription,
  signal?: AbortSignal,
  onInput?: (lengthBytes: number) => void,
): AsyncGenerator<Buffer> {
  const expected = blob.blobDigest ?? (blob.compression === 'none' ? blob.diffId : undefined);
  const hash = expected === undefined ? undefined : hashOf(expected);
  let sizeBytes = 0;
  const found = await files.sizeOf(blob.name);
  if (found === undefined) {
    throw new LazydiskError('NOT_FOUND', `blob ${blob.digest} is missing in ${files.description}`);
  }
  if (found !== blob.sizeBytes) throw wrongSize(blob, found);
  for await (const bytes of files.read(blob.name)) {
    signal?.throwIfAborted();
    sizeBytes += bytes.length;
    if (sizeBytes > blob.sizeBytes) break;
    hash?.update(bytes);
    onInput?.(bytes.length);
    yield bytes;
  }
  // It may have changed while it was read.
  if (sizeBytes !== blob.sizeBytes) throw wrongSize(blob, sizeBytes);
  if (hash) checkDigest(hash, expected!, `blob ${blob.digest}`);
}

function inflater(compression: Compression): Transform {
  if (compression === 'none')
    return new PassThrough({ readableObjectMode: true, writableHighWaterMark: READ_AHEAD_BYTES });
  // In object mode a reader gets the buffers one by one; else it gets a copy of all that lie ready, joined.
  const options = {
    chunkSize: INFLATED_BUFFER_BYTES,
    writableHighWaterMark: READ_AHEAD_BYTES,
    readableObjectMode: true,
    readableHighWaterMark: READ_AHEAD_BYTES / INFLATED_BUFFER_BYTES,
  };
  return compression === 'gzip' ? createGunzip(options) : createZstdDecompress(options);
}

/** `sha256:…` or `sha512:…`; the pattern also keeps a digest from being any other file's name. */
const DIGEST = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/;

/** Throws CORRUPT for what is no digest. */
export function checkedDigestName(digest: string, what: string): string {
  if (DIGEST.test(digest)) return digest;
  throw new LazydiskError(
    'CORRUPT',
    `${what}: ${JSON.stringify(digest.slice(0, 200))} is no sha256 or sha512 digest`,
  );
}

export function hashOf(digest: string): Hash {
  return createHash(digest.slice(0, 6));
}

/** Throws CORRUPT. */
export function checkDigest(hash: Hash, expected: string, what: string): void {
  const found = `${expected.slice(0, 6)}:${hash.digest('hex')}`;
  if (found !== expected) {
    throw new LazydiskError('CORRUPT', `${what} has digest ${found}, expected ${expected}`);
  }
}

function wrongSize(blob: BlobDescription, found: number): LazydiskError {
  return new LazydiskError('CORRUPT', `blob ${blob.digest} is ${found} bytes, expected ${blob.sizeBytes}`);
}
