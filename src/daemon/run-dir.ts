/**
 * The run directory: one daemon's sockets and its mount, and the proof that it is the only one. The proof is a
 * lock that the kernel drops with the process (lockDirectory), and, because that lock holds within one network
 * namespace only, a knock on the control socket, which works across them. Whoever holds both may remove what a
 * killed daemon left here; only things by our own names and of the right kind are touched.
 */
import { chmod, lstat, mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { lockDirectory } from '../chunk/disk/dir-lock.ts';
import { errorText, LazydiskError } from '../errors.ts';

/** sun_path in Linux has 108 bytes, and the last is a zero. */
const SOCKET_PATH_BYTES_MAX = 107;

const KNOCK_TIMEOUT_MS = 2_000;

/** Where things are in a run directory. */
export interface RunPaths {
  readonly dir: string;
  /** The control API. */
  readonly control: string;
  readonly nbd: string;
  /** The FUSE mount: one file a drive. */
  readonly drives: string;
  /** Who holds the directory; for people and messages, nothing is decided by it. */
  readonly pid: string;
}

/** Throws USAGE where a socket's path would be too long for the kernel. */
export function runPaths(dir: string): RunPaths {
  const paths = {
    dir,
    control: join(dir, 'control.sock'),
    nbd: join(dir, 'nbd.sock'),
    drives: join(dir, 'drives'),
    pid: join(dir, 'pid'),
  };
  if (Buffer.byteLength(paths.control) > SOCKET_PATH_BYTES_MAX) {
    throw new LazydiskError('USAGE', `run dir ${dir}: its path is too long for the sockets in it`);
  }
  return paths;
}

/** Where a daemon is looked for if nobody says: XDG_RUNTIME_DIR/lazydisk, and /run/lazydisk for root. */
export function defaultRunDir(env: NodeJS.ProcessEnv = process.env): string {
  if (process.getuid?.() === 0) return '/run/lazydisk';
  if (env.XDG_RUNTIME_DIR) return join(env.XDG_RUNTIME_DIR, 'lazydisk');
  throw new LazydiskError('USAGE', 'no --run-dir was given and XDG_RUNTIME_DIR is not set');
}

export interface RunDir {
  readonly paths: RunPaths;
  /** Removes the sockets and lets go of the directory. */
  release(): Promise<void>;
}

/**
 * Takes `dir` (made if need be, mode 0700) for this process and clears what a dead daemon left.
 * `cleanMount` takes a dead mount of ours away from the path it is given.
 * Throws BUSY if a daemon has it, EXISTS if something that is not ours stands in the way, UNAVAILABLE.
 */
export async function takeRunDir(
  dir: string,
  cleanMount: (path: string) => Promise<unknown>,
): Promise<RunDir> {
  const paths = runPaths(dir);
  try {
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const { uid } = await stat(dir);
    if (uid !== process.getuid?.()) {
      throw new LazydiskError('USAGE', `run dir ${dir} belongs to another user (uid ${uid})`);
    }
    await chmod(dir, 0o700);
  } catch (cause) {
    if (cause instanceof LazydiskError) throw cause;
    throw new LazydiskError('UNAVAILABLE', `run dir ${dir}: ${errorText(cause)}`, { cause });
  }
  const lock = await lockDirectory(dir, 'run').catch(async (cause) => {
    throw cause instanceof LazydiskError && cause.code === 'BUSY' ? await busy(paths) : cause;
  });
  try {
    if (await answers(paths.control)) throw await busy(paths);
    await cleanMount(paths.drives);
    await removeSocket(paths.control);
    await removeSocket(paths.nbd);
    await writeFile(paths.pid, `${process.pid}\n`, { mode: 0o600 });
  } catch (error) {
    await lock.release();
    throw error;
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

/** Whether somebody listens on the socket at `path`. A stopped process still does, for the kernel answers. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const done = (answer: boolean) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(answer);
    };
    // Neither accepted nor refused is a full backlog: somebody has it open.
    const timer = setTimeout(() => done(true), KNOCK_TIMEOUT_MS);
    socket.once('connect', () => done(true));
    socket.once('error', (error: NodeJS.ErrnoException) => done(error.code === 'EAGAIN'));
  });
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
