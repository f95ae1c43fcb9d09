/**
 * The disk cache's index on disk, written at a clean shutdown and consumed at the next start. It is deleted as soon as
 * it is read, so that a crash never leaves a stale index behind. Layout, little-endian:
 *
 *     magic 8 │ segmentBytes u32 │ segments u32 │ entries u32 │ 0 u32
 *     segments × (sequence u64 │ usedBytes u32 │ 0 u32)
 *     entries × (id 32 │ segment u32 │ offset u32 │ sealedBytes u32 │ hits u32)
 *     crc32 of all before, u32
 */
import { open, readFile, rename, rm } from 'node:fs/promises';
import { crc32 } from 'node:zlib';
import { type ChunkId, ID_BYTES, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import { type Geometry, recordBytes, SNAPSHOT_ENTRY_BYTES } from './layout.ts';
import type { Segments } from './segments.ts';

const MAGIC = 'LZDKIDX1';
const HEADER_BYTES = 24;
const SEGMENT_BYTES = 16;

/** Writes the index durably, then renames it into place. */
export async function saveSnapshot(path: string, geometry: Geometry, segments: Segments): Promise<void> {
  const head = Buffer.alloc(HEADER_BYTES + geometry.segments * SEGMENT_BYTES);
  head.write(MAGIC, 0, 'latin1');
  head.writeUInt32LE(geometry.segmentBytes, 8);
  head.writeUInt32LE(geometry.segments, 12);
  head.writeUInt32LE(segments.entries, 16);
  for (const segment of segments.list) {
    const at = HEADER_BYTES + segment.number * SEGMENT_BYTES;
    head.writeBigUInt64LE(BigInt(segment.sequence), at);
    head.writeUInt32LE(segment.usedBytes, at + 8);
  }
  const table = Buffer.alloc(segments.entries * SNAPSHOT_ENTRY_BYTES);
  let at = 0;
  for (const entry of segments.all()) {
    table.write(entry.id, at, ID_BYTES, 'hex');
    table.writeUInt32LE(entry.segment, at + 32);
    table.writeUInt32LE(entry.offset, at + 36);
    table.writeUInt32LE(entry.sealedBytes, at + 40);
    table.writeUInt32LE(entry.hits, at + 44);
    at += SNAPSHOT_ENTRY_BYTES;
  }
  const tail = Buffer.alloc(4);
  tail.writeUInt32LE(crc32(table, crc32(head)));
  const temporary = `${path}.tmp`;
  try {
    await rm(temporary, { force: true });
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writev([head, table, tail]);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/**
 * Reads the index into `segments` and deletes the file. Returns false, with nothing loaded, if there is no index, or if
 * it is damaged or of another geometry; the records must then be scanned.
 */
export async function takeSnapshot(path: string, geometry: Geometry, segments: Segments): Promise<boolean> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch {
    return false;
  } finally {
    await rm(path, { force: true });
  }
  if (!isSound(bytes, geometry)) return false;
  for (const segment of segments.list) {
    const at = HEADER_BYTES + segment.number * SEGMENT_BYTES;
    segment.sequence = Number(bytes.readBigUInt64LE(at));
    segment.usedBytes = bytes.readUInt32LE(at + 8);
  }
  const end = bytes.length - 4;
  for (let at = HEADER_BYTES + geometry.segments * SEGMENT_BYTES; at < end; at += SNAPSHOT_ENTRY_BYTES) {
    const entry = {
      id: bytes.toString('hex', at, at + ID_BYTES) as ChunkId,
      segment: bytes.readUInt32LE(at + 32),
      offset: bytes.readUInt32LE(at + 36),
      sealedBytes: bytes.readUInt32LE(at + 40),
      hits: bytes.readUInt32LE(at + 44),
    };
    const fits =
      entry.segment < geometry.segments &&
      entry.sealedBytes > 0 &&
      entry.sealedBytes <= SEALED_BYTES_MAX &&
      entry.offset + recordBytes(entry.sealedBytes) <= geometry.segmentBytes;
    if (fits) segments.add(entry);
  }
  return true;
}

function isSound(bytes: Buffer, geometry: Geometry): boolean {
  if (bytes.length < HEADER_BYTES + 4 || bytes.toString('latin1', 0, 8) !== MAGIC) return false;
  if (bytes.readUInt32LE(8) !== geometry.segmentBytes || bytes.readUInt32LE(12) !== geometry.segments)
    return false;
  const entries = bytes.readUInt32LE(16);
  const want = HEADER_BYTES + geometry.segments * SEGMENT_BYTES + entries * SNAPSHOT_ENTRY_BYTES + 4;
  return bytes.length === want && bytes.readUInt32LE(want - 4) === crc32(bytes.subarray(0, want - 4));
}
