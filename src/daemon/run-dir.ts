/**
 * The run directory: one daemon's sockets and its mount, and the lock that makes it the only one; the kernel drops the
 * lock when the process exits (lockDirectory). Whoever holds it may remove what a killed daemon left behind. Only files
 * with our own names and of the expected type are touched.
 */
import { lstat, readFile, rm, writeFile } from 'node:fs/promises';
import { lockDirectory } from '../directory-lock.ts';
import { codeOf, errorText, LazydiskError } from '../errors.ts';
import { ownDirectory } from '../own-files.ts';
import { type RunPaths, runPaths } from './run-paths.ts';

export interface RunDir {
  readonly paths: RunPaths;
  /** Removes the sockets and releases the directory. */
  release(): Promise<void>;
}

/**
 * Takes `dir` (created if necessary, mode 0700) for this process and removes what a dead daemon left behind.
 * `cleanMount` removes a dead mount of ours from the path it is given. Throws BUSY if a daemon holds the directory,
 * USAGE if it belongs to another user, EXISTS if something that is not ours is in the way, UNAVAILABLE.
 */
export async function takeRunDir(
  dir: string,
  cleanMount: (path: string) => Promise<unknown>,
): Promise<RunDir> {
  const paths = runPaths(dir);
  await ownDirectory(dir, { what: 'run dir', mode: 0o700 });
  const lock = await lockDirectory(dir, 'run').catch(async (cause) => {
    throw codeOf(cause) === 'BUSY' ? await busy(paths) : cause;
  });
  try {
    await cleanMount(paths.drives);
    await ownDirectory(paths.drives, { what: 'mount point', mode: 0o700 });
    await removeSocket(paths.control);
    await removeSocket(paths.nbd);
    // Created anew, because an existing file may be a link to somewhere else.
    await rm(paths.pid, { force: true });
    await writeFile(paths.pid, `${process.pid}\n`, { mode: 0o600, flag: 'wx' });
  } catch (error) {
    await lock.release();
    throw error instanceof LazydiskError
      ? error
      : new LazydiskError('UNAVAILABLE', `run dir ${dir}: ${errorText(error)}`, { cause: error });
  }
  return {
    paths,
    async release() {
      await removeSocket(paths.control);
      await removeSocket(paths.nbd);
      await rm(paths.pid, { force: true });
      await lock.release();
    },
  };
}

async function removeSocket(path: string): Promise<void> {
  const found = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (!found) return;
  if (!found.isSocket()) throw new LazydiskError('EXISTS', `${path} is in the way and is no socket`);
  await rm(path, { force: true });
}

async function busy(paths: RunPaths): Promise<LazydiskError> {
  const pid = (await readFile(paths.pid, 'utf8').catch(() => '')).trim();
  return new LazydiskError(
    'BUSY',
    `a daemon${/^\d+$/.test(pid) ? ` (pid ${pid})` : ''} serves ${paths.dir} already`,
  );
}
