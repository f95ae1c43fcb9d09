/** Where a daemon's run directory is and what it contains; used by the daemon and by its clients. */
import { join } from 'node:path';
import { LazydiskError } from '../errors.ts';

/** sun_path has 108 bytes on Linux, including the terminating zero. */
const SOCKET_PATH_BYTES_MAX = 107;

/** The paths in a run directory. */
export interface RunPaths {
  readonly dir: string;
  /** The control API's socket. */
  readonly control: string;
  readonly nbd: string;
  /** The FUSE mount: one file per drive. */
  readonly drives: string;
  /** The process that holds the directory; for people and messages only, nothing depends on it. */
  readonly pid: string;
}

/** Throws USAGE if a socket's path would be too long for the kernel. */
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

/** The default run directory: /run/lazydisk for root, otherwise XDG_RUNTIME_DIR/lazydisk. */
export function defaultRunDir(env: NodeJS.ProcessEnv = process.env): string {
  if (process.getuid?.() === 0) return '/run/lazydisk';
  if (env.XDG_RUNTIME_DIR) return join(env.XDG_RUNTIME_DIR, 'lazydisk');
  throw new LazydiskError('USAGE', 'no --run-dir was given and XDG_RUNTIME_DIR is not set');
}
