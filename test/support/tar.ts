/**
 * Small tar archives from plain objects, with control over every byte: packages encode names and PAX values as text and
 * refuse malformed ones, but tests need binary and malformed ones.
 */

/** Bytes, or text encoded as UTF-8. */
export type Bytes = string | Buffer;

export interface TarEntrySpec {
  name: Bytes;
  /** Default: `directory` if the name ends in a slash, otherwise `file`. */
  type?: 'file' | 'directory' | 'link' | 'symlink' | 'char' | 'block' | 'fifo';
  /** Default 0644, directories 0755. */
  mode?: number;
  uid?: number;
  gid?: number;
  /** Nanoseconds since 1970 if it is a bigint, otherwise seconds. */
  mtime?: bigint | number;
  body?: Bytes;
  /** Target of symlinks and hard links. */
  target?: Bytes;
  major?: number;
  minor?: number;
  xattrs?: Record<string, Bytes>;
  /** More PAX records, appended last. */
  pax?: [string, Bytes][];
  /** Replaces the typeflag. */
  typeflag?: string;
  /** Appended unchanged instead of an entry. */
  raw?: Buffer;
}

const TYPEFLAGS = { file: '0', link: '1', symlink: '2', char: '3', block: '4', directory: '5', fifo: '6' };

/** The archive with its end marker; names over 100 bytes, fractions of seconds and big numbers go into PAX headers. */
export function packTar(entries: TarEntrySpec[]): Buffer {
  return Buffer.concat([...entries.map(packEntry), Buffer.alloc(1024)]);
}

export function packEntry(spec: TarEntrySpec): Buffer {
  if (spec.raw) return spec.raw;
  const name = Buffer.from(spec.name);
  const target = Buffer.from(spec.target ?? '');
  const type = spec.type ?? (name.at(-1) === 0x2f ? 'directory' : 'file');
  const body = Buffer.from(spec.body ?? '');
  const mtimeNs = typeof spec.mtime === 'bigint' ? spec.mtime : BigInt(Math.round((spec.mtime ?? 0) * 1e9));
  const records: [string, Bytes][] = [];
  if (name.length > 100) records.push(['path', name]);
  if (target.length > 100) records.push(['linkpath', target]);
  if ((spec.uid ?? 0) > 0o7777777) records.push(['uid', String(spec.uid)]);
  if ((spec.gid ?? 0) > 0o7777777) records.push(['gid', String(spec.gid)]);
  if (mtimeNs < 0n || mtimeNs % 1_000_000_000n !== 0n || mtimeNs >= 8n ** 11n * 1_000_000_000n) {
    const size = mtimeNs < 0n ? -mtimeNs : mtimeNs;
    const fraction = String(size % 1_000_000_000n).padStart(9, '0');
    records.push(['mtime', `${mtimeNs < 0n ? '-' : ''}${size / 1_000_000_000n}.${fraction}`]);
  }
  for (const [key, value] of Object.entries(spec.xattrs ?? {})) records.push([`SCHILY.xattr.${key}`, value]);
  records.push(...(spec.pax ?? []));
  const header = packHeader({
    name,
    target,
    mode: spec.mode ?? (type === 'directory' ? 0o755 : 0o644),
    uid: Math.min(spec.uid ?? 0, 0o7777777),
    gid: Math.min(spec.gid ?? 0, 0o7777777),
    sizeBytes: body.length,
    mtime: mtimeNs < 0n ? 0 : Number(mtimeNs / 1_000_000_000n),
    typeflag: spec.typeflag ?? TYPEFLAGS[type],
    major: spec.major ?? 0,
    minor: spec.minor ?? 0,
  });
  const extended = records.length > 0 ? packPax(records) : Buffer.alloc(0);
  return Buffer.concat([extended, header, padded(body)]);
}

export interface RawHeader {
  name: Bytes;
  target?: Bytes;
  mode?: number;
  uid?: number;
  gid?: number;
  sizeBytes?: number;
  mtime?: number;
  typeflag: string;
  major?: number;
  minor?: number;
  /** Changes the block before the checksum is computed. */
  patch?: (block: Buffer) => void;
}

/** One ustar header block with a valid checksum; names are truncated to 100 bytes. */
export function packHeader(header: RawHeader): Buffer {
  const block = Buffer.alloc(512);
  const octal = (value: number, at: number, lengthBytes: number) =>
    block.write(`${(value % 8 ** (lengthBytes - 1)).toString(8).padStart(lengthBytes - 1, '0')}\0`, at);
  Buffer.from(header.name).copy(block, 0, 0, 100);
  octal(header.mode ?? 0o644, 100, 8);
  octal(header.uid ?? 0, 108, 8);
  octal(header.gid ?? 0, 116, 8);
  octal(header.sizeBytes ?? 0, 124, 12);
  octal(header.mtime ?? 0, 136, 12);
  block.write(header.typeflag, 156, 'latin1');
  Buffer.from(header.target ?? '').copy(block, 157, 0, 100);
  block.write('ustar\x0000', 257, 'latin1');
  octal(header.major ?? 0, 329, 8);
  octal(header.minor ?? 0, 337, 8);
  header.patch?.(block);
  block.fill(0x20, 148, 156);
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return block;
}

/** A PAX extended header of these records; `typeflag` 'g' makes it global. */
export function packPax(records: [string, Bytes][], typeflag = 'x'): Buffer {
  const body = Buffer.concat(
    records.map(([key, value]) => {
      const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')]);
      let lengthBytes = rest.length + 1;
      while (String(lengthBytes).length + rest.length !== lengthBytes) lengthBytes++;
      return Buffer.concat([Buffer.from(String(lengthBytes)), rest]);
    }),
  );
  return Buffer.concat([
    packHeader({ name: 'PaxHeaders/x', sizeBytes: body.length, typeflag }),
    padded(body),
  ]);
}

/** Padded with zeroes to whole blocks. */
export function padded(body: Buffer): Buffer {
  return Buffer.concat([body, Buffer.alloc((512 - (body.length % 512)) % 512)]);
}
