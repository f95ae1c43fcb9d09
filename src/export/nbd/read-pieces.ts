/**
 * How a long read is answered for a client with structured replies: runs of zeroes as holes of a few bytes, data in
 * pieces, so that one request cannot pin all of memory and its first bytes leave before its last are there.
 */
import type { BlockDevice } from '../../drive/block-device.ts';

/** Shorter reads are never split, and a shorter run of zeroes is not worth its own chunk. */
export const HOLE_BYTES_MIN = 64 * 1024;
/** The longest piece of data. */
export const PIECE_BYTES_MAX = 2 * 1024 * 1024;
/** The most runs that are examined; what is beyond them is sent as data. */
const EXTENTS_MAX = 4096;

/** A part of a read that is sent on its own. */
export interface Piece {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly hole: boolean;
}

/** The range in order, as holes and pieces of data. */
export function piecesOf(device: BlockDevice, offset: number, lengthBytes: number): Piece[] {
  const pieces: Piece[] = [];
  const end = offset + lengthBytes;
  const addData = (from: number, to: number) => {
    for (let at = from; at < to; at += PIECE_BYTES_MAX)
      pieces.push({ offset: at, lengthBytes: Math.min(PIECE_BYTES_MAX, to - at), hole: false });
  };
  let dataFrom = offset;
  let at = offset;
  for (const run of device.extents(offset, lengthBytes, EXTENTS_MAX)) {
    if (run.zero && run.lengthBytes >= HOLE_BYTES_MIN) {
      addData(dataFrom, at);
      pieces.push({ offset: at, lengthBytes: run.lengthBytes, hole: true });
      dataFrom = at + run.lengthBytes;
    }
    at += run.lengthBytes;
  }
  addData(dataFrom, end);
  return pieces;
}
