/**
 * A small NBD client for tests: it sends what a test wants, right or wrong, and parses replies one by one. It reads
 * only when it is told to, so a test can be a client that does not read its replies.
 */
import { once } from 'node:events';
import net from 'node:net';
import {
  CHUNK_DONE,
  CHUNK_TYPE,
  INIT_MAGIC,
  lengthPrefixed,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  REPLY,
  REQUEST_BYTES,
  REQUEST_MAGIC,
  type Request,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_HEADER_BYTES,
  STRUCTURED_REPLY_MAGIC,
} from '../../src/export/nbd/protocol.ts';

/** A request's bytes. */
export function writeRequest(request: Request): Buffer {
  const bytes = Buffer.allocUnsafe(REQUEST_BYTES);
  bytes.writeUInt32BE(REQUEST_MAGIC, 0);
  bytes.writeUInt16BE(request.flags, 4);
  bytes.writeUInt16BE(request.type, 6);
  bytes.writeUInt32BE(request.cookieHigh, 8);
  bytes.writeUInt32BE(request.cookieLow, 12);
  bytes.writeBigUInt64BE(BigInt(request.offset), 16);
  bytes.writeUInt32BE(request.lengthBytes, 24);
  return bytes;
}

export type Where = { path: string } | { host: string; port: number };

export interface OptionReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

/** One chunk of a structured reply, or a simple reply as `type` -1. */
export interface Chunk {
  readonly type: number;
  readonly done: boolean;
  readonly cookie: number;
  /** An NBD_ERROR; 0 for none. */
  readonly error: number;
  readonly payload: Buffer;
}

/** The reply to one request. */
export interface Answer {
  readonly cookie: number;
  readonly error: number;
  /** The text of a structured error. */
  readonly text: string;
  /** The bytes of a read, with holes filled in. */
  readonly data: Buffer;
  readonly chunks: readonly Chunk[];
}

export class NbdClient {
  readonly socket: net.Socket;
  structured = false;
  /** Lengths of reads by cookie: a simple reply does not say how much follows. */
  readonly #reads = new Map<number, Request>();
  /** Chunks of incomplete replies, by cookie. */
  readonly #chunks = new Map<number, Chunk[]>();
  #cookie = 0;
  #got: Buffer[] = [];
  #gotBytes = 0;
  #isOver = false;
  #wake = () => {};

  private constructor(socket: net.Socket) {
    this.socket = socket;
    socket.pause();
    socket.on('error', () => {});
    socket.on('data', (data: Buffer) => {
      this.#got.push(data);
      this.#gotBytes += data.length;
      this.#wake();
    });
    for (const event of ['end', 'close']) {
      socket.on(event, () => {
        this.#isOver = true;
        this.#wake();
      });
    }
  }

  /** Returns a connected client that has read nothing. */
  static async raw(where: Where): Promise<NbdClient> {
    const socket = net.connect({ ...where, allowHalfOpen: true });
    const client = new NbdClient(socket);
    await once(socket, 'connect');
    return client;
  }

  /** Returns one that has read the greeting and replied with `flags` (fixed newstyle and no zeroes). */
  static async connect(where: Where, flags = 3): Promise<NbdClient> {
    const client = await NbdClient.raw(where);
    const greeting = await client.read(18);
    if (!greeting.subarray(0, 16).equals(Buffer.concat([INIT_MAGIC, OPTION_MAGIC])))
      throw new Error('no NBD greeting');
    const answer = Buffer.alloc(4);
    answer.writeUInt32BE(flags);
    client.socket.write(answer);
    return client;
  }

  /** Returns one in the transmission phase of `name`. */
  static async open(
    where: Where,
    name = '',
    { structured = true, allocation = structured }: { structured?: boolean; allocation?: boolean } = {},
  ): Promise<NbdClient> {
    const client = await NbdClient.connect(where);
    if (structured) await client.ask(OPTION.structuredReply);
    if (allocation) await client.ask(OPTION.setMetaContext, contextQuery(name, ['base:allocation']));
    const replies = await client.ask(OPTION.go, goData(name));
    if (replies.at(-1)!.type !== REPLY.ack) throw new Error(`GO was refused: ${replies.at(-1)!.data}`);
    return client;
  }

  /** Reads exactly `lengthBytes`; throws if the server closes before. */
  async read(lengthBytes: number): Promise<Buffer> {
    while (this.#gotBytes < lengthBytes && !this.#isOver) await this.#more();
    if (this.#gotBytes < lengthBytes)
      throw new Error(`closed after ${this.#gotBytes} of ${lengthBytes} bytes`);
    if (this.#got.length !== 1) this.#got = [Buffer.concat(this.#got)];
    const [all] = this.#got as [Buffer];
    this.#got = [all.subarray(lengthBytes)];
    this.#gotBytes -= lengthBytes;
    return all.subarray(0, lengthBytes);
  }

  /** Reads all bytes until the server closes. */
  async rest(): Promise<Buffer> {
    while (!this.#isOver) await this.#more();
    this.socket.destroy();
    return await this.read(this.#gotBytes);
  }

  /** Reads once from the socket. */
  async #more(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    this.socket.resume();
    await promise;
    this.socket.pause();
  }

  option(option: number, data: Buffer = Buffer.alloc(0)): void {
    this.socket.write(optionBytes(option, data));
  }

  async optionReply(): Promise<OptionReply> {
    const head = await this.read(20);
    if (head.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) throw new Error('not an option reply');
    const data = await this.read(head.readUInt32BE(16));
    return { option: head.readUInt32BE(8), type: head.readUInt32BE(12), data };
  }

  /** Sends an option and reads its replies, with the last one: an ACK or an error. */
  async ask(option: number, data: Buffer = Buffer.alloc(0)): Promise<OptionReply[]> {
    this.option(option, data);
    const replies: OptionReply[] = [];
    for (;;) {
      const reply = await this.optionReply();
      if (reply.option !== option) throw new Error(`reply to option ${reply.option}, not ${option}`);
      replies.push(reply);
      if (reply.type === REPLY.ack || reply.type >= 0x80000000) break;
    }
    if (option === OPTION.structuredReply && replies.at(-1)!.type === REPLY.ack) this.structured = true;
    return replies;
  }

  /** Sends a request (and `data` after it); returns its cookie. */
  send(fields: Partial<Request> & { type: number }, data: Buffer = Buffer.alloc(0)): number {
    const request = {
      flags: 0,
      cookieHigh: 7,
      cookieLow: ++this.#cookie,
      offset: 0,
      lengthBytes: 0,
      ...fields,
    };
    if (request.type === 0) this.#reads.set(request.cookieLow, request);
    this.socket.write(data.length > 0 ? Buffer.concat([writeRequest(request), data]) : writeRequest(request));
    return request.cookieLow;
  }

  async chunk(): Promise<Chunk> {
    const magic = (await this.read(4)).readUInt32BE();
    const isSimple = magic === SIMPLE_REPLY_MAGIC;
    if (!isSimple && magic !== STRUCTURED_REPLY_MAGIC) throw new Error(`magic ${magic.toString(16)}`);
    const head = await this.read((isSimple ? SIMPLE_REPLY_BYTES : STRUCTURED_HEADER_BYTES) - 4);
    if (head.readUInt32BE(4) !== 7) throw new Error('a wrong cookie');
    const cookie = head.readUInt32BE(8);
    if (isSimple) {
      const error = head.readUInt32BE(0);
      const request = this.#reads.get(cookie);
      if (request && this.structured) throw new Error('a simple reply to a read in a structured session');
      const payload = await this.read(request && error === 0 ? request.lengthBytes : 0);
      return { type: -1, done: true, cookie, error, payload };
    }
    if (!this.structured) throw new Error('a structured reply that was not negotiated');
    const type = head.readUInt16BE(2);
    const payload = await this.read(head.readUInt32BE(12));
    const error = type >= 0x8000 ? payload.readUInt32BE(0) : 0;
    return { type, done: (head.readUInt16BE(0) & CHUNK_DONE) !== 0, cookie, error, payload };
  }

  /** Returns the next complete reply; chunks of others may come in between. */
  async answer(): Promise<Answer> {
    for (;;) {
      const chunk = await this.chunk();
      const chunks = this.#chunks.get(chunk.cookie) ?? [];
      chunks.push(chunk);
      if (!chunk.done) {
        this.#chunks.set(chunk.cookie, chunks);
        continue;
      }
      this.#chunks.delete(chunk.cookie);
      return assemble(chunks, this.#reads.get(chunk.cookie));
    }
  }

  /** Sends one request and reads its reply. */
  async request(fields: Partial<Request> & { type: number }, data?: Buffer): Promise<Answer> {
    this.send(fields, data);
    return await this.answer();
  }

  close(): void {
    this.socket.destroy();
  }
}

function assemble(chunks: readonly Chunk[], read: Request | undefined): Answer {
  const failed = chunks.find(({ error }) => error !== 0);
  const text = failed && failed.type >= 0 ? failed.payload.subarray(6).toString('utf8') : '';
  const result = { cookie: chunks[0]!.cookie, error: failed?.error ?? 0, text, chunks };
  if (!read || failed) return { ...result, data: Buffer.alloc(0) };
  if (chunks[0]!.type === -1) return { ...result, data: chunks[0]!.payload };
  const data = Buffer.alloc(read.lengthBytes, 0xee);
  let coveredBytes = 0;
  for (const { type, payload } of chunks) {
    const at = Number(payload.readBigUInt64BE(0)) - read.offset;
    if (type === CHUNK_TYPE.offsetHole) {
      data.fill(0, at, at + payload.readUInt32BE(8));
      coveredBytes += payload.readUInt32BE(8);
    } else if (type === CHUNK_TYPE.offsetData) {
      payload.copy(data, at, 8);
      coveredBytes += payload.length - 8;
    } else {
      throw new Error(`chunk type ${type} in a read`);
    }
  }
  if (coveredBytes !== read.lengthBytes) throw new Error(`${coveredBytes} of ${read.lengthBytes} bytes came`);
  return { ...result, data };
}

export function optionBytes(option: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(16);
  OPTION_MAGIC.copy(head);
  head.writeUInt32BE(option, 8);
  head.writeUInt32BE(data.length, 12);
  return Buffer.concat([head, data]);
}

/** The data of GO and INFO. */
export function goData(name: string, infos: readonly number[] = []): Buffer {
  const tail = Buffer.alloc(2 + infos.length * 2);
  tail.writeUInt16BE(infos.length);
  infos.forEach((info, n) => void tail.writeUInt16BE(info, 2 + n * 2));
  return Buffer.concat([lengthPrefixed(name), tail]);
}

/** The data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function contextQuery(name: string, queries: readonly string[]): Buffer {
  const count = Buffer.alloc(4);
  count.writeUInt32BE(queries.length);
  return Buffer.concat([lengthPrefixed(name), count, ...queries.map(lengthPrefixed)]);
}
