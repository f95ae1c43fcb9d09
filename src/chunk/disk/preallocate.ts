/**
 * Disk space taken before it is needed, so that the cache's cap is a fact and a full disk shows at start. Node
 * has no fallocate(2); the command of that name is in util-linux, which every Debian machine has.
 */
import { execFile } from 'node:child_process';
import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** Bytes that a process may still write to the file system of `path`. */
export async function freeBytes(path: string): Promise<number> {
  const stats = await statfs(path);
  return stats.bavail * stats.bsize;
}

/**
 * Allocates `file` up to `sizeBytes` without changing what is in it. False if the space is not there or the
 * file system cannot allocate ahead; writes may then fail with ENOSPC later, which the cache survives.
 */
export async function preallocate(file: string, sizeBytes: number): Promise<boolean> {
  try {
    await run('fallocate', ['--offset', '0', '--length', String(sizeBytes), file], { cwd: dirname(file) });
    return true;
  } catch {
    return false;
  }
}
