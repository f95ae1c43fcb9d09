/**
 * CRC-32C (Castagnoli) as ext4 uses it: the running value goes in and out as it is, without the inversions of
 * the usual wrapper, so that sums can be seeded and chained. Eight bytes a step from eight tables (slicing by 8:
 * Kounavis and Berry, "A Systematic Approach to Building High Performance Software-based CRC Generators", 2005).
 */
const TABLES: readonly Uint32Array[] = makeTables();

function makeTables(): Uint32Array[] {
  const tables = Array.from({ length: 8 }, () => new Uint32Array(256));
  const first = tables[0]!;
  for (let byte = 0; byte < 256; byte++) {
    let value = byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
    first[byte] = value;
  }
  for (let n = 1; n < 8; n++) {
    for (let byte = 0; byte < 256; byte++) {
      const before = tables[n - 1]![byte]!;
      tables[n]![byte] = first[before & 0xff]! ^ (before >>> 8);
    }
  }
  return tables;
}

const [T0, T1, T2, T3, T4, T5, T6, T7] = TABLES as [
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
];

/** What ext4 starts an unseeded sum with. */
export const CRC_START = 0xffffffff;

/** `crc` carried on over `bytes[from, to)`. Unsigned 32 bits in and out. */
export function crc32c(crc: number, bytes: Uint8Array, from = 0, to = bytes.length): number {
  let at = from;
  let value = crc | 0;
  for (; at + 8 <= to; at += 8) {
    const low =
      value ^ (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24));
    value =
      T7[low & 0xff]! ^
      T6[(low >>> 8) & 0xff]! ^
      T5[(low >>> 16) & 0xff]! ^
      T4[low >>> 24]! ^
      T3[bytes[at + 4]!]! ^
      T2[bytes[at + 5]!]! ^
      T1[bytes[at + 6]!]! ^
      T0[bytes[at + 7]!]!;
  }
  for (; at < to; at++) value = T0[(value ^ bytes[at]!) & 0xff]! ^ (value >>> 8);
  return value >>> 0;
}

const word = Buffer.alloc(8);

/** `crc` carried on over a little-endian 32-bit number. */
export function crc32cOfUint32(crc: number, value: number): number {
  word.writeUInt32LE(value >>> 0, 0);
  return crc32c(crc, word, 0, 4);
}

/** What all sums of a file system but the superblock's start from. */
export function fileSystemSeed(uuid: Uint8Array): number {
  return crc32c(CRC_START, uuid);
}

/** What the sums of an inode, of its directory blocks and of its extent blocks start from. */
export function inodeSeed(fileSystemSeed: number, inode: number): number {
  return crc32cOfUint32(crc32cOfUint32(fileSystemSeed, inode), 0);
}

/** `crc` carried on over a little-endian 64-bit number (a block number). */
export function crc32cOfUint64(crc: number, value: number): number {
  word.writeBigUInt64LE(BigInt(value), 0);
  return crc32c(crc, word, 0, 8);
}
