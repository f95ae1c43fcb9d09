/**
 * Allows one process at a time to use a directory. The lock is flock(2) on a file in the directory, which only users
 * who may write there can open: no other user can hold it or be blocked by it. The kernel releases it when the process
 * dies, however it dies, so no stale lock remains, and it works across network and mount namespaces.
 *
 * The file is removed with the lock. So a process that gets the lock checks that the name still refers to the file that
 * it locked.
 */
import { type FileHandle, lstat, unlink } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import { getSystemErrorMessage } from 'node:util';
import { lockFile } from '../native/index.ts';
import { LazydiskError } from './errors.ts';
import { openOwnFile } from './own-files.ts';

/** Each further try means that another process has just released the lock. */
const TRIES_MAX = 100;

/**
 * Locks `dir`. Throws BUSY if another process holds it, EXISTS if something else is in the place of the lock,
 * UNAVAILABLE if the file system has no locks. `purpose` separates locks for different uses of one directory.
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
  throw new LazydiskError('BUSY', `${path}: other processes keep taking the lock`);
}

/** Returns the locked file, or undefined if the name refers to another file by now. */
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
