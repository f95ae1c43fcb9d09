/**
 * A lock by name between processes that share a directory, for as long as one small write takes. The trick: nobody
 * takes a lock file away from anybody. Each contender makes a file of its own, whose name says whose it is, and then
 * looks whether there are others; who sees one takes its own away and comes again later. Of two contenders the one
 * that looks later sees the other, so never do both stay; and the file of a dead process can be removed by anyone at
 * any time, for no other process ever makes a file of that name.
 */
import { createHash } from 'node:crypto';
import { mkdir, readdir, stat, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { LazydiskError } from '../../errors.ts';
import { newWriterName, writerState } from '../writer-dir.ts';

/** A lock of another machine, or of an earlier boot, counts for this long: nobody can prove its owner dead. */
const FOREIGN_LOCK_MS_MAX = 60_000;

const WAIT_MS_MAX = 10_000;
const PAUSE_MS_MAX = 50;

export class DirLock {
  readonly #dir: string;
  /** Within this process contenders queue up, so that only one of them looks at files. */
  readonly #queues = new Map<string, Promise<void>>();
  #serial = 0;
  #ownName: Promise<string> | undefined;

  /** Lock files are `dir`/WRITER.SERIAL.lock-NAME; src/store/writer-dir.ts knows whose leftovers they are. */
  constructor(dir: string) {
    this.#dir = dir;
  }

  /**
   * What `work` gives, which it does while nobody else works under `name`. Rejects with BUSY if others keep it for
   * 10 s, or with the file system's own error.
   */
  async hold<T>(name: string, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    const before = this.#queues.get(name);
    const { promise, resolve: leave } = Promise.withResolvers<void>();
    this.#queues.set(name, promise);
    try {
      await before;
      const path = await this.#acquire(name, signal);
      try {
        return await work();
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
    const path = join(this.#dir, `${await this.#ownName}.${this.#serial++}${suffix}`);
    const deadline = performance.now() + WAIT_MS_MAX;
    await mkdir(this.#dir, { recursive: true });
    for (let pauseMs = 1; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MS_MAX)) {
      await writeFile(path, '', { flag: 'wx' });
      if (!(await this.#hasOthers(suffix, path))) return path;
      await unlink(path);
      if (performance.now() > deadline) throw new LazydiskError('BUSY', `${name} is being written by others`);
      await sleep(pauseMs * (0.5 + Math.random()), undefined, signal && { signal });
    }
  }

  /** Whether anyone but `own` contends; takes away the files of the dead. */
  async #hasOthers(suffix: string, own: string): Promise<boolean> {
    for (const name of await readdir(this.#dir)) {
      const path = join(this.#dir, name);
      if (!name.endsWith(suffix) || path === own) continue;
      const state = await writerState(name);
      if (state === 'alive' || (state === 'foreign' && (await isYoung(path, own)))) return true;
      await unlink(path).catch(() => undefined);
    }
    return false;
  }
}

/** By the clock of the file system, which gave both files their times. */
async function isYoung(path: string, own: string): Promise<boolean> {
  const { mtimeMs: now } = await stat(own);
  // One that is gone by now does not count.
  const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: 0 }));
  return mtimeMs > now - FOREIGN_LOCK_MS_MAX;
}
