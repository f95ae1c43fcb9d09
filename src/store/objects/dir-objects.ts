/**
 * Objects as files: a key is a path below a directory. Any number of processes may read and write it at once, because
 * files appear whole, by rename. Only `ifVersion` needs a lock, and only between `ifVersion` writers of the same key.
 */
import { createHash, hash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open, opendir, stat, unlink } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { pooled } from '../../async/pooled.ts';
import { errorText, LazydiskError } from '../../errors.ts';
import { DurableWriter } from './durable-writer.ts';
import { HashedBytes } from './hashed-bytes.ts';
import {
  checkKey,
  type GetOptions,
  isKey,
  type ListOptions,
  type ObjectBytes,
  type ObjectInfo,
  type ObjectOptions,
  type ObjectStore,
  type PutOptions,
} from './object-store.ts';
import { WriteLock } from './write-lock.ts';

/** The writers' folder; it contains no keys. */
const TMP = 'tmp/';

const PAGE_OBJECTS = 1000;

/** Without O_NONBLOCK, opening a FIFO in place of an object would block a pool thread forever. */
const READ_ONLY = constants.O_RDONLY | constants.O_NONBLOCK;

/** File system calls in flight for one `delete` or one page of `list`. */
const LANES = 8;

const FULL: ReadonlySet<string> = new Set(['ENOSPC', 'EDQUOT']);
/** Errors that persist until a person fixes the cause. */
const REFUSED: ReadonlySet<string> = new Set(['EACCES', 'EPERM', 'EROFS', 'ELOOP', 'ENAMETOOLONG']);

export class DirObjects implements ObjectStore {
  readonly url: string;
  readonly path: string;
  readonly isWritable = true;
  readonly isLocal = true;
  readonly #writer: DurableWriter;
  readonly #lock: WriteLock;
  /** Whether any file or folder of the store has been seen. */
  #wasThere = false;

  /** `path` is the directory, which is created with the first object. */
  constructor(path: string) {
    this.path = resolve(path);
    this.url = `file://${this.path}`;
    this.#writer = new DurableWriter(this.path);
    this.#lock = new WriteLock(join(this.path, TMP));
  }

  /** Throws UNAVAILABLE, ABORTED. */
  async get(key: string, bytesMax: number, options: GetOptions = {}): Promise<ObjectBytes | undefined> {
    const path = this.#pathOf(key);
    const bytes = await this.#reading(key, options.signal, () => readBounded(path, bytesMax, options));
    if (bytes) return new HashedBytes(bytes);
    await this.#checkThere(options.signal);
    return undefined;
  }

  /** Throws UNAVAILABLE, ABORTED. */
  async head(key: string, { signal }: ObjectOptions = {}): Promise<ObjectInfo | undefined> {
    const path = this.#pathOf(key);
    return this.#reading(key, signal, async () => {
      const stats = await stat(path);
      return stats.isFile() ? { key, sizeBytes: stats.size, modifiedMs: stats.mtimeMs } : undefined;
    });
  }

  /** Throws NO_SPACE, UNAVAILABLE, ABORTED, and BUSY for `ifVersion`. */
  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<void> {
    const { ifVersion, signal } = options;
    const path = this.#pathOf(key);
    await this.#writing(key, signal, async () => {
      if (ifVersion === undefined) return this.#writer.write(key, bytes);
      const changed = () => new LazydiskError('BUSY', `${this.url}: ${key} has changed meanwhile`);
      await this.#lock.hold(key, signal, async (lockFile) => {
        if ((await versionOfFile(path)) !== ifVersion) throw changed();
        try {
          await this.#writer.writeOver(lockFile, key, bytes);
        } catch (error) {
          if (!isMissing(error)) throw error;
          // A network file system may have renamed the file, and then repeated the call because the reply was lost.
          if ((await versionOfFile(path)) !== hash('sha256', bytes, 'hex')) throw changed();
        }
      });
    });
  }

  /** Copies through this process, like every durable write. Throws NO_SPACE, UNAVAILABLE, ABORTED. */
  async copy(from: string, to: string, options: ObjectOptions = {}): Promise<boolean> {
    this.#pathOf(to);
    const object = await this.get(from, Number.MAX_SAFE_INTEGER - 1, options);
    if (object) await this.put(to, object.bytes, options);
    return object !== undefined;
  }

  /** Empty folders stay, because a writer may be about to use them. Throws UNAVAILABLE, ABORTED. */
  async delete(keys: readonly string[], { signal }: ObjectOptions = {}): Promise<void> {
    const files = keys.map((key) => ({ key, path: this.#pathOf(key) }));
    await pooled(LANES, files, async ({ key, path }) => {
      try {
        signal?.throwIfAborted();
        await unlink(path);
      } catch (cause) {
        if (!isMissing(cause)) throw this.#failure(`cannot delete ${key}`, cause, signal);
      }
    });
  }

  /**
   * Files whose names are not keys are left out. Objects written or deleted meanwhile may or may not appear. Throws
   * UNAVAILABLE, ABORTED.
   */
  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<readonly ObjectInfo[]> {
    checkKey(prefix, 'prefix');
    this.#checkOurs(prefix);
    const { pageMax = PAGE_OBJECTS } = options;
    let keys: string[] = [];
    for await (const key of this.#keysBelow(prefix, options)) {
      if (keys.push(key) < pageMax) continue;
      yield await this.#infosOf(keys, options);
      keys = [];
    }
    if (keys.length > 0) yield await this.#infosOf(keys, options);
  }

  /** The time that the file system stamps on a new file. Throws NO_SPACE, UNAVAILABLE, ABORTED. */
  async nowMs({ signal }: ObjectOptions = {}): Promise<number> {
    let nowMs = 0;
    await this.#writing(TMP, signal, async () => {
      nowMs = await this.#writer.nowMs();
    });
    return nowMs;
  }

  async canCompareAndSet(): Promise<boolean> {
    return true;
  }

  async close(): Promise<void> {
    await this.#writer.close();
  }

  #pathOf(key: string): string {
    checkKey(key);
    this.#checkOurs(key);
    return join(this.path, key);
  }

  #checkOurs(key: string): void {
    if (key.startsWith(TMP)) throw new LazydiskError('INTERNAL', `key ${JSON.stringify(key)} is a writer's`);
  }

  /** Depth first, folder by folder, so that memory does not grow with the store. Only folders if `shallow`. */
  async *#keysBelow(prefix: string, options: ListOptions): AsyncGenerator<string> {
    const { shallow, signal } = options;
    const folder = await this.#reading(prefix, signal, () => opendir(join(this.path, prefix)));
    if (!folder) {
      await this.#checkThere(signal);
      return;
    }
    try {
      for await (const entry of folder) {
        const key = `${prefix}${entry.name}`;
        if (!isKey(key)) continue;
        // A store may be spread over disks by symbolic links to folders.
        const isFolder = entry.isSymbolicLink()
          ? await this.#reading(key, signal, async () => (await stat(join(this.path, key))).isDirectory())
          : entry.isDirectory();
        if (!isFolder) yield key;
        else if (`${key}/` === TMP) continue;
        else if (shallow) yield `${key}/`;
        else yield* this.#keysBelow(`${key}/`, options);
      }
    } catch (cause) {
      if (!isMissing(cause)) throw this.#failure(`cannot list ${prefix}`, cause, signal);
    }
  }

  async #infosOf(keys: readonly string[], options: ObjectOptions): Promise<ObjectInfo[]> {
    const infos: ObjectInfo[] = [];
    await pooled(LANES, keys, async (key) => {
      const isFolder = key.endsWith('/');
      const info = isFolder ? { key, sizeBytes: 0, modifiedMs: 0 } : await this.head(key, options);
      if (info) infos.push(info);
    });
    return infos;
  }

  /** Returns what `read` returns; undefined if the file is missing, or is a folder. */
  async #reading<T>(
    key: string,
    signal: AbortSignal | undefined,
    read: () => Promise<T>,
  ): Promise<T | undefined> {
    try {
      signal?.throwIfAborted();
      const found = await read();
      if (found !== undefined) this.#wasThere = true;
      return found;
    } catch (cause) {
      if (isMissing(cause)) return undefined;
      throw this.#failure(`cannot read ${key}`, cause, signal);
    }
  }

  /**
   * Called when something is missing. If the store was seen before and its directory is now gone or empty, it was moved
   * or unmounted, and its contents are unknown. Throws UNAVAILABLE, ABORTED.
   */
  async #checkThere(signal: AbortSignal | undefined): Promise<void> {
    if (!this.#wasThere) return;
    const first = await this.#reading('', signal, async () => {
      const folder = await opendir(this.path);
      return folder.read().finally(() => folder.close());
    });
    if (!first) throw new LazydiskError('UNAVAILABLE', `${this.url}: the directory is gone, or empty now`);
  }

  async #writing(key: string, signal: AbortSignal | undefined, write: () => Promise<void>): Promise<void> {
    try {
      signal?.throwIfAborted();
      await write();
    } catch (cause) {
      throw this.#failure(`cannot write ${key}`, cause, signal);
    }
  }

  #failure(what: string, cause: unknown, signal: AbortSignal | undefined): LazydiskError {
    if (cause instanceof LazydiskError) return cause;
    const text = `${this.url}: ${what}: ${errorText(cause)}`;
    if (signal?.aborted) return new LazydiskError('ABORTED', text, { cause });
    const { code } = cause as NodeJS.ErrnoException;
    if (FULL.has(code ?? '')) return new LazydiskError('NO_SPACE', text, { cause });
    return new LazydiskError('UNAVAILABLE', text, { cause, retryable: !REFUSED.has(code ?? '') });
  }
}

/** Null if the file is missing, or is a folder. */
async function versionOfFile(path: string): Promise<string | null> {
  const digest = createHash('sha256');
  try {
    const file = await open(path, READ_ONLY);
    // The stream closes it.
    for await (const bytes of file.createReadStream()) digest.update(bytes as Buffer);
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
  return digest.digest('hex');
}

/**
 * The whole file; undefined if it is not a regular file. Of a file larger than `bytesMax`, the first `bytesMax` + 1
 * bytes, so that the caller sees that it is too long.
 */
async function readBounded(
  path: string,
  bytesMax: number,
  { into, signal }: GetOptions,
): Promise<Buffer | undefined> {
  const file: FileHandle = await open(path, READ_ONLY);
  try {
    const stats = await file.stat();
    if (!stats.isFile()) return undefined;
    const { size } = stats;
    const length = Math.min(size, bytesMax + 1);
    const bytes = into && into.length >= length ? into.subarray(0, length) : Buffer.allocUnsafe(length);
    let filled = 0;
    for (let more = 1; more > 0 && filled < bytes.length; filled += more) {
      signal?.throwIfAborted();
      more = (await file.read(bytes, filled, bytes.length - filled, filled)).bytesRead;
    }
    return bytes.subarray(0, filled);
  } finally {
    await file.close();
  }
}

/** Missing, or a folder, which is not an object. */
function isMissing(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return code === 'ENOENT' || code === 'ENOTDIR' || code === 'EISDIR';
}
