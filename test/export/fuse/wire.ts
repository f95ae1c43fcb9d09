/** The kernel's side of the FUSE protocol for tests: requests written from linux/fuse.h, independent of the parser. */
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';

export interface WireRequest {
  readonly opcode: number;
  readonly unique: number;
  readonly nodeId: number;
  readonly body: Uint8Array;
}

/** The thread that sends all requests. */
export const READER_PID = 1;

/** Little-endian fields, in order: each a number with `u32` or `u64` before it. */
export function fields(...values: (['u32', number] | ['u64', number])[]): Buffer {
  return Buffer.concat(
    values.map(([kind, value]) => {
      const out = Buffer.alloc(kind === 'u32' ? 4 : 8);
      if (kind === 'u32') out.writeUInt32LE(value);
      else out.writeBigUInt64LE(BigInt(value));
      return out;
    }),
  );
}

/** The requests as the channel puts them into its buffer: each padded to 8 bytes. */
export function writeRequests(requests: readonly WireRequest[]): Buffer {
  return Buffer.concat(
    requests.flatMap(({ opcode, unique, nodeId, body }) => {
      const length = 40 + body.length;
      const header = fields(
        ['u32', length],
        ['u32', opcode],
        ['u64', unique],
        ['u64', nodeId],
        ['u32', 0],
        ['u32', 0],
        ['u32', READER_PID],
        ['u32', 0],
      );
      return [header, body, Buffer.alloc(-length & 7)];
    }),
  );
}

/** struct fuse_read_in. */
export function readBody(offset: number, lengthBytes: number, openFlags = 0): Buffer {
  return fields(
    ['u64', 0],
    ['u64', offset],
    ['u32', lengthBytes],
    ['u32', 0],
    ['u64', 0],
    ['u32', openFlags],
    ['u32', 0],
  );
}

/** Chunks of the pattern: `z` zero, `d` data. */
export function diskOf(pattern: string): Buffer {
  return Buffer.concat(
    [...pattern].map((kind, at) =>
      kind === 'z' ? Buffer.alloc(CHUNK_BYTES) : Buffer.alloc(CHUNK_BYTES, at + 1),
    ),
  );
}
