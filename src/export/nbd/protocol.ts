/**
 * The constants of the NBD protocol, and its messages as bytes in both directions. No I/O. All of NBD is big-endian.
 * Source: doc/proto.md of the Network Block Device project.
 */

export const INIT_MAGIC: Buffer = Buffer.from('NBDMAGIC', 'latin1');
export const OPTION_MAGIC: Buffer = Buffer.from('IHAVEOPT', 'latin1');
export const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;

export const HANDSHAKE_FLAGS = { fixedNewstyle: 1, noZeroes: 2 };

export const OPTION = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

export const REPLY = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  unsupported: 0x80000001,
  policy: 0x80000002,
  invalid: 0x80000003,
  unknown: 0x80000006,
  tooBig: 0x80000009,
} as const;

export const INFO = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

export const TRANSMISSION_FLAGS = {
  hasFlags: 1,
  readOnly: 2,
  sendFlush: 4,
  sendDf: 128,
  canMultiConn: 256,
  sendCache: 1024,
} as const;

export const COMMAND = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

export const COMMAND_FLAG = { fua: 1, noHole: 2, df: 4, reqOne: 8, fastZero: 16 } as const;

export const NBD_ERROR = {
  EPERM: 1,
  EIO: 5,
  EINVAL: 22,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

export const CHUNK_TYPE = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;
export const CHUNK_DONE = 1;

/** Extents of base:allocation: 3 is a hole that reads as zeroes. */
export const EXTENT_HOLE_AND_ZERO = 3;
export const BASE_ALLOCATION = 'base:allocation';
/** The id of the only context; any number would do. */
export const BASE_ALLOCATION_ID = 1;

export const REQUEST_BYTES = 28;
export const SIMPLE_REPLY_BYTES = 16;
export const STRUCTURED_HEADER_BYTES = 20;

export const BLOCK_SIZE = { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 } as const;
/** The longest name that the protocol allows. */
export const NAME_BYTES_MAX = 4096;

/** A client's request, without a write's payload. The cookie is echoed in replies, as two halves. */
export interface Request {
  readonly flags: number;
  readonly type: number;
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly offset: number;
  readonly lengthBytes: number;
}

/** The request at `at`, or undefined if its magic is wrong. An offset of 2^53 or more is returned as Infinity. */
export function readRequest(bytes: Buffer, at: number): Request | undefined {
  if (bytes.readUInt32BE(at) !== REQUEST_MAGIC) return undefined;
  const high = bytes.readUInt32BE(at + 16);
  return {
    flags: bytes.readUInt16BE(at + 4),
    type: bytes.readUInt16BE(at + 6),
    cookieHigh: bytes.readUInt32BE(at + 8),
    cookieLow: bytes.readUInt32BE(at + 12),
    offset: high < 2 ** 21 ? high * 2 ** 32 + bytes.readUInt32BE(at + 20) : Number.POSITIVE_INFINITY,
    lengthBytes: bytes.readUInt32BE(at + 24),
  };
}

/** Writes a simple reply's header into `target` at `at`; for a read without an error, the data follows. */
export function putSimpleReply(target: Buffer, at: number, request: Request, error: number): void {
  target.writeUInt32BE(SIMPLE_REPLY_MAGIC, at);
  target.writeUInt32BE(error, at + 4);
  target.writeUInt32BE(request.cookieHigh, at + 8);
  target.writeUInt32BE(request.cookieLow, at + 12);
}

export interface StructuredHeader {
  readonly type: number;
  readonly flags: number;
  readonly payloadBytes: number;
}

/** Writes a structured reply chunk's header into `target` at `at`; `payloadBytes` follow. */
export function putStructuredHeader(
  target: Buffer,
  at: number,
  request: Request,
  { type, flags, payloadBytes }: StructuredHeader,
): void {
  target.writeUInt32BE(STRUCTURED_REPLY_MAGIC, at);
  target.writeUInt16BE(flags, at + 4);
  target.writeUInt16BE(type, at + 6);
  target.writeUInt32BE(request.cookieHigh, at + 8);
  target.writeUInt32BE(request.cookieLow, at + 12);
  target.writeUInt32BE(payloadBytes, at + 16);
}

/** The last chunk of a structured reply that failed, with a message for people. */
export function structuredError(request: Request, error: number, text: string): Buffer {
  const message = Buffer.from(text.slice(0, 1000), 'utf8');
  const chunk = Buffer.alloc(STRUCTURED_HEADER_BYTES + 6 + message.length);
  const payloadBytes = 6 + message.length;
  putStructuredHeader(chunk, 0, request, { type: CHUNK_TYPE.error, flags: CHUNK_DONE, payloadBytes });
  chunk.writeUInt32BE(error, STRUCTURED_HEADER_BYTES);
  chunk.writeUInt16BE(message.length, STRUCTURED_HEADER_BYTES + 4);
  message.copy(chunk, STRUCTURED_HEADER_BYTES + 6);
  return chunk;
}

/** A server's reply to an option. */
export function optionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const bytes = Buffer.alloc(20 + data.length);
  bytes.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(type, 12);
  bytes.writeUInt32BE(data.length, 16);
  data.copy(bytes, 20);
  return bytes;
}

/** A 32-bit length and then the text. */
export function lengthPrefixed(text: string): Buffer {
  const body = Buffer.from(text, 'utf8');
  const bytes = Buffer.alloc(4 + body.length);
  bytes.writeUInt32BE(body.length, 0);
  body.copy(bytes, 4);
  return bytes;
}
