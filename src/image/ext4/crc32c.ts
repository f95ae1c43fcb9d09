/**
 * CRC-32C (Castagnoli) as ext4 uses it: the running value is passed in and out without the usual inversions, so that
 * sums can be seeded and chained. Processes eight bytes a step with eight tables (slicing by 8: Kounavis and Berry, "A
 * Systematic Approach to Building High Performance Software-based CRC Generators", 2005).
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

/** The start value of an unseeded sum in ext4. */
export const CRC_START = 0xffffffff;

/** Continues `crc` over `bytes[from, to)`. Unsigned 32 bits in and out. */
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

/** Continues `crc` over a little-endian 32-bit number. */
export function crc32cOfUint32(crc: number, value: number): number {
  word.writeUInt32LE(value >>> 0, 0);
  return crc32c(crc, word, 0, 4);
}

/** The seed of all checksums of a file system except the superblock's. */
export function fileSystemSeed(uuid: Uint8Array): number {
  return crc32c(CRC_START, uuid);
}

/** The seed of the checksums of an inode, its directory blocks and its extent blocks. */
export function inodeSeed(fileSystemSeed: number, inode: number): number {
  return crc32cOfUint32(crc32cOfUint32(fileSystemSeed, inode), 0);
}

/** Continues `crc` over a little-endian 64-bit number (a block number). */
export function crc32cOfUint64(crc: number, value: number): number {
  word.writeBigUInt64LE(BigInt(value), 0);
  return crc32c(crc, word, 0, 8);
}
