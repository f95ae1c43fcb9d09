/**
 * Where things lie in the disk cache's one data file, and the bytes of its headers.
 *
 *     superblock 4096 │ segment 0 │ segment 1 │ …            (each of the same fixed size)
 *     segment: record │ record │ … │ unused
 *     record:  header 64 │ sealed bytes │ padding to 4096
 *
 * A record carries the sequence number that its segment had when it was written. Segments are reused from the start, so
 * a walk stops at another sequence number: the rest is left over from an earlier use. Records are aligned to 4096 so
 * that tiny chunks cannot make the index in memory larger than the data is worth. All numbers are little-endian.
 */
import { crc32 } from 'node:zlib';
import { LazydiskError } from '../../errors.ts';
import { type ChunkId, chunkIdOf, ID_BYTES, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';

export const SUPERBLOCK_BYTES = 4096;
export const RECORD_HEADER_BYTES = 64;
/** What one record costs in a saved index (snapshot.ts). */
export const SNAPSHOT_ENTRY_BYTES = 48;
const ALIGNMENT = 4096;
const SUPERBLOCK_MAGIC = 'LZDKDSC1';
const RECORD_MAGIC = 0x5244_4b4c;
const MIB = 1024 * 1024;
const SEGMENT_BYTES_MIN = 2 * MIB;
const SEGMENT_BYTES_MAX = 64 * MIB;
/** One segment being written, one free, and two that hold data meanwhile. */
const SEGMENTS_MIN = 4;

/** The smallest cap that leaves room for SEGMENTS_MIN segments, their index and the superblock. */
export const CAP_BYTES_MIN = 9 * MIB;

export interface Geometry {
  readonly segmentBytes: number;
  readonly segments: number;
}

/** Size of the data file. */
export function dataFileBytes(geometry: Geometry): number {
  return SUPERBLOCK_BYTES + geometry.segments * geometry.segmentBytes;
}

/** Byte offset of a segment in the data file. */
export function segmentOffset(geometry: Geometry, segment: number): number {
  return SUPERBLOCK_BYTES + segment * geometry.segmentBytes;
}

/** The space that a record of this many sealed bytes takes up. */
export function recordBytes(sealedBytes: number): number {
  return Math.ceil((RECORD_HEADER_BYTES + sealedBytes) / ALIGNMENT) * ALIGNMENT;
}

/**
 * The most segments whose data, superblock and saved index together stay within `capBytes`. Where a file exists
 * already, `segmentBytes` is its segment size, because its records cannot move. Zero segments: it does not fit.
 */
export function geometryFor(capBytes: number, segmentBytes?: number): Geometry {
  const size =
    segmentBytes ??
    Math.min(SEGMENT_BYTES_MAX, Math.max(SEGMENT_BYTES_MIN, 2 ** Math.floor(Math.log2(capBytes / 32))));
  const perSegment = size + (size / ALIGNMENT) * SNAPSHOT_ENTRY_BYTES;
  const segments = Math.floor((capBytes - 2 * SUPERBLOCK_BYTES) / perSegment);
  return { segmentBytes: size, segments: segments < SEGMENTS_MIN ? 0 : segments };
}

export function writeSuperblock(segmentBytes: number): Buffer {
  const block = Buffer.alloc(SUPERBLOCK_BYTES);
  block.write(SUPERBLOCK_MAGIC, 0, 'latin1');
  block.writeUInt32LE(segmentBytes, 8);
  block.writeUInt32LE(crc32(block.subarray(0, 12)), 12);
  return block;
}

/** The segment size that a file was made with, or undefined if this is not a valid superblock. */
export function readSuperblock(block: Buffer): number | undefined {
  if (block.length < 16 || block.toString('latin1', 0, 8) !== SUPERBLOCK_MAGIC) return undefined;
  if (block.readUInt32LE(12) !== crc32(block.subarray(0, 12))) return undefined;
  const segmentBytes = block.readUInt32LE(8);
  const fits = segmentBytes >= SEGMENT_BYTES_MIN && segmentBytes <= SEGMENT_BYTES_MAX;
  return fits && segmentBytes % ALIGNMENT === 0 ? segmentBytes : undefined;
}

export interface RecordHeader {
  readonly id: ChunkId;
  readonly sealedBytes: number;
  readonly sequence: number;
  /** False: the record was quarantined; its bytes are not those of `id`. */
  readonly alive: boolean;
}

export function writeRecordHeader(record: RecordHeader): Buffer {
  if (record.sealedBytes > SEALED_BYTES_MAX)
    throw new LazydiskError('INTERNAL', 'a record longer than any chunk');
  const header = Buffer.alloc(RECORD_HEADER_BYTES);
  header.writeUInt32LE(RECORD_MAGIC, 0);
  header.writeUInt32LE(record.alive ? 1 : 0, 4);
  header.writeBigUInt64LE(BigInt(record.sequence), 8);
  header.writeUInt32LE(record.sealedBytes, 16);
  header.write(record.id, 20, ID_BYTES, 'hex');
  header.writeUInt32LE(crc32(header.subarray(0, 52)), 52);
  return header;
}

/** The header, or undefined if there is no valid one: unused space, a torn write, or damage. */
export function readRecordHeader(header: Buffer): RecordHeader | undefined {
  if (header.length < RECORD_HEADER_BYTES || header.readUInt32LE(0) !== RECORD_MAGIC) return undefined;
  if (header.readUInt32LE(52) !== crc32(header.subarray(0, 52))) return undefined;
  const sealedBytes = header.readUInt32LE(16);
  const sequence = Number(header.readBigUInt64LE(8));
  if (sealedBytes === 0 || sealedBytes > SEALED_BYTES_MAX || !Number.isSafeInteger(sequence))
    return undefined;
  return {
    id: chunkIdOf(header.subarray(20, 20 + ID_BYTES)),
    sealedBytes,
    sequence,
    alive: header.readUInt32LE(4) === 1,
  };
}
