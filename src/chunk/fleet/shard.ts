/**
 * A shard as a cache node stores it: a 64-byte header that identifies and checks it, then its part of the chunk. The
 * header names the chunk, the code and the index, so that a node may hold any shard of a chunk under that chunk's one
 * key: when nodes come or go, the remaining shards are still found and usable.
 *
 *     magic 4 "LZS1" │ k u8 │ m u8 │ index u8 │ 0 u8 │ sealedBytes u32 │ shardBytes u32 │ id 32
 *     │ crc32 of the header so far and of the data, u32 │ 0 × 12 │ data
 *
 * Little-endian. The data of shards 0 to k-1, concatenated, are the sealed bytes, zero-padded.
 */
import { crc32 } from 'node:zlib';
import { LazydiskError } from '../../errors.ts';
import { type ChunkId, ID_BYTES, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';

export const SHARD_HEADER_BYTES = 64;
const MAGIC = Buffer.from('LZS1', 'latin1').readUInt32LE();
const CHECKED_BYTES = 48;

/** The code: k data and m parity shards. */
export interface Code {
  readonly k: number;
  readonly m: number;
}

/** Throws USAGE unless k >= 1, m >= 0 and k + m <= 16. */
export function checkCode({ k, m }: Code): void {
  if (!(Number.isInteger(k) && Number.isInteger(m) && k >= 1 && m >= 0 && k + m <= 16)) {
    throw new LazydiskError('USAGE', `erasure code k=${k} m=${m}: want k >= 1, m >= 0 and k + m <= 16`);
  }
}

/** Length of every shard's data for a chunk of `sealedBytes`. */
export function shardBytesOf(sealedBytes: number, { k }: Code): number {
  return Math.ceil(sealedBytes / k);
}

/** The header of shard `index`, whose data is `data`. */
export function writeShardHeader(
  id: ChunkId,
  sealedBytes: number,
  code: Code,
  index: number,
  data: Uint8Array,
): Buffer {
  const header = Buffer.alloc(SHARD_HEADER_BYTES);
  header.writeUInt32LE(MAGIC, 0);
  header[4] = code.k;
  header[5] = code.m;
  header[6] = index;
  header.writeUInt32LE(sealedBytes, 8);
  header.writeUInt32LE(data.length, 12);
  header.write(id, 16, ID_BYTES, 'hex');
  header.writeUInt32LE(crc32(data, crc32(header.subarray(0, CHECKED_BYTES))), CHECKED_BYTES);
  return header;
}

/**
 * Verifies a value. Returns the index of the shard if it is one of this chunk, code and length. Returns `'other
 * length'` for a shard with this id that is valid except for the length of its chunk, or whose size does not match; the
 * manifest's length may be the wrong one. Returns undefined for anything else. `data` holds at least the shard's data,
 * from its first byte.
 */
export function proveShard(
  header: Buffer,
  data: Uint8Array,
  valueBytes: number,
  { id, sealedBytes }: { readonly id: ChunkId; readonly sealedBytes: number },
  code: Code,
): number | 'other length' | undefined {
  const shardBytes = shardBytesOf(sealedBytes, code);
  if (valueBytes !== SHARD_HEADER_BYTES + shardBytes || sealedBytes > SEALED_BYTES_MAX) return 'other length';
  const index = header[6]!;
  const matches =
    header.readUInt32LE(0) === MAGIC &&
    header[4] === code.k &&
    header[5] === code.m &&
    index < code.k + code.m &&
    header.readUInt32LE(12) === shardBytes &&
    header.toString('hex', 16, 16 + ID_BYTES) === id;
  if (!matches) return undefined;
  const sum = crc32(data.subarray(0, shardBytes), crc32(header.subarray(0, CHECKED_BYTES)));
  if (sum !== header.readUInt32LE(CHECKED_BYTES)) return undefined;
  return header.readUInt32LE(8) === sealedBytes ? index : 'other length';
}
