/**
 * The server's half of NBD's fixed newstyle negotiation, as a state machine over bytes: feed it what arrives and send
 * its answers, until it returns the device that the client chose or says that the connection must be closed. It never
 * holds more than one option. Source: doc/proto.md, "Fixed newstyle negotiation".
 */
import type { BlockDevice } from '../../drive/block-device.ts';
import type { DriveRegistry } from '../../drive/registry.ts';
import {
  BASE_ALLOCATION,
  BASE_ALLOCATION_ID,
  BLOCK_SIZE,
  HANDSHAKE_FLAGS,
  INFO,
  INIT_MAGIC,
  lengthPrefixed,
  NAME_BYTES_MAX,
  OPTION,
  OPTION_MAGIC,
  optionReply,
  REPLY,
  TRANSMISSION_FLAGS,
} from './protocol.ts';

/** The longest option data; a list of many meta contexts is the longest that makes sense. */
const OPTION_BYTES_MAX = 64 * 1024;
/** A client that has not chosen after this many options never will; one that lists needs a few more for each drive. */
const OPTIONS_MAX = 1024;
const OPTIONS_PER_DRIVE = 8;
const QUERIES_MAX = 256;
/**
 * Answer bytes for one client; a client that needs more only wants to make us send. A list needs more for each drive.
 */
const ANSWER_BYTES_MAX = 8 * 1024 * 1024;
const ANSWER_BYTES_PER_DRIVE = 1024;

/** The result of the negotiation. */
export interface Session {
  readonly device: BlockDevice;
  readonly structured: boolean;
  /** base:allocation was negotiated for this device. */
  readonly allocation: boolean;
}

/** The result of feeding bytes to the negotiation. */
export interface HandshakeStep {
  readonly answer: readonly Buffer[];
  /** Set once the negotiation is over; `rest` is the beginning of the transmission. */
  readonly session?: Session;
  readonly rest?: Buffer;
  /** The connection must be closed once the answer is sent. */
  readonly close?: boolean;
  /** The client asked about an export and got an answer: a client that works through the list makes progress. */
  readonly headway?: boolean;
}

/** The flags of an export of `device`, for EXPORT_NAME and NBD_INFO_EXPORT. */
function transmissionFlags(device: BlockDevice): number {
  const { hasFlags, readOnly, sendFlush, sendDf, canMultiConn, sendCache } = TRANSMISSION_FLAGS;
  // Several connections are safe only where no client can miss what another has not flushed.
  const unchanging = device.readOnly ? readOnly | canMultiConn : 0;
  return hasFlags | sendFlush | sendDf | sendCache | unchanging;
}

export class Handshake {
  readonly #registry: DriveRegistry;
  #bytes: Buffer = Buffer.alloc(0);
  #gotFlags = false;
  #noZeroes = false;
  #options = 0;
  #answerBytes = 0;
  #structured = false;
  /** The export that base:allocation was chosen for. */
  #allocationOf: string | undefined;

  constructor(registry: DriveRegistry) {
    this.#registry = registry;
  }

  /** The server's first message. */
  static greeting(): Buffer {
    const flags = Buffer.alloc(2);
    flags.writeUInt16BE(HANDSHAKE_FLAGS.fixedNewstyle | HANDSHAKE_FLAGS.noZeroes);
    return Buffer.concat([INIT_MAGIC, OPTION_MAGIC, flags]);
  }

  /** Processes received bytes. Must not be called again after a session or a close. */
  feed(bytes: Buffer): HandshakeStep {
    this.#bytes = Buffer.concat([this.#bytes, bytes]);
    const answer: Buffer[] = [];
    const drives = this.#registry.size;
    let headway = false;
    if (!this.#gotFlags) {
      if (this.#bytes.length < 4) return { answer };
      const flags = this.#bytes.readUInt32BE(0);
      const known = HANDSHAKE_FLAGS.fixedNewstyle | HANDSHAKE_FLAGS.noZeroes;
      if ((flags & ~known) !== 0 || (flags & HANDSHAKE_FLAGS.fixedNewstyle) === 0)
        return { answer, close: true };
      this.#noZeroes = (flags & HANDSHAKE_FLAGS.noZeroes) !== 0;
      this.#gotFlags = true;
      this.#bytes = this.#bytes.subarray(4);
    }
    while (this.#bytes.length >= 16) {
      const option = this.#bytes.readUInt32BE(8);
      const lengthBytes = this.#bytes.readUInt32BE(12);
      const wrong = !this.#bytes.subarray(0, 8).equals(OPTION_MAGIC) || lengthBytes > OPTION_BYTES_MAX;
      if (wrong || ++this.#options > OPTIONS_MAX + drives * OPTIONS_PER_DRIVE) return { answer, close: true };
      if (this.#bytes.length < 16 + lengthBytes) {
        this.#options--;
        break;
      }
      const data = this.#bytes.subarray(16, 16 + lengthBytes);
      this.#bytes = this.#bytes.subarray(16 + lengthBytes);
      const step = this.#option(option, data);
      for (const part of step.answer) this.#answerBytes += part.length;
      if (this.#answerBytes > ANSWER_BYTES_MAX + drives * ANSWER_BYTES_PER_DRIVE)
        return { answer, close: true };
      for (const part of step.answer) answer.push(part);
      headway ||= step.headway ?? false;
      if (step.close) return { answer, close: true };
      if (step.session) return { answer, session: step.session, rest: this.#bytes };
    }
    return { answer, headway };
  }

  #option(option: number, data: Buffer): HandshakeStep {
    switch (option) {
      case OPTION.exportName:
        return this.#exportName(data.toString('utf8'));
      case OPTION.abort:
        return { answer: [optionReply(option, REPLY.ack)], close: true };
      case OPTION.list: {
        if (data.length > 0) return refuse(option, REPLY.invalid);
        const names = this.#registry
          .list()
          .map(({ name }) => optionReply(option, REPLY.server, lengthPrefixed(name)));
        return { answer: [...names, optionReply(option, REPLY.ack)] };
      }
      case OPTION.info:
      case OPTION.go:
        return this.#infoOrGo(option, data);
      case OPTION.structuredReply:
        if (data.length > 0) return refuse(option, REPLY.invalid);
        this.#structured = true;
        return { answer: [optionReply(option, REPLY.ack)] };
      case OPTION.listMetaContext:
      case OPTION.setMetaContext:
        return this.#metaContext(option, data);
      default:
        return refuse(option, REPLY.unsupported);
    }
  }

  /** The empty name means the only export, if there is exactly one. */
  #find(name: string): BlockDevice | undefined {
    if (name !== '') return this.#registry.get(name);
    const all = this.#registry.list();
    return all.length === 1 ? all[0] : undefined;
  }

  #session(device: BlockDevice): Session {
    const allocation = this.#structured && this.#allocationOf === device.name;
    return { device, structured: this.#structured, allocation };
  }

  #exportName(name: string): HandshakeStep {
    // This option cannot be answered with an error.
    const device = this.#find(name);
    if (!device) return { answer: [], close: true };
    const reply = Buffer.alloc(this.#noZeroes ? 10 : 134);
    reply.writeBigUInt64BE(BigInt(device.sizeBytes), 0);
    reply.writeUInt16BE(transmissionFlags(device), 8);
    return { answer: [reply], session: this.#session(device) };
  }

  #infoOrGo(option: number, data: Buffer): HandshakeStep {
    const nameBytes = data.length >= 6 ? data.readUInt32BE(0) : Number.POSITIVE_INFINITY;
    if (nameBytes > NAME_BYTES_MAX || data.length < 4 + nameBytes + 2) return refuse(option, REPLY.invalid);
    const count = data.readUInt16BE(4 + nameBytes);
    if (data.length !== 4 + nameBytes + 2 + count * 2) return refuse(option, REPLY.invalid);
    const name = data.toString('utf8', 4, 4 + nameBytes);
    const device = this.#find(name);
    if (!device) return refuse(option, REPLY.unknown, `no export ${JSON.stringify(name.slice(0, 128))}`);
    const wanted = new Set<number>();
    for (let n = 0; n < count; n++) wanted.add(data.readUInt16BE(4 + nameBytes + 2 + n * 2));
    const answer = [optionReply(option, REPLY.info, infoExport(device))];
    if (wanted.has(INFO.name)) answer.push(optionReply(option, REPLY.info, infoText(INFO.name, device.name)));
    if (wanted.has(INFO.description)) {
      answer.push(
        optionReply(option, REPLY.info, infoText(INFO.description, `lazydisk ${device.imageDigest}`)),
      );
    }
    if (wanted.has(INFO.blockSize)) answer.push(optionReply(option, REPLY.info, infoBlockSize()));
    answer.push(optionReply(option, REPLY.ack));
    return option === OPTION.go ? { answer, session: this.#session(device) } : { answer, headway: true };
  }

  #metaContext(option: number, data: Buffer): HandshakeStep {
    const parsed = readMetaContext(data);
    const isSet = option === OPTION.setMetaContext;
    // An earlier choice is forgotten, even if this one fails.
    if (isSet) this.#allocationOf = undefined;
    // Contexts are sent in structured replies only.
    if (!parsed || !this.#structured) return refuse(option, REPLY.invalid);
    const device = this.#find(parsed.name);
    if (!device) return refuse(option, REPLY.unknown);
    const lists = !isSet && (parsed.queries.length === 0 || parsed.queries.includes('base:'));
    const chosen = lists || parsed.queries.includes(BASE_ALLOCATION);
    if (isSet && chosen) this.#allocationOf = device.name;
    const answer: Buffer[] = [];
    if (chosen) {
      const id = Buffer.alloc(4);
      id.writeUInt32BE(isSet ? BASE_ALLOCATION_ID : 0);
      answer.push(optionReply(option, REPLY.metaContext, Buffer.concat([id, Buffer.from(BASE_ALLOCATION)])));
    }
    answer.push(optionReply(option, REPLY.ack));
    return { answer, headway: true };
  }
}

function refuse(option: number, type: number, text = ''): HandshakeStep {
  return { answer: [optionReply(option, type, Buffer.from(text, 'utf8'))] };
}

function infoExport(device: BlockDevice): Buffer {
  const info = Buffer.alloc(12);
  info.writeUInt16BE(INFO.export, 0);
  info.writeBigUInt64BE(BigInt(device.sizeBytes), 2);
  info.writeUInt16BE(transmissionFlags(device), 10);
  return info;
}

function infoText(type: number, text: string): Buffer {
  const head = Buffer.alloc(2);
  head.writeUInt16BE(type);
  return Buffer.concat([head, Buffer.from(text, 'utf8')]);
}

function infoBlockSize(): Buffer {
  const info = Buffer.alloc(14);
  info.writeUInt16BE(INFO.blockSize, 0);
  info.writeUInt32BE(BLOCK_SIZE.minimum, 2);
  info.writeUInt32BE(BLOCK_SIZE.preferred, 6);
  info.writeUInt32BE(BLOCK_SIZE.maximum, 10);
  return info;
}

function readMetaContext(data: Buffer): { name: string; queries: string[] } | undefined {
  let at = 0;
  const take = (): string | undefined => {
    if (data.length < at + 4) return undefined;
    const bytes = data.readUInt32BE(at);
    if (bytes > NAME_BYTES_MAX || data.length < at + 4 + bytes) return undefined;
    at += 4 + bytes;
    return data.toString('utf8', at - bytes, at);
  };
  const name = take();
  if (name === undefined || data.length < at + 4) return undefined;
  const count = data.readUInt32BE(at);
  at += 4;
  if (count > QUERIES_MAX) return undefined;
  const queries: string[] = [];
  for (let n = 0; n < count; n++) {
    const query = take();
    if (query === undefined) return undefined;
    queries.push(query);
  }
  return at === data.length ? { name, queries } : undefined;
}
