/**
 * GNU sparse files: the archive stores only the pieces that hold data, and a map says where they go. Four
 * encodings of the same map are in use: in old GNU headers (type 'S'), and in PAX records as version 0.0, 0.1 and
 * 1.0 (where the map precedes the data in the body). Spec: GNU tar manual, "Storing Sparse Files".
 */
import { LazydiskError } from '../../errors.ts';
import { BLOCK_BYTES, number } from './header.ts';
import type { TarInput } from './input.ts';
import { decimal, type PaxRecords } from './pax.ts';

/** A piece of the file that the archive stores. */
export interface SparseSegment {
  readonly offset: number;
  readonly lengthBytes: number;
}

const SEGMENTS_MAX = 1024 * 1024;
const CORRUPT_MAP = 'a truncated sparse map';

/** Reads the map in an old GNU header and the extension blocks after it, and the file's real size. */
export async function oldGnuSparse(
  block: Buffer,
  input: TarInput,
): Promise<{ numbers: number[]; realBytes: number }> {
  const numbers: number[] = [];
  const realBytes = number(block, 483, 12, 'sparse size');
  let more = readPairs(block, 386, 4, numbers) && block[482] !== 0;
  while (more) {
    const extension = await input.take(BLOCK_BYTES);
    if (extension.length < BLOCK_BYTES) throw new LazydiskError('CORRUPT', CORRUPT_MAP);
    more = readPairs(extension, 0, 21, numbers) && extension[504] !== 0;
  }
  return { numbers, realBytes };
}

/** Appends the pairs up to the first empty slot; returns false if there was one. */
function readPairs(block: Buffer, at: number, count: number, numbers: number[]): boolean {
  for (let pair = 0; pair < count; pair++) {
    const from = at + pair * 24;
    if (block[from] === 0) return false;
    numbers.push(number(block, from, 12, 'sparse offset'), number(block, from + 12, 12, 'sparse length'));
    checkCount(numbers.length / 2);
  }
  return true;
}

/**
 * Returns the version of the PAX encoding, or undefined if the records do not describe a sparse file. Throws
 * UNSUPPORTED.
 */
export function paxSparseVersion(records: PaxRecords): '0.0' | '0.1' | '1.0' | undefined {
  const major = records.name('GNU.sparse.major');
  const minor = records.name('GNU.sparse.minor');
  if (major === '1' && minor === '0') return '1.0';
  if (major !== undefined && major !== '0') {
    throw new LazydiskError('UNSUPPORTED', 'a sparse file of a version after 1.0');
  }
  if (records.get('GNU.sparse.map')) return '0.1';
  const named = records.get('GNU.sparse.size') ?? records.get('GNU.sparse.numblocks');
  return named || records.sparseNumbers.length > 0 ? '0.0' : undefined;
}

/** Version 0.1: `offset,length,offset,length,…` in one record. */
export function parseSparseMap(map: string): number[] {
  return map.split(',').map((part) => decimal(part, 'GNU.sparse.map'));
}

/** Version 1.0: the map at the start of the body, decimal lines padded to whole blocks. */
export async function readSparseMap(input: TarInput): Promise<{ numbers: number[]; mapBytes: number }> {
  const numbers: number[] = [];
  let rest = '';
  let wanted = -1;
  let mapBytes = 0;
  while (wanted === -1 || numbers.length < wanted) {
    const block = await input.take(BLOCK_BYTES);
    if (block.length < BLOCK_BYTES) throw new LazydiskError('CORRUPT', CORRUPT_MAP);
    mapBytes += BLOCK_BYTES;
    const lines = (rest + block.toString('latin1')).split('\n');
    rest = lines.pop()!;
    if (rest.length > BLOCK_BYTES) throw new LazydiskError('CORRUPT', CORRUPT_MAP);
    for (const line of lines) {
      if (wanted !== -1 && numbers.length === wanted) break;
      const value = decimal(line, 'sparse map');
      if (wanted !== -1) numbers.push(value);
      else {
        checkCount(value);
        wanted = value * 2;
      }
    }
  }
  return { numbers, mapBytes };
}

/**
 * Returns the pairs as segments, after checking that they are in order, disjoint, inside the file, and together exactly
 * what the body stores.
 */
export function checkedSegments(numbers: number[], realBytes: number, storedBytes: number): SparseSegment[] {
  const segments: SparseSegment[] = [];
  let end = 0;
  let total = 0;
  if (numbers.length % 2 !== 0)
    throw new LazydiskError('CORRUPT', 'a sparse map whose numbers do not pair up');
  for (let at = 0; at < numbers.length; at += 2) {
    const offset = numbers[at]!;
    const lengthBytes = numbers[at + 1]!;
    if (offset < end || lengthBytes < 0 || lengthBytes > realBytes - offset) {
      throw new LazydiskError('CORRUPT', 'a sparse map whose pieces overlap or exceed the file');
    }
    end = offset + lengthBytes;
    total += lengthBytes;
    if (lengthBytes > 0) segments.push({ offset, lengthBytes });
  }
  if (total !== storedBytes)
    throw new LazydiskError('CORRUPT', 'a sparse map that does not match the stored data');
  return segments;
}

function checkCount(segments: number): void {
  if (segments > SEGMENTS_MAX)
    throw new LazydiskError('UNSUPPORTED', `a sparse file of more than ${SEGMENTS_MAX} pieces`);
}
