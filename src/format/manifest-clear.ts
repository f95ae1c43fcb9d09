/**
 * The part of a manifest that anyone can read: which disk it describes and which stored chunks hold it, by id. Its
 * SHA-256 is the image's digest. Garbage collection, fsck and copies between stores need only this part, and so no key.
 * The table is used in place, as columns; one quick pass checks its order and bounds.
 */
import { createHash } from 'node:crypto';
import { runNow, type Steps } from '../async/slices.ts';
import { LazydiskError } from '../errors.ts';
import { SEALED_BYTES_MIN } from './chunk-codec.ts';
import { CHUNK_BYTES, type ChunkId, chunkIdOf, ID_BYTES, SEALED_BYTES_MAX } from './chunk-id.ts';
import type { ImageDigest } from './image-digest.ts';
import {
  CLEAR,
  CLEAR_HEADER_BYTES,
  clearBytesOf,
  DISK_CHUNKS_MAX,
  DOMAIN_BYTES,
  ENCODER_VERSION_BYTES,
  FORMAT_VERSION,
  INDEX_BYTES,
  LENGTH_BYTES,
  MAGIC,
  WRITER_VERSION_BYTES,
} from './manifest-layout.ts';

/** The work between two pauses: about 0.2 ms, even before the code has been optimized. */
const STEP_BYTES = 256 * 1024;
const STEP_ENTRIES = 8 * 1024;

export class ClearManifest {
  readonly diskBytes: number;
  /** Chunks of the disk, stored or zero. */
  readonly chunkCount: number;
  /** Entries of the table: chunks that are not all zero. */
  readonly storedChunks: number;
  readonly saltEpoch: number;
  readonly writerVersion: string;
  readonly encoderVersion: string;
  readonly domain: string;
  /** HMAC-SHA-256 of the metadata under the salt; binds the metadata to the digest. */
  readonly metadataMac: Buffer;
  /** Length of the clear part, where the sealed part starts. */
  readonly clearBytes: number;
  readonly #indices: Uint32Array;
  readonly #lengths: Uint32Array;
  readonly #ids: Buffer;
  #digest!: ImageDigest;

  /**
   * Reads the clear part at the start of `bytes`, which may go on with the sealed part. Throws CORRUPT for bytes that
   * no writer produces, UNSUPPORTED for another version of the format. The ids column stays a view of `bytes`. The
   * passes over the whole table are given to `run`.
   */
  constructor(bytes: Buffer, run: (passes: Steps<void>) => void = runNow) {
    if (bytes.length < CLEAR_HEADER_BYTES || !bytes.subarray(0, MAGIC.length).equals(MAGIC))
      throw corrupt('it does not start with the magic of a manifest');
    const version = bytes.readUInt32LE(CLEAR.version);
    if (version !== FORMAT_VERSION)
      throw unsupported(`its version is ${version}, this program reads ${FORMAT_VERSION}`);
    const chunkBytes = bytes.readUInt32LE(CLEAR.chunkBytes);
    if (chunkBytes !== CHUNK_BYTES)
      throw unsupported(`its chunks are ${chunkBytes} bytes, not ${CHUNK_BYTES}`);
    const flags = bytes.readUInt32LE(CLEAR.flags) | bytes.readUInt32LE(CLEAR.reserved);
    if (flags !== 0) throw unsupported('it uses features that this program does not support');

    const diskBytes = bytes.readBigUInt64LE(CLEAR.diskBytes);
    if (
      diskBytes === 0n ||
      diskBytes > BigInt(DISK_CHUNKS_MAX) * BigInt(CHUNK_BYTES) ||
      diskBytes % BigInt(CHUNK_BYTES)
    )
      throw corrupt(`a disk of ${diskBytes} bytes`);
    this.diskBytes = Number(diskBytes);
    this.chunkCount = this.diskBytes / CHUNK_BYTES;
    this.storedChunks = bytes.readUInt32LE(CLEAR.storedChunks);
    this.saltEpoch = bytes.readUInt32LE(CLEAR.saltEpoch);
    this.writerVersion = textAt(bytes, CLEAR.writerVersion, WRITER_VERSION_BYTES);
    this.encoderVersion = textAt(bytes, CLEAR.encoderVersion, ENCODER_VERSION_BYTES);
    this.domain = textAt(bytes, CLEAR.domain, DOMAIN_BYTES);
    this.metadataMac = bytes.subarray(CLEAR.metadataMac, CLEAR_HEADER_BYTES);

    // The number of bytes at hand bounds the count, so a header cannot cause a large allocation.
    this.clearBytes = clearBytesOf(this.storedChunks);
    if (this.storedChunks > this.chunkCount || this.clearBytes > bytes.length)
      throw corrupt(
        `a table of ${this.storedChunks} chunks, in ${bytes.length} bytes and a disk of ${this.chunkCount} chunks`,
      );
    this.#indices = new Uint32Array(this.storedChunks);
    this.#lengths = new Uint32Array(this.storedChunks);
    const ids = CLEAR_HEADER_BYTES + (INDEX_BYTES + LENGTH_BYTES) * this.storedChunks;
    this.#ids = bytes.subarray(ids, ids + ID_BYTES * this.storedChunks);
    run(this.#passes(bytes));
  }

  /** The same, a step at a time. */
  static *read(bytes: Buffer): Steps<ClearManifest> {
    let passes: Steps<void> | undefined;
    const clear = new ClearManifest(bytes, (steps) => {
      passes = steps;
    });
    yield* passes!;
    return clear;
  }

  /** SHA-256 of the clear part: the image's digest. */
  get digest(): ImageDigest {
    return this.#digest;
  }

  /** Returns the entry that holds chunk `index` of the disk, or -1 if that chunk is all zero. */
  entryOf(index: number): number {
    const indices = this.#indices;
    let low = 0;
    let high = indices.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const found = indices[middle]!;
      if (found === index) return middle;
      if (found < index) low = middle + 1;
      else high = middle - 1;
    }
    return -1;
  }

  /** Returns which chunk of the disk `entry` (0 to storedChunks - 1) holds. Entries are in the order of the disk. */
  indexOf(entry: number): number {
    return this.#at(this.#indices, entry);
  }

  idOf(entry: number): ChunkId {
    this.#at(this.#indices, entry);
    return chunkIdOf(this.#ids.subarray(entry * ID_BYTES, (entry + 1) * ID_BYTES));
  }

  sealedBytesOf(entry: number): number {
    return this.#at(this.#lengths, entry);
  }

  /** The column of all ids, binary, ID_BYTES each, in the order of the disk. A view of the manifest's bytes. */
  get ids(): Buffer {
    return this.#ids;
  }

  /** Total sealed bytes of all entries; a chunk that the disk holds twice counts twice. */
  sealedBytes(): number {
    let sum = 0;
    for (const length of this.#lengths) sum += length;
    return sum;
  }

  #at(column: Uint32Array, entry: number): number {
    const value = column[entry];
    if (value === undefined) throw new LazydiskError('INTERNAL', `entry ${entry} of ${this.storedChunks}`);
    return value;
  }

  *#passes(bytes: Buffer): Steps<void> {
    yield* copyColumn(bytes, CLEAR_HEADER_BYTES, this.#indices);
    yield* copyColumn(bytes, CLEAR_HEADER_BYTES + INDEX_BYTES * this.storedChunks, this.#lengths);
    yield* this.#checkTable();
    const digest = createHash('sha256');
    for (let at = 0; at < this.clearBytes; at += STEP_BYTES) {
      digest.update(bytes.subarray(at, Math.min(at + STEP_BYTES, this.clearBytes)));
      yield;
    }
    this.#digest = `sha256:${digest.digest('hex')}`;
  }

  *#checkTable(): Steps<void> {
    let previous = -1;
    for (let entry = 0; entry < this.storedChunks; entry++) {
      const index = this.#indices[entry]!;
      const length = this.#lengths[entry]!;
      if (index <= previous) throw corrupt('its chunks are not in order');
      previous = index;
      if (length < SEALED_BYTES_MIN || length > SEALED_BYTES_MAX)
        throw corrupt(`a sealed chunk of ${length} bytes`);
      if (entry % STEP_ENTRIES === 0) yield;
    }
    if (previous >= this.chunkCount) throw corrupt(`chunk ${previous} of a disk of ${this.chunkCount}`);
  }
}

/** Copies the bytes at `offset` into `column`; a view would need them to be aligned. */
function* copyColumn(bytes: Buffer, offset: number, column: Uint32Array): Steps<void> {
  const target = Buffer.from(column.buffer);
  for (let at = 0; at < target.length; at += STEP_BYTES) {
    bytes.copy(target, at, offset + at, offset + Math.min(at + STEP_BYTES, target.length));
    yield;
  }
}

/** ASCII up to the first zero, followed only by zeroes, so that each text has one form. */
function textAt(bytes: Buffer, offset: number, length: number): string {
  const field = bytes.subarray(offset, offset + length);
  const end = field.indexOf(0);
  if (end < 1 || field.subarray(end).some((byte) => byte !== 0))
    throw corrupt('a text field without a terminator');
  const text = field.toString('latin1', 0, end);
  if (!/^[\x21-\x7e]+$/.test(text)) throw corrupt('a text field that is not text');
  return text;
}

function corrupt(why: string): LazydiskError {
  return new LazydiskError('CORRUPT', `corrupt manifest: ${why}`);
}

function unsupported(why: string): LazydiskError {
  return new LazydiskError('UNSUPPORTED', `manifest: ${why}`);
}
