/**
 * Reads a tar archive as it streams: entries in order, bodies as views of the input's own buffers. Existing packages
 * decode PAX records and names as UTF-8, which destroys binary xattrs (file capabilities) and names in other encodings,
 * and do not support sparse files. Every length that the archive states is bounded before it is used; errors are
 * LazydiskErrors (CORRUPT, UNSUPPORTED) that name the entry.
 */
import { LazydiskError, withContext } from '../../errors.ts';
import { quote } from '../quote.ts';
import { BLOCK_BYTES, parseHeader, type TarHeader, text } from './header.ts';
import type { TarInput } from './input.ts';
import { checkedSeconds, PAX_BYTES_MAX, PaxRecords } from './pax.ts';
import {
  checkedSegments,
  oldGnuSparse,
  parseSparseMap,
  paxSparseVersion,
  readSparseMap,
  type SparseSegment,
} from './sparse.ts';

export type TarKind = 'file' | 'directory' | 'link' | 'symlink' | 'char' | 'block' | 'fifo';

export interface TarEntry {
  /** Byte string, as in the archive: it may be absolute, end in a slash, or contain `..`. */
  readonly name: string;
  readonly kind: TarKind;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
  /** Where a symlink points, or what a hard link names; byte string. */
  readonly target: string;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  readonly xattrs: ReadonlyMap<string, Buffer>;
  /** The file's size, holes included. */
  readonly sizeBytes: number;
  /** Bytes that `body` yields. */
  readonly storedBytes: number;
  /** Where `body` starts in the archive. */
  readonly bodyOffset: number;
  /** Sparse files only: where the bytes of `body` belong, in order. Otherwise the body is the file. */
  readonly segments?: readonly SparseSegment[];
  /** The stored bytes, once, in views of at most one input buffer. Bytes that are not read are skipped. */
  body(): AsyncGenerator<Buffer>;
  /** The stored bytes at once, for files that the caller knows to be small. */
  whole(): Promise<Buffer>;
}

/** The limit of Linux for a path (PATH_MAX, its NUL included), and that of ext4 for the size of a file. */
const NAME_BYTES_MAX = 4096;
const FILE_BYTES_MAX = 16 * 2 ** 40;
const ID_MAX = 2 ** 32 - 1;

const KINDS = new Map<string, TarKind>([
  ['0', 'file'],
  ['7', 'file'],
  ['S', 'file'],
  ['1', 'link'],
  ['2', 'symlink'],
  ['3', 'char'],
  ['4', 'block'],
  ['5', 'directory'],
  ['6', 'fifo'],
]);

/**
 * The entries of the archive, up to its end marker or its end. An entry's body is invalid once the next entry is
 * requested.
 */
export async function* readTar(input: TarInput): AsyncGenerator<TarEntry> {
  const globals = new PaxRecords();
  let globalBytes = 0;
  for (;;) {
    let records: PaxRecords | undefined;
    let extendedBytes = 0;
    let longName: string | undefined;
    let longLink: string | undefined;
    let header: TarHeader | undefined;
    let block: Buffer;
    for (;;) {
      const at = input.position;
      block = await input.take(BLOCK_BYTES);
      header = await locate(at, () => headerOf(block, input));
      if (!header) {
        if (extendedBytes === 0) return;
        throw new LazydiskError('CORRUPT', `tar ends at byte ${at} after an extended header`);
      }
      const { type } = header;
      if (type === 'x' || type === 'X' || type === 'L' || type === 'K') {
        extendedBytes += header.sizeBytes;
        const body = await extended(header, extendedBytes, input);
        if (type === 'L') longName = text(body, 0, body.length);
        else if (type === 'K') longLink = text(body, 0, body.length);
        else {
          records ??= new PaxRecords(globals);
          await locate(at, () => records?.add(body));
        }
      } else if (type === 'g') {
        globalBytes += header.sizeBytes;
        const body = await extended(header, globalBytes, input);
        await locate(at, () => globals.add(body));
      } else if (type === 'V') {
        await skipExactly(input, padded(header.sizeBytes), header.name);
      } else break;
    }
    records ??= globals;
    const name = longName ?? records.name('GNU.sparse.name') ?? records.name('path') ?? header.name;
    const body = new Body(input, name);
    const entry = await named(name, () => entryOf({ header, block, records, name, longLink }, input, body));
    yield entry;
    await body.finish();
  }
}

async function headerOf(block: Buffer, input: TarInput): Promise<TarHeader | undefined> {
  if (block.length === 0) return undefined;
  if (block.length < BLOCK_BYTES) throw new LazydiskError('CORRUPT', 'a truncated header');
  const header = parseHeader(block);
  if (header) {
    if (header.sizeBytes < 0) throw new LazydiskError('CORRUPT', 'a header with a negative size');
    return header;
  }
  // The end marker is two blocks of zeroes; some writers write only one, but then nothing may follow.
  const second = await input.take(BLOCK_BYTES);
  if (second.some((byte) => byte !== 0)) {
    throw new LazydiskError('CORRUPT', 'a lone block of zeroes between entries');
  }
  return undefined;
}

/** Reads the body of an extended header; `totalBytes` is the total of such headers so far. */
async function extended(header: TarHeader, totalBytes: number, input: TarInput): Promise<Buffer> {
  if (totalBytes > PAX_BYTES_MAX) {
    throw new LazydiskError(
      'UNSUPPORTED',
      `extended headers of more than ${PAX_BYTES_MAX} bytes at ${quote(header.name)}`,
    );
  }
  const body = await input.take(padded(header.sizeBytes));
  if (body.length < padded(header.sizeBytes)) {
    throw new LazydiskError('CORRUPT', `tar ends inside the extended header at ${quote(header.name)}`);
  }
  return body.subarray(0, header.sizeBytes);
}

/** The header of an entry, its block, and what extended headers before it say. */
interface EntryHeaders {
  readonly header: TarHeader;
  readonly block: Buffer;
  readonly records: PaxRecords;
  readonly name: string;
  readonly longLink: string | undefined;
}

async function entryOf(
  { header, block, records, name, longLink }: EntryHeaders,
  input: TarInput,
  body: Body,
): Promise<TarEntry> {
  let kind = KINDS.get(header.type);
  if (!kind) {
    throw new LazydiskError('UNSUPPORTED', `an entry of type ${JSON.stringify(header.type)}`);
  }
  if (name.length > NAME_BYTES_MAX) throw new LazydiskError('CORRUPT', `a name of ${name.length} bytes`);
  // Old archives mark a directory by a trailing slash instead of a type.
  if (header.type === '0' && name.endsWith('/')) kind = 'directory';
  const target = longLink ?? records.name('linkpath') ?? header.linkName;
  if (target.length > NAME_BYTES_MAX)
    throw new LazydiskError('CORRUPT', `a link target of ${target.length} bytes`);

  // Only types 0, 7 and S have a body; links state the size of their target, but no body follows.
  const carriesBody = kind === 'file' || header.type === '0';
  let storedBytes = carriesBody ? (records.number('size') ?? header.sizeBytes) : 0;
  let sizeBytes = kind === 'file' ? storedBytes : 0;
  let segments: SparseSegment[] | undefined;
  if (kind === 'file') {
    const sparse = await sparseOf(header, block, records, storedBytes, input);
    if (sparse) ({ storedBytes, sizeBytes, segments } = sparse);
    if (Math.max(sizeBytes, storedBytes) > FILE_BYTES_MAX) {
      throw new LazydiskError('UNSUPPORTED', `a file of ${sizeBytes} bytes`);
    }
  }
  input.claim(storedBytes);
  body.open(storedBytes);
  return {
    name,
    kind,
    mode: header.mode & 0o7777,
    uid: bounded(records.number('uid') ?? header.uid, ID_MAX, 'uid'),
    gid: bounded(records.number('gid') ?? header.gid, ID_MAX, 'gid'),
    mtimeNs: records.timeNs('mtime') ?? BigInt(checkedSeconds(header.mtimeSeconds)) * 1_000_000_000n,
    target: kind === 'symlink' || kind === 'link' ? target : '',
    rdevMajor: bounded(records.number('SCHILY.devmajor') ?? header.deviceMajor, 0xfff, 'device major'),
    rdevMinor: bounded(records.number('SCHILY.devminor') ?? header.deviceMinor, 0xfffff, 'device minor'),
    xattrs: records.xattrs(),
    sizeBytes,
    storedBytes,
    bodyOffset: input.position,
    ...(segments && { segments }),
    body: () => body.read(),
    whole: () => body.whole(),
  };
}

/** Reads the sparse map, if any, in any encoding; `storedBytes` includes a map in the body. */
async function sparseOf(
  header: TarHeader,
  block: Buffer,
  records: PaxRecords,
  storedBytes: number,
  input: TarInput,
): Promise<{ storedBytes: number; sizeBytes: number; segments: SparseSegment[] } | undefined> {
  let numbers: number[];
  let sizeBytes: number | undefined;
  let dataBytes = storedBytes;
  if (header.type === 'S') {
    const map = await oldGnuSparse(block, input);
    ({ numbers, realBytes: sizeBytes } = map);
  } else {
    const version = paxSparseVersion(records);
    if (!version) return undefined;
    sizeBytes = records.number('GNU.sparse.realsize') ?? records.number('GNU.sparse.size');
    if (version === '1.0') {
      const map = await readSparseMap(input);
      numbers = map.numbers;
      dataBytes -= map.mapBytes;
    } else if (version === '0.1') numbers = parseSparseMap(records.name('GNU.sparse.map')!);
    else numbers = records.sparseNumbers;
  }
  if (sizeBytes === undefined || sizeBytes < 0 || dataBytes < 0) {
    throw new LazydiskError('CORRUPT', 'a sparse file without a size');
  }
  return { storedBytes: dataBytes, sizeBytes, segments: checkedSegments(numbers, sizeBytes, dataBytes) };
}

/** An entry's stored bytes: read at most once; unread bytes are skipped before the next header. */
class Body {
  readonly #input: TarInput;
  readonly #name: string;
  #totalBytes = 0;
  #leftBytes = 0;

  constructor(input: TarInput, name: string) {
    this.#input = input;
    this.#name = name;
  }

  open(storedBytes: number): void {
    this.#totalBytes = storedBytes;
    this.#leftBytes = storedBytes;
  }

  async *read(): AsyncGenerator<Buffer> {
    while (this.#leftBytes > 0) {
      const part = await this.#input.some(this.#leftBytes);
      if (part.length === 0) this.#cutShort();
      this.#leftBytes -= part.length;
      yield part;
    }
  }

  async whole(): Promise<Buffer> {
    const bytes = await this.#input.take(this.#leftBytes);
    this.#leftBytes -= bytes.length;
    if (this.#leftBytes > 0) this.#cutShort();
    return bytes;
  }

  /** Skips the rest of the body and its padding. */
  async finish(): Promise<void> {
    const skipped = await this.#input.skip(this.#leftBytes);
    this.#leftBytes -= skipped;
    if (this.#leftBytes > 0) this.#cutShort();
    await skipExactly(this.#input, padded(this.#totalBytes) - this.#totalBytes, this.#name);
  }

  #cutShort(): never {
    const had = this.#totalBytes - this.#leftBytes;
    throw new LazydiskError(
      'CORRUPT',
      `path ${quote(this.#name)}: the tar ends after ${had} of ${this.#totalBytes} bytes`,
    );
  }
}

function padded(sizeBytes: number): number {
  return Math.ceil(sizeBytes / BLOCK_BYTES) * BLOCK_BYTES;
}

async function skipExactly(input: TarInput, lengthBytes: number, name: string): Promise<void> {
  if ((await input.skip(lengthBytes)) < lengthBytes) {
    throw new LazydiskError('CORRUPT', `path ${quote(name)}: the tar ends inside it`);
  }
}

function bounded(value: number, max: number, what: string): number {
  if (value < 0 || value > max) throw new LazydiskError('CORRUPT', `a ${what} of ${value}`);
  return value;
}

/** Runs a step of the parser, and adds the position in the archive to its errors. */
async function locate<T>(at: number, step: () => T | Promise<T>): Promise<T> {
  try {
    return await step();
  } catch (error) {
    if (!(error instanceof LazydiskError)) throw error;
    throw withContext(error, `tar at byte ${at}`);
  }
}

async function named<T>(name: string, step: () => Promise<T>): Promise<T> {
  try {
    return await step();
  } catch (error) {
    if (!(error instanceof LazydiskError)) throw error;
    throw withContext(error, `path ${quote(name)}`);
  }
}
