/**
 * PAX extended headers: records `LENGTH KEY=VALUE\n` that override the following header. Values are bytes, not text: an
 * xattr holds NULs, a name need not be UTF-8 (whatever `hdrcharset` says, bytes stay bytes). Spec: POSIX.1-2017 pax,
 * "pax Extended Header"; keys of GNU tar, star (SCHILY), libarchive and Red Hat.
 */
import { LazydiskError } from '../../errors.ts';

/**
 * Limit for the extended headers of one entry together, and for the global ones together; also for a sparse map in
 * them.
 */
export const PAX_BYTES_MAX = 1024 * 1024;
const XATTR_NAME_BYTES_MAX = 255;
const XATTR_VALUE_BYTES_MAX = 64 * 1024;
const XATTRS_MAX = 256;

/** No file system holds times beyond ±2^47 seconds; the limit also keeps nanoseconds within 80 bits. */
const MTIME_SECONDS_MAX = 2 ** 47;

const SCHILY = 'SCHILY.xattr.';
const LIBARCHIVE = 'LIBARCHIVE.xattr.';
const NO_XATTRS: ReadonlyMap<string, Buffer> = new Map();

/**
 * The records of extended headers; a later record replaces an earlier one, an empty value removes it. The records of an
 * entry override the global ones, which are looked up and never copied: there may be a hundred thousand of them.
 */
export class PaxRecords {
  readonly #globals: PaxRecords | undefined;
  /** Values are copies: a view would keep a whole input buffer alive. Undefined removes a global record. */
  readonly #own = new Map<string, Buffer | undefined>();
  /** The records of extended attributes, apart: they are read after each header, however many others there are. */
  readonly #ownXattrs = new Map<string, Buffer | undefined>();
  /** GNU sparse 0.0 repeats its keys: offset, length, offset, length, … in order of appearance. */
  readonly sparseNumbers: number[] = [];
  #xattrs: ReadonlyMap<string, Buffer> | undefined;

  /**
   * The records of an entry, over `globals`; without `globals`, the global ones, which hold nothing that describes a
   * single entry.
   */
  constructor(globals?: PaxRecords) {
    this.#globals = globals;
  }

  get(key: string): Buffer | undefined {
    return this.#own.has(key) ? this.#own.get(key) : this.#globals?.get(key);
  }

  /** Reads one extended header's body. Throws CORRUPT. */
  add(body: Buffer): void {
    for (let at = 0; at < body.length; ) {
      // Some writers pad the body with NULs within its stated size.
      if (body[at] === 0) return;
      const space = body.indexOf(0x20, at);
      const lengthText = space === -1 || space - at > 10 ? '' : body.toString('latin1', at, space);
      const end = at + Number(lengthText);
      if (!/^[0-9]+$/.test(lengthText) || end > body.length || end < space + 3 || body[end - 1] !== 0x0a) {
        throw new LazydiskError('CORRUPT', 'an extended header with malformed records');
      }
      const equals = body.indexOf(0x3d, space);
      if (equals === -1 || equals >= end || equals === space + 1) {
        throw new LazydiskError('CORRUPT', 'an extended header with a record without a key');
      }
      this.#set(body.toString('latin1', space + 1, equals), body.subarray(equals + 1, end - 1));
      at = end;
    }
  }

  /** Returns the value as a byte string; throws CORRUPT if it contains a NUL, which no name may. */
  name(key: string): string | undefined {
    const value = this.get(key);
    if (value?.includes(0))
      throw new LazydiskError('CORRUPT', `an extended header whose ${key} contains a NUL`);
    return value?.toString('latin1');
  }

  /** Returns a decimal number of bytes or an id. Throws CORRUPT. */
  number(key: string): number | undefined {
    const value = this.get(key);
    return value === undefined ? undefined : decimal(value.toString('latin1'), key);
  }

  /** Returns seconds with a fraction as nanoseconds, truncated. Throws CORRUPT. */
  timeNs(key: string): bigint | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    const parts = /^(-?)([0-9]{1,16})(?:\.([0-9]*))?$/.exec(value.toString('latin1', 0, 64));
    if (!parts || value.length > 64) {
      throw new LazydiskError('CORRUPT', `an extended header whose ${key} is not a time`);
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
      throw new LazydiskError(
        'UNSUPPORTED',
        `${found.size} extended attributes; the maximum is ${XATTRS_MAX}`,
      );
    }
    for (const [name, value] of found) {
      if (name === '' || name.length > XATTR_NAME_BYTES_MAX || name.includes('\0')) {
        throw new LazydiskError('CORRUPT', 'an extended attribute whose name Linux would refuse');
      }
      if (value.length > XATTR_VALUE_BYTES_MAX) {
        throw new LazydiskError(
          'UNSUPPORTED',
          `extended attribute ${JSON.stringify(name)} is ${value.length} bytes; the maximum is ${XATTR_VALUE_BYTES_MAX}`,
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
    // An xattr may be empty; an empty value removes any other record.
    if (value.length > 0 || key.includes('.xattr.')) own.set(key, Buffer.from(value));
    else if (this.#globals) own.set(key, undefined);
    else own.delete(key);
  }
}

/** The name of the extended attribute that a record with this key holds, if it does. */
function xattrName(key: string): string | undefined {
  if (key.startsWith(SCHILY)) return key.slice(SCHILY.length);
  if (key.startsWith(LIBARCHIVE)) return percentDecoded(key.slice(LIBARCHIVE.length));
  return key === 'RHT.security.selinux' ? 'security.selinux' : undefined;
}

/** Keys that describe a single entry are ignored in a global header, where they would apply to every entry. */
function describesEntry(key: string): boolean {
  return key === 'path' || key === 'linkpath' || key === 'size' || key.startsWith('GNU.sparse.');
}

/** Returns `seconds`; throws CORRUPT if no file system could hold it. */
export function checkedSeconds(seconds: number): number {
  if (Math.abs(seconds) > MTIME_SECONDS_MAX) {
    throw new LazydiskError('CORRUPT', 'a modification time out of range');
  }
  return seconds;
}

export function decimal(digits: string, what: string): number {
  const value = /^[0-9]{1,20}$/.test(digits) ? Number(digits) : Number.NaN;
  if (!Number.isSafeInteger(value)) {
    throw new LazydiskError('CORRUPT', `an extended header whose ${what} is not a number`);
  }
  return value;
}

/** libarchive percent-encodes unprintable characters in an xattr's name. */
function percentDecoded(name: string): string {
  return name.replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) =>
    String.fromCharCode(Number.parseInt(hex, 16)),
  );
}
