/**
 * One process a directory. The lock is flock(2) on a file in the directory, which only those can open who may write
 * there: no other user can hold it, or be held up by it. The kernel lets go of it when the process dies, however it
 * dies, so there is no stale lock to clean, and it holds across network and mount namespaces.
 *
 * The file goes with the lock. So whoever gets the lock looks whether the name still means the file that it locked.
 */
import { type FileHandle, lstat, unlink } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import { getSystemErrorMessage } from 'node:util';
import { lockFile } from '../native/index.ts';
import { LazydiskError } from './errors.ts';
import { openOwnFile } from './own-files.ts';

/** Each further try means that another process has let go just now. */
const TRIES_MAX = 100;

/**
 * Throws BUSY if another process holds `dir`, EXISTS if something else is in the place of the lock, UNAVAILABLE where
 * the file system has no locks. `purpose` keeps locks for different uses of one directory apart.
 */
export async function lockDirectory(dir: string, purpose: string): Promise<{ release(): Promise<void> }> {
  const path = join(dir, `${purpose}.lock`);
  for (let n = 0; n < TRIES_MAX; n++) {
    const file = await tryLock(path, `${dir} is in use by another process (${purpose})`);
    if (file)
      return {
        release: () =>
          unlink(path)
            .catch(() => {})
            .then(() => file.close()),
      };
  }
  throw new LazydiskError('BUSY', `${path}: other processes take it again and again`);
}

/** The locked file, or undefined if the name has come to mean another one meanwhile. */
async function tryLock(path: string, busy: string): Promise<FileHandle | undefined> {
  const file = await openOwnFile(path);
  try {
    const errno = lockFile(file.fd);
    if (errno === constants.errno.EWOULDBLOCK) throw new LazydiskError('BUSY', busy);
    if (errno !== 0) throw new LazydiskError('UNAVAILABLE', `lock ${path}: ${getSystemErrorMessage(-errno)}`);
    const locked = await file.stat();
    const named = await lstat(path).catch(() => undefined);
    if (named?.ino === locked.ino && named.dev === locked.dev) return file;
    await file.close();
    return undefined;
  } catch (error) {
    await file.close();
    throw error;
  }
}
