/**
 * A named lock between processes that share a directory, held for one small write. No process ever takes over another's
 * lock file. Each contender creates a file of its own, whose name identifies it, and then checks for others; if it sees
 * one, it removes its own file and tries again later. Of two contenders, the one that checks later sees the other, so
 * they never both hold the lock. Any process can remove a dead process's file at any time, because no other process
 * ever creates a file of that name.
 *
 * A process may stall while it holds a lock, so after a minute its file is removed too, whoever owns it. The stalled
 * process then cannot write when it continues: its write is the lock file itself, renamed into place, and that file is
 * gone.
 */
import { createHash } from 'node:crypto';
import { mkdir, readdir, stat, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { LazydiskError } from '../../errors.ts';
import { newWriterName, writerState } from './writer-dir.ts';

/** A lock is valid for this long, unless its owner is known to be dead. */
const LOCK_MS_MAX = 60_000;

const WAIT_MS_MAX = 10_000;
const PAUSE_MS_MAX = 50;

export class WriteLock {
  readonly #dir: string;
  /** Contenders within this process queue up, so that only one of them checks files. */
  readonly #queues = new Map<string, Promise<void>>();
  #serial = 0;
  #ownName: Promise<string> | undefined;

  /** Lock files are `dir`/WRITER.SERIAL.lock-NAME; writer-dir.ts tells whether their owners live. */
  constructor(dir: string) {
    this.#dir = dir;
  }

  /**
   * Runs `work` while it holds the lock `name`, and returns its result. `work` gets the path of the lock file, which is
   * empty; it may fill and rename it. If the file is gone, the lock is lost. Rejects with BUSY if others hold the lock
   * for 10 s, or with the file system's own error.
   */
  async hold<T>(
    name: string,
    signal: AbortSignal | undefined,
    work: (lockFile: string) => Promise<T>,
  ): Promise<T> {
    const before = this.#queues.get(name);
    const { promise, resolve: leave } = Promise.withResolvers<void>();
    this.#queues.set(name, promise);
    try {
      await before;
      const path = await this.#acquire(name, signal);
      try {
        return await work(path);
      } finally {
        await unlink(path).catch(() => undefined);
      }
    } finally {
      leave();
      if (this.#queues.get(name) === promise) this.#queues.delete(name);
    }
  }

  async #acquire(name: string, signal: AbortSignal | undefined): Promise<string> {
    const suffix = `.lock-${createHash('sha256').update(name).digest('hex').slice(0, 32)}`;
    this.#ownName ??= newWriterName();
    const deadline = performance.now() + WAIT_MS_MAX;
    await mkdir(this.#dir, { recursive: true });
    for (let pauseMs = 1; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MS_MAX)) {
      // A new name each time: a process that removes an old file as abandoned must not remove a new one.
      const path = join(this.#dir, `${await this.#ownName}.${this.#serial++}${suffix}`);
      await writeFile(path, '', { flag: 'wx', mode: 0o644 });
      if (!(await this.#hasOthers(suffix, path))) return path;
      await unlinkIfThere(path);
      if (performance.now() > deadline) throw new LazydiskError('BUSY', `${name} is being written by others`);
      await sleep(pauseMs * (0.5 + Math.random()), undefined, signal && { signal });
    }
  }

  /** Whether anyone but `own` contends; removes the files of dead owners, and old ones. */
  async #hasOthers(suffix: string, own: string): Promise<boolean> {
    for (const name of await readdir(this.#dir)) {
      const path = join(this.#dir, name);
      if (!name.endsWith(suffix) || path === own) continue;
      if ((await writerState(name)) !== 'dead' && (await isYoung(path, own))) return true;
      // If the file cannot be removed, its owner may still write, so this throws.
      await unlinkIfThere(path);
    }
    return false;
  }
}

/** By the clock of the file system, which stamped both files. */
async function isYoung(path: string, own: string): Promise<boolean> {
  // A file that is gone does not count; if our own is gone, another process was faster.
  const gone = { mtimeMs: 0 };
  const { mtimeMs: now } = await stat(own).catch(() => gone);
  const { mtimeMs } = await stat(path).catch(() => gone);
  return now === 0 || mtimeMs > now - LOCK_MS_MAX;
}

async function unlinkIfThere(path: string): Promise<void> {
  await unlink(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
  });
}
