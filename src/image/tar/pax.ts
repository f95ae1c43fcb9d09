/**
 * PAX extended headers: records `LENGTH KEY=VALUE\n` that override the header which follows. Values are bytes,
 * not text: an xattr holds NULs, a name need not be UTF-8 (whatever `hdrcharset` says, bytes stay bytes).
 * Spec: POSIX.1-2017 pax, "pax Extended Header"; keys of GNU tar, star (SCHILY), libarchive and Red Hat.
 */
import { LazydiskError } from '../../errors.ts';

/** Extended headers of one entry together, and the global ones together; also the longest sparse map in them. */
export const PAX_BYTES_MAX = 1024 * 1024;
const XATTR_NAME_BYTES_MAX = 255;
const XATTR_VALUE_BYTES_MAX = 64 * 1024;
const XATTRS_MAX = 256;

/** Beyond ±2^47 seconds no clock of any file system goes; it also keeps nanoseconds inside 80 bits. */
const MTIME_SECONDS_MAX = 2 ** 47;

const SCHILY = 'SCHILY.xattr.';
const LIBARCHIVE = 'LIBARCHIVE.xattr.';
const NO_XATTRS: ReadonlyMap<string, Buffer> = new Map();

/**
 * What extended headers said; a later record replaces an earlier one, an empty value takes it back. The records of an
 * entry lie over the global ones, which are looked up and never copied: there may be a hundred thousand of them.
 */
export class PaxRecords {
  readonly #globals: PaxRecords | undefined;
  /** Values are copies: a view would keep a whole input buffer alive. Undefined takes a global record back. */
  readonly #own = new Map<string, Buffer | undefined>();
  /** Those of extended attributes, by themselves: they are gone through after each header, however many others there are. */
  readonly #ownXattrs = new Map<string, Buffer | undefined>();
  /** GNU sparse 0.0 repeats its keys: offset, length, offset, length, … in order of appearance. */
  readonly sparseNumbers: number[] = [];
  #xattrs: ReadonlyMap<string, Buffer> | undefined;

  /** Of an entry, over `globals`; without them, the global ones themselves, which hold nothing that describes one entry. */
  constructor(globals?: PaxRecords) {
    this.#globals = globals;
  }

  get(key: string): Buffer | undefined {
    return this.#own.has(key) ? this.#own.get(key) : this.#globals?.get(key);
  }

  /** Reads one extended header's body. Throws CORRUPT. */
  add(body: Buffer): void {
    for (let at = 0; at < body.length; ) {
      // Some writers pad the body with NULs inside its stated size.
      if (body[at] === 0) return;
      const space = body.indexOf(0x20, at);
      const lengthText = space === -1 || space - at > 10 ? '' : body.toString('latin1', at, space);
      const end = at + Number(lengthText);
      if (!/^[0-9]+$/.test(lengthText) || end > body.length || end < space + 3 || body[end - 1] !== 0x0a) {
        throw new LazydiskError('CORRUPT', 'an extended header whose records do not add up');
      }
      const equals = body.indexOf(0x3d, space);
      if (equals === -1 || equals >= end || equals === space + 1) {
        throw new LazydiskError('CORRUPT', 'an extended header with a record without a key');
      }
      this.#set(body.toString('latin1', space + 1, equals), body.subarray(equals + 1, end - 1));
      at = end;
    }
  }

  /** The value as a byte string; throws CORRUPT if it holds a NUL, which no name may. */
  name(key: string): string | undefined {
    const value = this.get(key);
    if (value?.includes(0)) throw new LazydiskError('CORRUPT', `an extended header whose ${key} holds a NUL`);
    return value?.toString('latin1');
  }

  /** A decimal number of bytes or an id. Throws CORRUPT. */
  number(key: string): number | undefined {
    const value = this.get(key);
    return value === undefined ? undefined : decimal(value.toString('latin1'), key);
  }

  /** Seconds with a fraction, as nanoseconds; what is finer is cut off. Throws CORRUPT. */
  timeNs(key: string): bigint | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    const parts = /^(-?)([0-9]{1,16})(?:\.([0-9]*))?$/.exec(value.toString('latin1', 0, 64));
    if (!parts || value.length > 64) {
      throw new LazydiskError('CORRUPT', `an extended header whose ${key} is no time`);
    }
    const seconds = checkedSeconds(Number(parts[2]));
    const nanoseconds =
      BigInt(seconds) * 1_000_000_000n + BigInt((parts[3] ?? '').slice(0, 9).padEnd(9, '0'));
    return parts[1] ? -nanoseconds : nanoseconds;
  }

  /** Extended attributes by full name, the same map until a record of one is added. Throws CORRUPT, UNSUPPORTED. */
  xattrs(): ReadonlyMap<string, Buffer> {
    this.#xattrs ??= this.#readXattrs();
    return this.#xattrs;
  }

  #readXattrs(): ReadonlyMap<string, Buffer> {
    const inherited = this.#globals?.xattrs() ?? NO_XATTRS;
    let own: Map<string, Buffer> | undefined;
    for (const [key, value] of this.#ownXattrs) {
      const name = xattrName(key)!;
      own ??= new Map(inherited);
      if (value === undefined) own.delete(name);
      else if (key.startsWith(LIBARCHIVE)) own.set(name, Buffer.from(value.toString('latin1'), 'base64'));
      else own.set(name, value);
    }
    const found = own ?? inherited;
    if (found.size > XATTRS_MAX) {
      throw new LazydiskError('UNSUPPORTED', `${found.size} extended attributes, at most ${XATTRS_MAX} fit`);
    }
    for (const [name, value] of found) {
      if (name === '' || name.length > XATTR_NAME_BYTES_MAX || name.includes('\0')) {
        throw new LazydiskError('CORRUPT', 'an extended attribute whose name Linux would refuse');
      }
      if (value.length > XATTR_VALUE_BYTES_MAX) {
        throw new LazydiskError(
          'UNSUPPORTED',
          `extended attribute ${JSON.stringify(name)} is ${value.length} bytes, at most ${XATTR_VALUE_BYTES_MAX} fit`,
        );
      }
    }
    return found;
  }

  #set(key: string, value: Buffer): void {
    if (!this.#globals && describesEntry(key)) return;
    if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') {
      // Pairs must alternate; the position in the list says which is due.
      if ((this.sparseNumbers.length % 2 === 0) !== (key === 'GNU.sparse.offset')) {
        throw new LazydiskError('CORRUPT', 'a sparse map whose numbers do not pair up');
      }
      this.sparseNumbers.push(decimal(value.toString('latin1'), key));
      return;
    }
    const isXattr = xattrName(key) !== undefined;
    const own = isXattr ? this.#ownXattrs : this.#own;
    if (isXattr) this.#xattrs = undefined;
    // An xattr may well be empty; every other record is taken back by an empty value.
    if (value.length > 0 || key.includes('.xattr.')) own.set(key, Buffer.from(value));
    else if (this.#globals) own.set(key, undefined);
    else own.delete(key);
  }
}

/** The extended attribute that a record with this key is of, if it is of one. */
function xattrName(key: string): string | undefined {
  if (key.startsWith(SCHILY)) return key.slice(SCHILY.length);
  if (key.startsWith(LIBARCHIVE)) return percentDecoded(key.slice(LIBARCHIVE.length));
  return key === 'RHT.security.selinux' ? 'security.selinux' : undefined;
}

/** What describes one entry has no business in a global header, where it would fall on every entry. */
function describesEntry(key: string): boolean {
  return key === 'path' || key === 'linkpath' || key === 'size' || key.startsWith('GNU.sparse.');
}

/** `seconds` as it is, or CORRUPT when no file system could hold it. */
export function checkedSeconds(seconds: number): number {
  if (Math.abs(seconds) > MTIME_SECONDS_MAX) {
    throw new LazydiskError('CORRUPT', 'a modification time beyond all bounds');
  }
  return seconds;
}

export function decimal(digits: string, what: string): number {
  const value = /^[0-9]{1,20}$/.test(digits) ? Number(digits) : Number.NaN;
  if (!Number.isSafeInteger(value)) {
    throw new LazydiskError('CORRUPT', `an extended header whose ${what} is no number`);
  }
  return value;
}

/** libarchive percent-encodes what is not printable in an xattr's name; the rest stays as it is. */
function percentDecoded(name: string): string {
  return name.replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) =>
    String.fromCharCode(Number.parseInt(hex, 16)),
  );
}
