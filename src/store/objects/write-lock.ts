/**
 * A lock by name between processes that share a directory, for as long as one small write takes. The trick: nobody
 * takes a lock file away from anybody. Each contender makes a file of its own, whose name says whose it is, and then
 * looks whether there are others; who sees one takes its own away and comes again later. Of two contenders the one
 * that looks later sees the other, so never do both stay; and the file of a dead process can be removed by anyone at
 * any time, for no other process ever makes a file of that name.
 *
 * A process may be stopped while it holds a lock, so after a minute its file goes, too, whoever it belongs to. What keeps
 * it from writing when it goes on is that what it writes is the lock file itself, renamed to its place: without that
 * there is nothing to rename.
 */
import { createHash } from 'node:crypto';
import { mkdir, readdir, stat, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { LazydiskError } from '../../errors.ts';
import { newWriterName, writerState } from './writer-dir.ts';

/** A lock counts for this long, unless its owner is known to be dead. */
const LOCK_MS_MAX = 60_000;

const WAIT_MS_MAX = 10_000;
const PAUSE_MS_MAX = 50;

export class WriteLock {
  readonly #dir: string;
  /** Within this process contenders queue up, so that only one of them looks at files. */
  readonly #queues = new Map<string, Promise<void>>();
  #serial = 0;
  #ownName: Promise<string> | undefined;

  /** Lock files are `dir`/WRITER.SERIAL.lock-NAME; src/store/objects/writer-dir.ts knows whose leftovers they are. */
  constructor(dir: string) {
    this.#dir = dir;
  }

  /**
   * What `work` gives, which it does while nobody else works under `name`, or until its lock file, an empty one that it is
   * given, is gone. It may fill that and rename it. Rejects with BUSY if others keep it for 10 s, or with the file system's
   * own error.
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
      // Another name each time: who takes an old file for abandoned must not take a new one.
      const path = join(this.#dir, `${await this.#ownName}.${this.#serial++}${suffix}`);
      await writeFile(path, '', { flag: 'wx', mode: 0o644 });
      if (!(await this.#hasOthers(suffix, path))) return path;
      await unlinkIfThere(path);
      if (performance.now() > deadline) throw new LazydiskError('BUSY', `${name} is being written by others`);
      await sleep(pauseMs * (0.5 + Math.random()), undefined, signal && { signal });
    }
  }

  /** Whether anyone but `own` contends; takes away the files of the dead, and old ones. */
  async #hasOthers(suffix: string, own: string): Promise<boolean> {
    for (const name of await readdir(this.#dir)) {
      const path = join(this.#dir, name);
      if (!name.endsWith(suffix) || path === own) continue;
      if ((await writerState(name)) !== 'dead' && (await isYoung(path, own))) return true;
      // Where it stays its owner may still write.
      await unlinkIfThere(path);
    }
    return false;
  }
}

/** By the clock of the file system, which gave both files their times. */
async function isYoung(path: string, own: string): Promise<boolean> {
  // One that is gone by now does not count; if our own is, others were faster.
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
