/**
 * A layer's blob as a stream of plain tar, proven as it flows: size and digest of the blob, digest of what it unpacks
 * to. Decoding and hashing are the thread pool's work; two buffers take turns, so that one is filled while the archive in
 * the other is read.
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
 * The tar in a blob of which `input` gives the bytes, each buffer valid until the next is asked for. Throws CORRUPT naming
 * the blob, the signal's reason, or as `input` does.
 */
export async function* openBlob(
  input: AsyncIterable<Buffer>,
  blob: BlobDescription,
  signal?: AbortSignal,
  onInput?: (lengthBytes: number) => void,
): AsyncGenerator<Buffer> {
  const decoder = new BlobDecoder(blob);
  let sizeBytes = 0;
  // What the last job gave; it is handed on when the next job is at work.
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
  /** Undefined if nothing came out, as ever without compression; valid while two more jobs are not begun. */
  readonly tar: Buffer | undefined;
  /** More may come out without more going in. */
  readonly isFull: boolean;
}

class BlobDecoder {
  readonly #blob: BlobDescription;
  /** A plain tar's two digests are of the same bytes: where they are the same, one pass proves both. */
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

  /** Takes of `input` what there is room for. Throws CORRUPT. */
  async run(input: Buffer): Promise<Moved> {
    [this.#output, this.#lastOutput] = [this.#lastOutput, this.#output];
    const output = this.#output;
    const status = await new Promise<number>((resolve) =>
      decoderRun(this.#native, input, output, this.#counts, resolve),
    );
    const { digest, compression } = this.#blob;
    if (status === DECODE_CORRUPT)
      throw new LazydiskError('CORRUPT', `blob ${digest} is not valid ${compression}`);
    if (status !== DECODED) throw new LazydiskError('INTERNAL', `blob ${digest}: memory ran out`);
    const usedBytes = this.#counts.readUInt32LE(0);
    const lengthBytes = this.#counts.readUInt32LE(4);
    const tar = lengthBytes > 0 ? output.subarray(0, lengthBytes) : undefined;
    return { usedBytes, tar, isFull: lengthBytes === output.length };
  }

  /** Throws CORRUPT unless all of the blob was what its digests say. */
  end(): void {
    const { digest, compression, diffId } = this.#blob;
    const [isComplete, blobHex, tarHex] = decoderEnd(this.#native);
    const found = (expected: string, hex: string) => `${expected.slice(0, 7)}${hex}`;
    if (this.#blobDigest) expectDigest(found(this.#blobDigest, blobHex), this.#blobDigest, `blob ${digest}`);
    if (!isComplete) throw new LazydiskError('CORRUPT', `blob ${digest} ends within its ${compression} data`);
    const isPlain = compression === 'none' && !this.#blobDigest;
    const what = isPlain ? `blob ${digest}` : `blob ${digest}: what it unpacks to`;
    expectDigest(found(diffId, tarHex), diffId, what);
  }
}

/** `sha256:…` or `sha512:…`; the pattern also keeps a digest from being any other file's name. */
export const DIGEST = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/;

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
  expectDigest(`${expected.slice(0, 6)}:${hash.digest('hex')}`, expected, what);
}

function expectDigest(found: string, expected: string, what: string): void {
  if (found !== expected) {
    throw new LazydiskError('CORRUPT', `${what} has digest ${found}, expected ${expected}`);
  }
}
