/**
 * Directories and files that must belong to this user, because their content is trusted and private. In a directory
 * that others can write to, anyone can plant a symbolic link or a file under a name that lazydisk uses; so links are
 * never followed, and owner and permissions are checked on the open descriptor.
 */
import { constants } from 'node:fs';
import { type FileHandle, lstat, mkdir, open, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errorText, LazydiskError } from './errors.ts';

const WRITABLE_BY_OTHERS = 0o022;
const WRITABLE_BY_ALL = 0o002;
const STICKY = 0o1000;

export interface OwnDirectoryOptions {
  /** Its name in messages: "run dir". */
  readonly what: string;
  /** Permissions to set, even if it exists. Without them, a directory that others can write to is refused. */
  readonly mode?: number;
}

/**
 * Creates `dir` (mode 0700) or uses the existing one. Throws USAGE for a symbolic link, a directory of another user, or
 * one that others can write to or replace; UNAVAILABLE.
 */
export async function ownDirectory(dir: string, { what, mode }: OwnDirectoryOptions): Promise<void> {
  const refuse = (why: string) => new LazydiskError('USAGE', `${what} ${dir} ${why}`);
  try {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    if ((await lstat(dir)).isSymbolicLink()) throw refuse('is a symbolic link: name the directory itself');
    const parent = await stat(dirname(dir));
    if ((parent.mode & WRITABLE_BY_ALL) !== 0 && (parent.mode & STICKY) === 0)
      throw refuse(`can be replaced by any user: ${dirname(dir)} is writable by all and not sticky`);
    const handle = await open(dir, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
    try {
      const found = await handle.stat();
      if (found.uid !== process.geteuid?.()) throw refuse(`belongs to another user (uid ${found.uid})`);
      if (mode !== undefined) await handle.chmod(mode);
      else if ((found.mode & WRITABLE_BY_OTHERS) !== 0) throw refuse('is writable by others: chmod go-w');
    } finally {
      await handle.close();
    }
  } catch (cause) {
    if (cause instanceof LazydiskError) throw cause;
    throw new LazydiskError('UNAVAILABLE', `${what} ${dir}: ${errorText(cause)}`, { cause });
  }
}

/**
 * Opens the file `path` for reading and writing, and creates it with mode 0600 if it does not exist. Throws EXISTS for
 * a symbolic link, another user's file, one with a second name, or anything but a regular file; the file system's own
 * errors.
 */
export async function openOwnFile(path: string): Promise<FileHandle> {
  const inTheWay = (why: string) => new LazydiskError('EXISTS', `${path} is in the way: ${why}`);
  // Without O_NONBLOCK, opening a FIFO would wait for its other end; it has no effect on a regular file.
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const handle = await open(path, flags, 0o600).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ELOOP') throw inTheWay('it is a symbolic link');
    if (error.code === 'EISDIR' || error.code === 'ENXIO') throw inTheWay('it is not a regular file');
    throw error;
  });
  try {
    const found = await handle.stat();
    if (!found.isFile()) throw inTheWay('it is not a regular file');
    if (found.uid !== process.geteuid?.()) throw inTheWay(`it belongs to another user (uid ${found.uid})`);
    if (found.nlink > 1) throw inTheWay('it has another name too');
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}
