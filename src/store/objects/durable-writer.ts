/**
 * Writes files atomically and durably: temporary file, fsync, rename, fsync of the directory. Commits are grouped:
 * files that arrive while one group is being made durable form the next. So a build with many files in flight pays for
 * one directory sync per group rather than per file, and uses at most two pool threads, because it needs the rest for
 * compression.
 */
import { type FileHandle, mkdir, open, rename, rm, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { pooled } from '../../async/pooled.ts';
import { LazydiskError } from '../../errors.ts';
import { newWriterName, removeDeadWriters } from './writer-dir.ts';

/** Files made durable together; also the maximum number open for it. */
const GROUP_FILES_MAX = 32;

/** Pool threads that writing may use at once. */
const LANES = 2;

interface Pending {
  readonly path: string;
  bytes: Uint8Array | undefined;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export class DurableWriter {
  readonly #root: string;
  readonly #tmpDir: string;
  readonly #queue: Pending[] = [];
  #ownDir: Promise<string> | undefined;
  #serial = 0;
  #committing: Promise<void> | undefined;
  #closed = false;

  /** Files are written below `root`; temporary files in `root`/tmp, which must be on the same file system. */
  constructor(root: string) {
    this.#root = root;
    this.#tmpDir = join(root, 'tmp');
  }

  /**
   * Creates or replaces the file `path`, relative to the root, with its directories. Resolves when it is durable;
   * `bytes` must stay untouched until then. Rejects with the file system's own error.
   */
  write(path: string, bytes: Uint8Array): Promise<void> {
    if (this.#closed) return Promise.reject(new LazydiskError('INTERNAL', 'the store is closed'));
    return new Promise((resolve, reject) => {
      this.#queue.push({ path, bytes, resolve, reject });
      this.#committing ??= this.#commitAll();
    });
  }

  /**
   * Creates or replaces `path` as `write` does, by filling the empty file `own` and renaming it. Rejects with ENOENT,
   * and changes nothing, if another process has removed `own`.
   */
  async writeOver(own: string, path: string, bytes: Uint8Array): Promise<void> {
    const file = await open(own, 'r+');
    try {
      await writeAll(file, bytes);
      await file.datasync();
    } finally {
      await file.close();
    }
    for (const directory of await this.#place(own, path)) await syncDirectory(directory);
  }

  /** The time that the file system stamps on a file written now, in milliseconds since 1970. */
  async nowMs(): Promise<number> {
    const { path, file } = await this.#newTemporary();
    try {
      return (await file.stat()).mtimeMs;
    } finally {
      await file.close();
      await unlink(path);
    }
  }

  /** Waits for pending writes, and removes the temporary directory. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#committing;
    const ownDir = await this.#ownDir?.catch(() => undefined);
    if (ownDir) await rm(ownDir, { recursive: true, force: true });
  }

  async #commitAll(): Promise<void> {
    while (this.#queue.length > 0) await this.#commit(this.#queue.splice(0, GROUP_FILES_MAX));
    this.#committing = undefined;
  }

  /** Commits one group. Each file fails on its own; a directory that cannot be synced fails all files in it. */
  async #commit(group: Pending[]): Promise<void> {
    const directories = new Map<string, Pending[]>();
    await pooled(LANES, group, async (pending) => {
      try {
        const temporary = await this.#writeTemporary(pending.bytes!);
        pending.bytes = undefined;
        for (const directory of await this.#place(temporary, pending.path)) {
          const waiting = directories.get(directory);
          if (waiting) waiting.push(pending);
          else directories.set(directory, [pending]);
        }
      } catch (error) {
        pending.reject(error);
      }
    });
    await pooled(LANES, directories, async ([directory, waiting]) => {
      await syncDirectory(directory).catch((error) => {
        for (const pending of waiting) pending.reject(error);
      });
    });
    // No effect on promises that were rejected above.
    for (const pending of group) pending.resolve();
  }

  async #writeTemporary(bytes: Uint8Array): Promise<string> {
    const { path, file } = await this.#newTemporary();
    try {
      await writeAll(file, bytes);
      await file.datasync();
    } catch (error) {
      await unlink(path).catch(() => undefined);
      throw error;
    } finally {
      await file.close();
    }
    return path;
  }

  async #newTemporary(): Promise<{ readonly path: string; readonly file: FileHandle }> {
    this.#ownDir ??= this.#makeOwnDir().catch((error) => {
      this.#ownDir = undefined;
      throw error;
    });
    const ownDir = await this.#ownDir;
    const path = join(ownDir, String(this.#serial++));
    const create = () => open(path, 'wx', 0o644);
    const file = await create().catch(async (error) => {
      if (error.code !== 'ENOENT') throw error;
      // Another machine removes a directory that was unused for a day. Only this one is made again: if its parent is
      // gone too, the store has been moved or unmounted.
      await mkdir(ownDir).catch((cause) => {
        if (cause.code !== 'EEXIST') throw cause;
      });
      return create();
    });
    return { path, file };
  }

  /** Renames into place. Returns the directories that must be synced to make the name durable. */
  async #place(temporary: string, path: string): Promise<string[]> {
    const target = join(this.#root, path);
    const directory = dirname(target);
    const changed = [directory];
    try {
      await rename(temporary, target);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      await mkdir(directory, { recursive: true });
      for (let at = directory; at !== this.#root; at = dirname(at)) changed.push(dirname(at));
      await rename(temporary, target);
    }
    return changed;
  }

  async #makeOwnDir(): Promise<string> {
    await removeDeadWriters(this.#tmpDir);
    const path = join(this.#tmpDir, await newWriterName());
    await mkdir(path, { recursive: true });
    return path;
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, at, bytes.length - at);
    at += bytesWritten;
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  await directory.sync().finally(() => directory.close());
}
