/**
 * Allocates disk space before it is needed, so that the cap is guaranteed and a full disk shows at start. Node has no
 * fallocate(2), so this runs the fallocate command of util-linux, which every Debian system has.
 */
import { execFile } from 'node:child_process';
import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** A cache leaves others a tenth of the file system, but not more than this. */
const HEADROOM_BYTES_MAX = 1024 ** 3;

/** Bytes that a process may still write to the file system of `path`, and how many of them a cache leaves to others. */
export async function freeBytes(path: string): Promise<{ freeBytes: number; headroomBytes: number }> {
  const { bavail, blocks, bsize } = await statfs(path);
  const headroomBytes = Math.min(HEADROOM_BYTES_MAX, Math.floor((blocks * bsize) / 10));
  return { freeBytes: bavail * bsize, headroomBytes };
}

/**
 * Allocates `file` up to `sizeBytes` without changing its content. False if there is not enough space or the file
 * system cannot preallocate; later writes may then fail with ENOSPC, which the cache survives.
 */
export async function preallocate(file: string, sizeBytes: number): Promise<boolean> {
  try {
    await run('fallocate', ['--offset', '0', '--length', String(sizeBytes), file], { cwd: dirname(file) });
    return true;
  } catch {
    return false;
  }
}
