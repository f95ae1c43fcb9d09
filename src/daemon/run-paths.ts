/** Where a daemon's run directory is and what lies in it: for who looks for a daemon, and for the one who is it. */
import { join } from 'node:path';
import { LazydiskError } from '../errors.ts';

/** sun_path in Linux has 108 bytes, and the last is a zero. */
const SOCKET_PATH_BYTES_MAX = 107;

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
