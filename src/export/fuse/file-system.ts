/**
 * The file system: one directory with one regular file per drive, read-only. It answers requests and knows nothing of
 * mounts, so tests can drive it with bytes. Every request except READ (reads.ts) is answered at once from the inode
 * table. A request that would write gets EROFS. An unknown one gets ENOSYS, after which the kernel does without it.
 */
import { constants as fsConstants } from 'node:fs';
import { constants as osConstants } from 'node:os';
import type { BlockDevice } from '../../drive/block-device.ts';
import { codeOf, LazydiskError } from '../../errors.ts';
import { ByteBudget } from '../byte-budget.ts';
import { TurnBudget } from '../turn-budget.ts';
import { isDying } from './dying.ts';
import { type Inode, InodeTable } from './inodes.ts';
import { PagePush, type Push } from './page-push.ts';
import {
  type Attributes,
  attrReply,
  entryReply,
  FOPEN_KEEP_CACHE,
  FUSE_MAJOR,
  FUSE_MINOR,
  InitFlag,
  initReply,
  lseekReply,
  Opcode,
  openReply,
  RequestReader,
  ROOT_NODE_ID,
  readdirReply,
  statfsReply,
} from './protocol.ts';
import { type FuseTransport, type ReadHook, ReadQueue } from './reads.ts';

const { EINVAL, EIO, ENOENT, ENOSYS, ENOTDIR, ENXIO, EPROTO, EROFS } = osConstants.errno;
const { O_DIRECT, O_RDWR, O_WRONLY } = fsConstants;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** Largest READ: max_pages of 4 KiB. */
const READ_BYTES_MAX = 1024 * 1024;
/**
 * Reads of direct I/O and readahead that the kernel sends us before it holds back more; its default is 12. It counts
 * the reads of all drives together, so any bound that one drive can reach would stop the others. Our own bound is per
 * drive (reads.ts), and this is the maximum that the protocol allows.
 */
const BACKGROUND_MAX = 0xffff;
/** The only attribute that changes is the number of names. */
const ATTR_VALID_S = 1;
const WANTED_FLAGS = InitFlag.ASYNC_READ | InitFlag.ASYNC_DIO | InitFlag.PARALLEL_DIROPS | InitFlag.MAX_PAGES;

export interface FuseFileSystemOptions {
  readonly transport: FuseTransport;
  readonly push: Push;
  /** The buffer that the transport fills with requests. */
  readonly requests: Buffer;
  readonly uid: number;
  readonly gid: number;
  readonly pushChunks: boolean;
  /** Whether the thread `pid` is being killed; see isDying in dying.ts, which is the default. */
  readonly isDying?: (pid: number) => boolean;
  /** Shared with other exports of the process; by default it has its own. */
  readonly turn?: TurnBudget | undefined;
  readonly budget?: ByteBudget | undefined;
  /** Called when INIT has been answered, with the reason if it was refused. */
  readonly onInit: (error?: LazydiskError) => void;
  /** Called when a read has been answered. It is on the path of every read, so it must be cheap and must not throw. */
  readonly onRead?: ReadHook | undefined;
}

/** Counters since the mount, and what is in flight. */
export interface FuseStats {
  /** Requests by kind, in lower case ("read", "lookup"); `other` is every kind that is not supported. */
  readonly ops: Readonly<Record<string, number>>;
  readonly readBytes: number;
  /** Reads that got their bytes, and those that got an error (EIO). */
  readonly readsOk: number;
  readonly readErrors: number;
  readonly inFlight: number;
  /** 0 if nothing is in flight. */
  readonly oldestInFlightMs: number;
  /** Chunks queued for the page cache, and those dropped because the kernel was behind. */
  readonly pushesQueued: number;
  readonly pushesDropped: number;
}

/** The answer to a request: a payload, an errno, or undefined for none now. */
type Answer = Buffer | number | undefined;

const NOTHING = Buffer.alloc(0);
const KINDS = new Map<number, string>(
  Object.entries(Opcode).map(([name, code]) => [code, name.toLowerCase().replaceAll('_', '-')]),
);
const WRITING = new Set<number>([
  Opcode.SETATTR,
  Opcode.SYMLINK,
  Opcode.MKNOD,
  Opcode.MKDIR,
  Opcode.UNLINK,
  Opcode.RMDIR,
  Opcode.RENAME,
  Opcode.RENAME2,
  Opcode.LINK,
  Opcode.WRITE,
  Opcode.CREATE,
  Opcode.SETXATTR,
  Opcode.REMOVEXATTR,
  Opcode.FALLOCATE,
  Opcode.COPY_FILE_RANGE,
  Opcode.TMPFILE,
]);

export class FuseFileSystem {
  readonly reads: ReadQueue;
  readonly #options: FuseFileSystemOptions;
  readonly #request: RequestReader;
  readonly #inodes = new InodeTable();
  readonly #push: PagePush | undefined;
  readonly #opCounts = new Map<number, number>();
  #readCount = 0;

  constructor(options: FuseFileSystemOptions) {
    this.#options = options;
    this.#request = new RequestReader(options.requests);
    this.#push = options.pushChunks ? new PagePush(options.push) : undefined;
    this.reads = new ReadQueue({
      transport: options.transport,
      push: this.#push,
      onRead: options.onRead,
      isDying: options.isDying ?? isDying,
      turn: options.turn ?? new TurnBudget(),
      budget: options.budget ?? new ByteBudget(),
    });
  }

  addDrive(device: BlockDevice): void {
    this.#inodes.add(device);
  }

  /** Open files stay open; their reads fail with EIO unless another drive has the same image. */
  removeDrive(device: BlockDevice): void {
    this.#inodes.remove(device);
  }

  /** Answers the requests in the first `lengthBytes` of the buffer. Throws CORRUPT for a malformed request. */
  handle(lengthBytes: number): void {
    for (let at = 0; at < lengthBytes; ) {
      at = this.#request.next(at, lengthBytes);
      const answer = this.#answer();
      if (answer === undefined) continue;
      const { unique } = this.#request;
      if (typeof answer === 'number') this.#options.transport.reply(unique, answer, NOTHING);
      else this.#options.transport.reply(unique, 0, answer);
    }
  }

  stats(): FuseStats {
    const ops: Record<string, number> = { read: this.#readCount };
    for (const [opcode, count] of this.#opCounts) ops[KINDS.get(opcode) ?? 'other'] = count;
    return {
      ops,
      readBytes: this.reads.readBytes,
      readsOk: this.reads.answered,
      readErrors: this.reads.errors,
      inFlight: this.reads.inFlight,
      oldestInFlightMs: this.reads.oldestInFlightMs(),
      pushesQueued: this.#push?.queued ?? 0,
      pushesDropped: this.#push?.dropped ?? 0,
    };
  }

  #answer(): Answer {
    const { opcode } = this.#request;
    try {
      if (opcode === Opcode.READ) return this.#read();
      // Unknown kinds are counted under one number, so that the map stays small.
      const counted = KINDS.has(opcode) ? opcode : 0;
      this.#opCounts.set(counted, (this.#opCounts.get(counted) ?? 0) + 1);
      return this.#answerOther(opcode);
    } catch (error) {
      // A malformed body, or a bug: only this request fails.
      return codeOf(error) === 'CORRUPT' ? EINVAL : EIO;
    }
  }

  #answerOther(opcode: number): Answer {
    const request = this.#request;
    switch (opcode) {
      case Opcode.INIT:
        return this.#init();
      case Opcode.LOOKUP:
        return this.#lookup();
      case Opcode.GETATTR:
        return this.#getattr();
      case Opcode.OPEN:
        return this.#open();
      case Opcode.READDIR:
        return this.#readdir();
      case Opcode.LSEEK:
        return this.#lseek();
      case Opcode.STATFS:
        return statfsReply(this.#inodes.sizeBytes(), this.#inodes.namesCount);
      case Opcode.OPENDIR:
        return openReply(0);
      case Opcode.RELEASE:
      case Opcode.RELEASEDIR:
      case Opcode.FLUSH:
      case Opcode.FSYNC:
      case Opcode.FSYNCDIR:
      case Opcode.ACCESS:
      case Opcode.DESTROY:
        return NOTHING;
      // The next four have no reply.
      case Opcode.FORGET:
        this.#inodes.forget(request.nodeId, request.u64(0));
        return undefined;
      case Opcode.BATCH_FORGET:
        this.#batchForget();
        return undefined;
      case Opcode.INTERRUPT:
        this.reads.interrupt(request.u64(0));
        return undefined;
      case Opcode.NOTIFY_REPLY:
        return undefined;
      default:
        return WRITING.has(opcode) ? EROFS : ENOSYS;
    }
  }

  #init(): Answer {
    const request = this.#request;
    const [major, minor] = [request.u32(0), request.u32(4)];
    if (major !== FUSE_MAJOR || minor < FUSE_MINOR) {
      const text = `the kernel speaks FUSE ${major}.${minor}; want ${FUSE_MAJOR}.${FUSE_MINOR} (Linux 5.4)`;
      this.#options.onInit(new LazydiskError('UNSUPPORTED', text));
      return EPROTO;
    }
    this.#options.onInit();
    return initReply({
      maxReadahead: READ_BYTES_MAX,
      flags: request.u32(12) & WANTED_FLAGS,
      maxBackground: BACKGROUND_MAX,
      congestionThreshold: BACKGROUND_MAX,
      maxPages: READ_BYTES_MAX / 4096,
    });
  }

  #lookup(): Answer {
    const { unique, nodeId } = this.#request;
    if (nodeId !== ROOT_NODE_ID) return ENOTDIR;
    const inode = this.#inodes.byName(this.#request.name(0));
    if (!inode) return ENOENT;
    const entry = entryReply(this.#fileAttributes(inode), ATTR_VALID_S);
    // The kernel holds a reference once it has the reply, and none if it did not take it.
    inode.lookups++;
    if (this.#options.transport.reply(unique, 0, entry) !== 0) this.#inodes.forget(inode.nodeId, 1);
    return undefined;
  }

  #batchForget(): void {
    const request = this.#request;
    const count = Math.min(request.u32(0), Math.floor((request.bodyBytes - 8) / 16));
    for (let at = 8; at < 8 + count * 16; at += 16) {
      this.#inodes.forget(request.u64(at), request.u64(at + 8));
    }
  }

  #getattr(): Answer {
    const { nodeId } = this.#request;
    const inode = this.#inodes.byNodeId(nodeId);
    if (!inode && nodeId !== ROOT_NODE_ID) return ENOENT;
    return attrReply(inode ? this.#fileAttributes(inode) : this.#rootAttributes(), ATTR_VALID_S);
  }

  #open(): Answer {
    const inode = this.#inodes.byNodeId(this.#request.nodeId);
    if (!inode) return ENOENT;
    const writes = (this.#request.u32(0) & (O_WRONLY | O_RDWR)) !== 0;
    if (writes && inode.readOnly) return EROFS;
    return openReply(FOPEN_KEEP_CACHE);
  }

  #readdir(): Answer {
    const request = this.#request;
    if (request.nodeId !== ROOT_NODE_ID) return ENOTDIR;
    const lengthBytesMax = Math.min(request.u32(16), READ_BYTES_MAX);
    return readdirReply(this.#inodes.entries(request.u64(8)), lengthBytesMax);
  }

  #lseek(): Answer {
    const request = this.#request;
    const offset = request.u64(8);
    const whence = request.u32(16);
    const inode = this.#inodes.byNodeId(request.nodeId);
    if (!inode?.device) return EIO;
    if (whence !== SEEK_DATA && whence !== SEEK_HOLE) return EINVAL;
    if (offset >= inode.sizeBytes) return ENXIO;
    const [first, second] = inode.device.extents(offset, inode.sizeBytes - offset, 2);
    if (!first) return EIO;
    if (first.zero === (whence === SEEK_HOLE)) return lseekReply(offset);
    // The end of the file counts as a hole, and there is no data beyond it.
    if (whence === SEEK_DATA && !second) return ENXIO;
    return lseekReply(offset + first.lengthBytes);
  }

  #read(): Answer {
    const request = this.#request;
    this.#readCount++;
    const inode = this.#inodes.byNodeId(request.nodeId);
    if (!inode) return ENOENT;
    const offset = request.u64(8);
    const wantedBytes = request.u32(16);
    if (wantedBytes > READ_BYTES_MAX) return EINVAL;
    const lengthBytes = Math.min(wantedBytes, inode.sizeBytes - offset);
    if (lengthBytes <= 0) return NOTHING;
    const direct = (request.u32(32) & O_DIRECT) !== 0;
    this.reads.read({ unique: request.unique, pid: request.pid, inode, offset, lengthBytes, direct });
    return undefined;
  }

  #rootAttributes(): Attributes {
    const { uid, gid } = this.#options;
    return { nodeId: ROOT_NODE_ID, directory: true, mode: 0o550, sizeBytes: 0, links: 2, uid, gid };
  }

  #fileAttributes(inode: Inode): Attributes {
    const { uid, gid } = this.#options;
    const { nodeId, sizeBytes, devices } = inode;
    const mode = inode.readOnly ? 0o440 : 0o640;
    return { nodeId, directory: false, mode, sizeBytes, links: devices.size, uid, gid };
  }
}
