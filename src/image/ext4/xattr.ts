/**
 * Extended attributes: in the inode after its fields while they fit, the rest in one separate block. ACLs are stored in
 * ext4's short form. Source: the kernel's Documentation/filesystems/ext4/attributes.rst.
 */
import { LazydiskError } from '../../errors.ts';
import { quote } from '../quote.ts';
import { crc32c, crc32cOfUint64 } from './crc32c.ts';
import { BLOCK_BYTES, INODE_BYTES } from './geometry.ts';
import { INODE } from './layout.ts';

const MAGIC = 0xea020000;
const INODE_HEADER_BYTES = 4;
const BLOCK_HEADER_BYTES = 32;
const ENTRY_BYTES = 16;
/** Four zero bytes terminate the list of entries. */
const END_BYTES = 4;
const NAME_BYTES_MAX = 255;

/** Prefixes with their number on disk; the rest of the name is stored. The kernel reads back only these. */
const PREFIXES: readonly [string, number][] = [
  ['user.', 1],
  ['trusted.', 4],
  ['security.', 6],
];
/** ACLs are attributes with an empty name. */
const ACLS = new Map([
  ['system.posix_acl_access', 2],
  ['system.posix_acl_default', 3],
]);
/** Tags of ACL entries: named users and groups (2, 8), which have an id, and owner, group, mask and others. */
const ACL_TAGS_WITH_ID = [2, 8];
const ACL_TAGS = [1, 4, 16, 32, ...ACL_TAGS_WITH_ID];

interface Attribute {
  readonly index: number;
  readonly name: Buffer;
  readonly value: Buffer;
}

/** An inode's attributes, divided. */
export interface DividedXattrs {
  readonly inInode: readonly Attribute[];
  readonly inBlock: readonly Attribute[];
}

const NONE: DividedXattrs = { inInode: [], inBlock: [] };

/**
 * Divides attributes between inode and block. Throws UNSUPPORTED for a name outside ext4's namespaces, CORRUPT for a
 * malformed ACL, NO_SPACE if they do not fit in the inode and one block.
 */
export function divideXattrs(xattrs: ReadonlyMap<string, Buffer>): DividedXattrs {
  if (xattrs.size === 0) return NONE;
  const all = [...xattrs].map(([name, value]) => attributeOf(name, value));
  // The order in which the kernel looks for a name in a block.
  all.sort((a, b) => a.index - b.index || a.name.length - b.name.length || Buffer.compare(a.name, b.name));
  const inInode: Attribute[] = [];
  const inBlock: Attribute[] = [];
  let inodeRoom = INODE_BYTES - INODE.xattrs - INODE_HEADER_BYTES - END_BYTES;
  let blockRoom = BLOCK_BYTES - BLOCK_HEADER_BYTES - END_BYTES;
  for (const attribute of all) {
    const bytes = ENTRY_BYTES + align4(attribute.name.length) + align4(attribute.value.length);
    if (bytes <= inodeRoom) {
      inodeRoom -= bytes;
      inInode.push(attribute);
    } else {
      blockRoom -= bytes;
      inBlock.push(attribute);
    }
  }
  if (blockRoom < 0) {
    throw new LazydiskError('NO_SPACE', 'its extended attributes do not fit in one block of the disk');
  }
  return { inInode, inBlock };
}

/** Fills the area from INODE.xattrs to the inode's end. */
export function writeInodeXattrs(area: Buffer, attributes: readonly Attribute[]): void {
  if (attributes.length === 0) return;
  area.writeUInt32LE(MAGIC, 0);
  writeAttributes(area, INODE_HEADER_BYTES, INODE_HEADER_BYTES, attributes);
}

/** Fills the block at `blockNumber` of the disk; `seed` is the file system's checksum seed. */
export function writeXattrBlock(
  block: Buffer,
  attributes: readonly Attribute[],
  blockNumber: number,
  seed: number,
): void {
  block.writeUInt32LE(MAGIC, 0);
  // Reference count 1, and one block.
  block.writeUInt32LE(1, 4);
  block.writeUInt32LE(1, 8);
  block.writeUInt32LE(writeAttributes(block, BLOCK_HEADER_BYTES, 0, attributes), 12);
  // The checksum is at 16, and counts as zero.
  block.writeUInt32LE(crc32c(crc32cOfUint64(seed, blockNumber), block), 16);
}

function align4(bytes: number): number {
  return (bytes + 3) & ~3;
}

function attributeOf(fullName: string, value: Buffer): Attribute {
  const acl = ACLS.get(fullName);
  if (acl) return { index: acl, name: Buffer.alloc(0), value: shortAcl(value) };
  const found = PREFIXES.find(([prefix]) => fullName.startsWith(prefix) && fullName.length > prefix.length);
  if (!found || fullName.length - found[0].length > NAME_BYTES_MAX) {
    throw new LazydiskError('UNSUPPORTED', `an extended attribute named ${quote(fullName)}`);
  }
  return { index: found[1], name: Buffer.from(fullName.slice(found[0].length), 'latin1'), value };
}

/**
 * Linux passes ACLs as version 2 with an id in every entry; ext4 stores version 1, where only named users and groups
 * have one. An ACL that the kernel would refuse to read back is refused here.
 */
function shortAcl(value: Buffer): Buffer {
  if (value.length < 4 || (value.length - 4) % 8 !== 0 || value.readUInt32LE(0) !== 2) {
    throw new LazydiskError('CORRUPT', 'its ACL is malformed');
  }
  const parts: Buffer[] = [Buffer.from([1, 0, 0, 0])];
  for (let at = 4; at < value.length; at += 8) {
    const tag = value.readUInt16LE(at);
    if (!ACL_TAGS.includes(tag)) throw new LazydiskError('CORRUPT', `its ACL has an entry of kind ${tag}`);
    parts.push(value.subarray(at, at + (ACL_TAGS_WITH_ID.includes(tag) ? 8 : 4)));
  }
  return Buffer.concat(parts);
}

/**
 * Writes entries from `from` up, values from the end down; offsets count from `origin`. Returns the hash of all
 * attributes, by which the kernel finds equal blocks; 0, which means that the block is not shared, if any attribute's
 * hash is 0.
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
  let anyUnhashed = false;
  for (const { index, name, value } of attributes) {
    valueAt -= align4(value.length);
    value.copy(area, valueAt);
    const hash = attributeHash(name, value);
    area[at] = name.length;
    area[at + 1] = index;
    area.writeUInt16LE(value.length === 0 ? 0 : valueAt - origin, at + 2);
    area.writeUInt32LE(value.length, at + 8);
    area.writeUInt32LE(hash, at + 12);
    name.copy(area, at + ENTRY_BYTES);
    at += ENTRY_BYTES + align4(name.length);
    hashOfAll = ((hashOfAll << 16) ^ (hashOfAll >>> 16) ^ hash) >>> 0;
    anyUnhashed ||= hash === 0;
  }
  return anyUnhashed ? 0 : hashOfAll;
}

function attributeHash(name: Buffer, value: Buffer): number {
  let hash = 0;
  for (const byte of name) hash = (hash << 5) ^ (hash >>> 27) ^ byte;
  const padded = Buffer.alloc(align4(value.length));
  value.copy(padded);
  for (let at = 0; at < padded.length; at += 4) hash = (hash << 16) ^ (hash >>> 16) ^ padded.readUInt32LE(at);
  return hash >>> 0;
}
