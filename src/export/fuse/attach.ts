/**
 * Mounting and unmounting: as root with the system calls, otherwise through fusermount3, the set-user-id helper that
 * mounts for its caller and passes the descriptor back over a socket. Also removes mounts that a killed daemon left
 * behind.
 */
import { spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import { realpath } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { getSystemErrorMessage } from 'node:util';
import { fuseMount, fuseUnmount, receiveFd, socketPair } from '../../../native/index.ts';
import { LazydiskError } from '../../errors.ts';
import { abortConnection } from './guard.ts';
import { MOUNT_SOURCE, MOUNT_TYPE, ourMountsAt } from './mountinfo.ts';

/** The most mounts on top of each other that are removed; more than one is an error already. */
const STACKED_MAX = 16;

/** The absolute path of `dir` with the symbolic links of its parents resolved. `dir` itself is not accessed. */
export async function mountPointOf(dir: string): Promise<string> {
  const absolute = resolve(dir);
  return join(await realpath(dirname(absolute)), basename(absolute));
}

/** Mounts on `dir` (see mountPointOf) and returns the FUSE descriptor. Throws UNAVAILABLE, with the remedy. */
export async function attach(dir: string): Promise<number> {
  const isRoot = process.geteuid?.() === 0;
  return isRoot ? attachAsRoot(dir) : attachByHelper(dir);
}

/** Unmounts `dir`; open files stay open. Throws UNAVAILABLE. */
export async function detach(dir: string): Promise<void> {
  if (process.geteuid?.() !== 0) {
    await fusermount(['-u', '-z', '--', dir], []);
    return;
  }
  const errno = await unmountAsRoot(dir, false);
  if (errno !== 0) throw new LazydiskError('UNAVAILABLE', `cannot unmount ${dir}: ${errnoText(errno)}`);
}

/**
 * Removes the mount that a dead daemon left at `dir`: ends its connection, so that readers that still wait get an
 * error, and detaches it. Touches only a lazydisk mount at exactly `dir`, and nothing inside it. The caller must know
 * that its daemon is dead (by the lock on the run directory). Returns whether there was one.
 */
export async function cleanStaleMount(dir: string): Promise<boolean> {
  const place = await mountPointOf(dir).catch(() => undefined);
  if (!place) return false;
  for (let cleaned = 0; cleaned < STACKED_MAX; cleaned++) {
    const mount = (await ourMountsAt(place)).at(-1);
    if (!mount) return cleaned > 0;
    await abortConnection(mount.minor);
    if (process.geteuid?.() === 0) await unmountAsRoot(place, true);
    else await fusermount(['-u', '-z', '--', place], []);
  }
  throw new LazydiskError('BUSY', `${place}: cannot remove the mounts of another daemon`);
}

function attachAsRoot(dir: string): number {
  const options = [
    'rootmode=40000',
    `user_id=${process.geteuid?.() ?? 0}`,
    `group_id=${process.getegid?.() ?? 0}`,
    'default_permissions',
    // Guests run as other users; the permissions of the files decide.
    'allow_other',
  ];
  const fd = fuseMount(MOUNT_SOURCE, dir, MOUNT_TYPE, options.join(','));
  if (fd >= 0) return fd;
  throw new LazydiskError('UNAVAILABLE', `cannot mount FUSE on ${dir}: ${errnoText(-fd)}`);
}

async function attachByHelper(dir: string): Promise<number> {
  const [ours, theirs] = socketPair();
  try {
    const flags = 'ro,nosuid,nodev,noexec,noatime,default_permissions';
    const options = `${flags},fsname=${MOUNT_SOURCE},subtype=lazydisk`;
    try {
      await fusermount(['-o', options, '--', dir], [theirs]);
    } finally {
      closeSync(theirs);
    }
    const fd = receiveFd(ours);
    if (fd >= 0) return fd;
    throw new LazydiskError('UNAVAILABLE', `fusermount3 returned no descriptor: ${errnoText(-fd)}`);
  } finally {
    closeSync(ours);
  }
}

/** Runs fusermount3 with the first of `pass` as its descriptor 3. Throws UNAVAILABLE with its error output. */
async function fusermount(args: string[], pass: number[]): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<number | null>();
  const child = spawn('fusermount3', args, {
    stdio: ['ignore', 'ignore', 'pipe', ...pass],
    env: { PATH: process.env.PATH ?? '', ...(pass.length > 0 ? { _FUSE_COMMFD: '3' } : {}) },
  });
  let text = '';
  child.stderr!.on('data', (data: Buffer) => {
    if (text.length < 4096) text += data.toString();
  });
  child.on('error', reject);
  child.on('close', resolve);
  let code: number | null;
  try {
    code = await promise;
  } catch (cause) {
    const remedy = 'without root a FUSE mount needs fusermount3: apt-get install fuse3';
    throw new LazydiskError('UNAVAILABLE', remedy, { cause });
  }
  if (code !== 0) throw new LazydiskError('UNAVAILABLE', text.trim() || `fusermount3 exited with ${code}`);
}

function unmountAsRoot(dir: string, abort: boolean): Promise<number> {
  return new Promise((resolve) => fuseUnmount(dir, abort, resolve));
}

function errnoText(errno: number): string {
  return getSystemErrorMessage(-errno) ?? `errno ${errno}`;
}
