/**
 * A layer's blob as a stream of plain tar, verified as it streams: size and digest of the blob, and digest of the
 * unpacked tar. The thread pool decodes and hashes; two buffers alternate, so that one is filled while the other is
 * read.
 */
import { createHash, type Hash } from 'node:crypto';
import {
  DECODE_CORRUPT,
  DECODED,
  DECODER_COMPRESSIONS,
  decoderEnd,
  decoderOpen,
  decoderRun,
} from '../../../native/index.ts';
import { LazydiskError } from '../../errors.ts';
import { wrongSize } from './files.ts';
import type { Compression } from './media-types.ts';

const DECODED_BUFFER_BYTES = 256 * 1024;

export interface BlobDescription {
  /** For messages. */
  readonly digest: string;
  readonly sizeBytes: number;
  readonly compression: Compression;
  /** Digest of the blob's bytes; undefined where the source states none. */
  readonly blobDigest: string | undefined;
  readonly diffId: string;
}

/**
 * The tar in the blob whose bytes `input` yields, each buffer valid until the next is requested. Throws CORRUPT naming
 * the blob, the signal's reason, or what `input` throws.
 */
export async function* openBlob(
  input: AsyncIterable<Buffer>,
  blob: BlobDescription,
  signal?: AbortSignal,
  onInput?: (lengthBytes: number) => void,
): AsyncGenerator<Buffer> {
  const decoder = new BlobDecoder(blob);
  let sizeBytes = 0;
  // The result of the last job; it is yielded while the next job runs.
  let ready: Buffer | undefined;
  for await (const bytes of input) {
    sizeBytes += bytes.length;
    if (sizeBytes > blob.sizeBytes) break;
    onInput?.(bytes.length);
    for (let used = 0, more = true; more; ) {
      signal?.throwIfAborted();
      const job = decoder.run(bytes.subarray(used));
      // It is awaited later, if at all.
      job.catch(() => undefined);
      if (blob.compression === 'none') ready = bytes;
      if (ready) yield ready;
      const moved = await job;
      used += moved.usedBytes;
      ready = moved.tar;
      more = used < bytes.length || moved.isFull;
    }
  }
  if (ready) yield ready;
  // It may have changed while it was read.
  if (sizeBytes !== blob.sizeBytes) throw wrongSize(blob, sizeBytes);
  decoder.end();
}

interface Moved {
  readonly usedBytes: number;
  /** Undefined if there was no output, as always without compression; valid until two more jobs have begun. */
  readonly tar: Buffer | undefined;
  /** There may be more output without more input. */
  readonly isFull: boolean;
}

class BlobDecoder {
  readonly #blob: BlobDescription;
  /** The two digests of an uncompressed tar are of the same bytes: if they are equal, one pass verifies both. */
  readonly #blobDigest: string | undefined;
  readonly #native;
  readonly #counts = Buffer.alloc(8);
  #output = Buffer.allocUnsafeSlow(DECODED_BUFFER_BYTES);
  #lastOutput = Buffer.allocUnsafeSlow(DECODED_BUFFER_BYTES);

  constructor(blob: BlobDescription) {
    this.#blob = blob;
    const { compression, blobDigest, diffId } = blob;
    this.#blobDigest = compression === 'none' && blobDigest === diffId ? undefined : blobDigest;
    const hash = (digest: string | undefined) => digest?.slice(0, 6) ?? '';
    this.#native = decoderOpen(DECODER_COMPRESSIONS[compression], hash(this.#blobDigest), hash(diffId));
  }

  /** Decodes as much of `input` as there is room for. Throws CORRUPT. */
  async run(input: Buffer): Promise<Moved> {
    [this.#output, this.#lastOutput] = [this.#lastOutput, this.#output];
    const output = this.#output;
    const status = await new Promise<number>((resolve) =>
      decoderRun(this.#native, input, output, this.#counts, resolve),
    );
    const { digest, compression } = this.#blob;
    if (status === DECODE_CORRUPT)
      throw new LazydiskError('CORRUPT', `blob ${digest} is not valid ${compression}`);
    if (status !== DECODED) throw new LazydiskError('INTERNAL', `blob ${digest}: out of memory`);
    const usedBytes = this.#counts.readUInt32LE(0);
    const lengthBytes = this.#counts.readUInt32LE(4);
    const tar = lengthBytes > 0 ? output.subarray(0, lengthBytes) : undefined;
    return { usedBytes, tar, isFull: lengthBytes === output.length };
  }

  /** Throws CORRUPT unless the whole blob matches its digests. */
  end(): void {
    const { digest, compression, diffId } = this.#blob;
    const [isComplete, blobHex, tarHex] = decoderEnd(this.#native);
    const found = (expected: string, hex: string) => `${expected.slice(0, 7)}${hex}`;
    if (this.#blobDigest) expectDigest(found(this.#blobDigest, blobHex), this.#blobDigest, `blob ${digest}`);
    if (!isComplete) throw new LazydiskError('CORRUPT', `blob ${digest} ends within its ${compression} data`);
    const isPlain = compression === 'none' && !this.#blobDigest;
    const what = isPlain ? `blob ${digest}` : `blob ${digest}: its unpacked content`;
    expectDigest(found(diffId, tarHex), diffId, what);
  }
}

/** `sha256:…` or `sha512:…`; the pattern also ensures that a digest cannot name any other file. */
export const DIGEST = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/;

/** Throws CORRUPT for an invalid digest. */
export function checkedDigestName(digest: string, what: string): string {
  if (DIGEST.test(digest)) return digest;
  throw new LazydiskError(
    'CORRUPT',
    `${what}: ${JSON.stringify(digest.slice(0, 200))} is not a sha256 or sha512 digest`,
  );
}

export function hashOf(digest: string): Hash {
  return createHash(digest.slice(0, 6));
}

/** Throws CORRUPT. */
export function checkDigest(hash: Hash, expected: string, what: string): void {
  expectDigest(`${expected.slice(0, 6)}:${hash.digest('hex')}`, expected, what);
}

function expectDigest(found: string, expected: string, what: string): void {
  if (found !== expected) {
    throw new LazydiskError('CORRUPT', `${what} has digest ${found}, expected ${expected}`);
  }
}
