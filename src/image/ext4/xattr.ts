/**
 * Extended attributes: behind the inode's fields while they fit there, the rest in one block of their own. ACLs
 * are kept in ext4's own short form. Source: the kernel's Documentation/filesystems/ext4/attributes.rst.
 */
import { LazydiskError } from '../../errors.ts';
import { crc32c, crc32cOfUint32, crc32cOfUint64 } from './crc32c.ts';
import { BLOCK_BYTES, INODE_BYTES } from './geometry.ts';

/** Where an inode's own attributes start: behind 128 bytes and 32 extra ones. */
export const INODE_XATTR_OFFSET = 160;
const MAGIC = 0xea020000;
const BLOCK_HEADER_BYTES = 32;

/** Prefixes with their number on disk; what is left of the name is stored. The first that matches counts. */
const PREFIXES: readonly [string, number][] = [
  ['system.posix_acl_access', 2],
  ['system.posix_acl_default', 3],
  ['user.', 1],
  ['trusted.', 4],
  ['security.', 6],
  ['system.', 7],
];

interface Attribute {
  readonly index: number;
  readonly name: Buffer;
  readonly value: Buffer;
}

/** An inode's attributes, divided. `block` is undefined where none is needed. */
export interface DividedXattrs {
  readonly inInode: readonly Attribute[];
  readonly inBlock: readonly Attribute[];
}

/** Throws UNSUPPORTED, naming `path`, for a name outside ext4's name spaces; NO_SPACE for what does not fit. */
export function divideXattrs(xattrs: ReadonlyMap<string, Buffer>, path: string): DividedXattrs {
  const all = [...xattrs].map(([name, value]) => attributeOf(name, value, path));
  all.sort((a, b) => a.index - b.index || a.name.length - b.name.length || Buffer.compare(a.name, b.name));
  const inInode: Attribute[] = [];
  const inBlock: Attribute[] = [];
  let inodeRoom = INODE_BYTES - INODE_XATTR_OFFSET - 4 - 4;
  let blockRoom = BLOCK_BYTES - BLOCK_HEADER_BYTES - 4;
  for (const attribute of all) {
    const bytes = attributeBytes(attribute);
    if (bytes <= inodeRoom) {
      inodeRoom -= bytes;
      inInode.push(attribute);
    } else {
      blockRoom -= bytes;
      inBlock.push(attribute);
    }
  }
  if (blockRoom < 0) {
    throw new LazydiskError(
      'NO_SPACE',
      `${path}: its extended attributes do not fit into one block of the disk`,
    );
  }
  return { inInode, inBlock };
}

/** The bytes from INODE_XATTR_OFFSET to the inode's end. */
export function renderInodeXattrs(attributes: readonly Attribute[]): Buffer {
  const area = Buffer.alloc(INODE_BYTES - INODE_XATTR_OFFSET);
  if (attributes.length === 0) return area;
  area.writeUInt32LE(MAGIC, 0);
  writeAttributes(area, 4, 4, attributes);
  return area;
}

/** The block at `blockNumber` of the disk; `seed` is the file system's checksum seed. */
export function renderXattrBlock(
  attributes: readonly Attribute[],
  blockNumber: number,
  seed: number,
): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES);
  block.writeUInt32LE(MAGIC, 0);
  block.writeUInt32LE(1, 4);
  block.writeUInt32LE(1, 8);
  block.writeUInt32LE(writeAttributes(block, BLOCK_HEADER_BYTES, 0, attributes), 12);
  let sum = crc32c(crc32cOfUint64(seed, blockNumber), block, 0, 16);
  sum = crc32c(crc32cOfUint32(sum, 0), block, 20);
  block.writeUInt32LE(sum, 16);
  return block;
}

function attributeBytes({ name, value }: Attribute): number {
  return 16 + align4(name.length) + align4(value.length);
}

function align4(bytes: number): number {
  return (bytes + 3) & ~3;
}

function attributeOf(fullName: string, value: Buffer, path: string): Attribute {
  const found = PREFIXES.find(([prefix]) => fullName.startsWith(prefix));
  const rest = found ? Buffer.from(fullName.slice(found[0].length), 'latin1') : Buffer.alloc(0);
  const isAcl = found?.[1] === 2 || found?.[1] === 3;
  if (!found || rest.length > 255 || isAcl === rest.length > 0) {
    throw new LazydiskError('UNSUPPORTED', `${path}: extended attribute ${JSON.stringify(fullName)}`);
  }
  return { index: found[1], name: rest, value: isAcl ? shortAcl(value, path) : value };
}

/**
 * Linux hands ACLs about as version 2 with an id in every entry; ext4 stores version 1, where only named users
 * and groups (tags 2 and 8) have one.
 */
function shortAcl(value: Buffer, path: string): Buffer {
  if (value.length < 4 || (value.length - 4) % 8 !== 0 || value.readUInt32LE(0) !== 2) {
    throw new LazydiskError('CORRUPT', `${path}: its ACL is malformed`);
  }
  const parts: Buffer[] = [Buffer.from([1, 0, 0, 0])];
  for (let at = 4; at < value.length; at += 8) {
    const tag = value.readUInt16LE(at);
    parts.push(value.subarray(at, at + (tag === 2 || tag === 8 ? 8 : 4)));
  }
  return Buffer.concat(parts);
}

/**
 * Entries from `from` up, values from the end down; offsets count from `origin`. Returns the hash of all, by which
 * the kernel finds equal blocks.
 */
function writeAttributes(
  area: Buffer,
  from: number,
  origin: number,
  attributes: readonly Attribute[],
): number {
  let at = from;
  let valueAt = area.length;
  let hashOfAll = 0;
  for (const { index, name, value } of attributes) {
    valueAt -= align4(value.length);
    value.copy(area, valueAt);
    const hash = attributeHash(name, value);
    area[at] = name.length;
    area[at + 1] = index;
    area.writeUInt16LE(value.length === 0 ? 0 : valueAt - origin, at + 2);
    area.writeUInt32LE(value.length, at + 8);
    area.writeUInt32LE(hash, at + 12);
    name.copy(area, at + 16);
    at += 16 + align4(name.length);
    hashOfAll = ((hashOfAll << 16) ^ (hashOfAll >>> 16) ^ hash) >>> 0;
  }
  return hashOfAll;
}

function attributeHash(name: Buffer, value: Buffer): number {
  let hash = 0;
  for (const byte of name) hash = (hash << 5) ^ (hash >>> 27) ^ byte;
  const padded = Buffer.alloc(align4(value.length));
  value.copy(padded);
  for (let at = 0; at < padded.length; at += 4) hash = (hash << 16) ^ (hash >>> 16) ^ padded.readUInt32LE(at);
  return hash >>> 0;
}
