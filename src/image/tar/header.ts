/**
 * One 512-byte tar header block: V7, POSIX ustar, GNU and star, which differ after byte 257. Spec: POSIX.1-2017 pax,
 * "ustar Interchange Format"; GNU tar manual, "Basic Tar Format". Names are byte strings.
 */
import { LazydiskError } from '../../errors.ts';

export const BLOCK_BYTES = 512;

export interface TarHeader {
  name: string;
  mode: number;
  uid: number;
  gid: number;
  sizeBytes: number;
  mtimeSeconds: number;
  /** One character; '0' also for the old NUL. */
  type: string;
  linkName: string;
  deviceMajor: number;
  deviceMinor: number;
}

/** The header in `block`, or undefined for a block of zeroes (the end marker). Throws CORRUPT. */
export function parseHeader(block: Buffer): TarHeader | undefined {
  if (!checkSum(block)) return undefined;
  const magic = block.toString('latin1', 257, 265);
  const posix = magic.startsWith('ustar\0');
  const gnu = magic === 'ustar  \0';
  let name = text(block, 0, 100);
  if (posix) {
    const star = block.toString('latin1', 508, 512) === 'tar\0';
    const prefix = text(block, 345, star ? 131 : 155);
    if (prefix) name = `${prefix}/${name}`;
  }
  const type = block[156] === 0 ? '0' : String.fromCharCode(block[156]!);
  const isDevice = (posix || gnu) && (type === '3' || type === '4');
  return {
    name,
    mode: number(block, 100, 8, 'mode'),
    uid: number(block, 108, 8, 'uid'),
    gid: number(block, 116, 8, 'gid'),
    sizeBytes: number(block, 124, 12, 'size'),
    mtimeSeconds: number(block, 136, 12, 'mtime'),
    type,
    linkName: text(block, 157, 100),
    deviceMajor: isDevice ? number(block, 329, 8, 'device major') : 0,
    deviceMinor: isDevice ? number(block, 337, 8, 'device minor') : 0,
  };
}

/** Returns true if the checksum is right, false for a block of zeroes; throws CORRUPT for anything else. */
function checkSum(block: Buffer): boolean {
  let sum = 0;
  for (let at = 0; at < BLOCK_BYTES; at++) sum += block[at]!;
  if (sum === 0) return false;
  // The checksum field itself counts as spaces.
  let unsigned = sum + 8 * 0x20;
  for (let at = 148; at < 156; at++) unsigned -= block[at]!;
  const stated = number(block, 148, 8, 'checksum');
  if (stated === unsigned) return true;
  // Some old writers summed signed bytes: each over 127 counts 256 less.
  let signed = unsigned;
  for (let at = 0; at < BLOCK_BYTES; at++) if ((at < 148 || at >= 156) && block[at]! > 127) signed -= 256;
  if (stated !== signed) throw new LazydiskError('CORRUPT', 'a header block with a wrong checksum');
  return true;
}

/** Up to the first NUL, as a byte string. */
export function text(block: Buffer, at: number, lengthBytes: number): string {
  const end = block.indexOf(0, at);
  return block.toString('latin1', at, end === -1 || end > at + lengthBytes ? at + lengthBytes : end);
}

/** A number field: octal in ASCII, or base-256 two's complement when its first bit is set. Throws CORRUPT. */
export function number(block: Buffer, at: number, lengthBytes: number, what: string): number {
  const first = block[at]!;
  if (first & 0x80) return base256(block, at, lengthBytes, what);
  const end = at + lengthBytes;
  let from = at;
  while (from < end && (block[from] === 0x20 || block[from] === 0)) from++;
  let value = 0;
  for (; from < end; from++) {
    const byte = block[from]!;
    if (byte === 0 || byte === 0x20) break;
    if (byte < 0x30 || byte > 0x37) {
      throw new LazydiskError('CORRUPT', `a header whose ${what} is not a number`);
    }
    value = value * 8 + (byte - 0x30);
  }
  return value;
}

function base256(block: Buffer, at: number, lengthBytes: number, what: string): number {
  const negative = (block[at]! & 0x40) !== 0;
  let value = BigInt(block[at]! & 0x7f);
  for (let byte = 1; byte < lengthBytes; byte++) value = (value << 8n) | BigInt(block[at + byte]!);
  if (negative) value -= 1n << BigInt(lengthBytes * 8 - 1);
  const asNumber = Number(value);
  if (!Number.isSafeInteger(asNumber)) {
    throw new LazydiskError('CORRUPT', `a header whose ${what} is out of range`);
  }
  return asNumber;
}
