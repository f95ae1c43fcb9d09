/**
 * Rebuilds the index from the records after an unclean shutdown. It reads only headers; readers verify a record's bytes
 * by their id. It runs in the background, segment by segment, and what it has found so far can be read at once.
 */
import { read } from 'node:fs';
import { promisify } from 'node:util';
import { pooled } from '../../async/pooled.ts';
import {
  type Geometry,
  RECORD_HEADER_BYTES,
  readRecordHeader,
  recordBytes,
  segmentOffset,
} from './layout.ts';
import type { Segment, Segments } from './segments.ts';

const readAt = promisify(read);
const PARALLEL = 4;

/** Scans every segment of the data file `fd` into `segments`. Stops early once `stopped()` returns true. */
export async function scanRecords(
  fd: number,
  geometry: Geometry,
  segments: Segments,
  stopped: () => boolean,
): Promise<void> {
  await pooled(PARALLEL, segments.list, async (segment) => {
    if (!stopped()) await scanSegment(fd, geometry, segments, segment, stopped);
  });
}

async function scanSegment(
  fd: number,
  geometry: Geometry,
  segments: Segments,
  segment: Segment,
  stopped: () => boolean,
): Promise<void> {
  const header = Buffer.alloc(RECORD_HEADER_BYTES);
  const base = segmentOffset(geometry, segment.number);
  while (segment.usedBytes + RECORD_HEADER_BYTES <= geometry.segmentBytes && !stopped()) {
    const { bytesRead } = await readAt(fd, header, 0, RECORD_HEADER_BYTES, base + segment.usedBytes);
    const record = bytesRead === RECORD_HEADER_BYTES ? readRecordHeader(header) : undefined;
    if (!record || segment.usedBytes + recordBytes(record.sealedBytes) > geometry.segmentBytes) return;
    if (segment.sequence === 0) segment.sequence = record.sequence;
    if (record.sequence !== segment.sequence) return;
    if (record.alive) {
      const { id, sealedBytes } = record;
      segments.add({ id, segment: segment.number, offset: segment.usedBytes, sealedBytes, hits: 0 });
    }
    segment.usedBytes += recordBytes(record.sealedBytes);
  }
}
