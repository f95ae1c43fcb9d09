/** What a test needs of the machine and the user: present, or a visible skip for a user and a failure in CI. */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';

/** Whether `name` is an executable on the PATH or in a directory that only root's PATH has. */
export function hasTool(name: string): boolean {
  const dirs = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin'];
  return dirs.some((dir) => isAccessible(join(dir, name), constants.X_OK));
}

/** Reports that a test is skipped because `what` is missing (in CI: fails it). */
export function skip(t: Test, what: string): void {
  if (process.env.CI) t.fail(`needs ${what}`);
  else t.comment(`skipped: needs ${what}`);
}

/** Returns true, after a visible skip (in CI: a failure), if one of `tools` is missing. */
export function skipWithout(t: Test, ...tools: string[]): boolean {
  const missing = tools.filter((tool) => !hasTool(tool));
  if (missing.length > 0) skip(t, missing.join(', '));
  return missing.length > 0;
}

/** Returns true, after a visible skip (in CI: a failure), if the user is not root; `why` ends "needs root to". */
export function skipWithoutRoot(t: Test, why: string): boolean {
  if (process.geteuid?.() === 0) return false;
  skip(t, `root to ${why}`);
  return true;
}

/** Returns true, after a visible skip (in CI: a failure), where FUSE cannot be mounted or one of `tools` is missing. */
export function skipWithoutFuse(t: Test, ...tools: string[]): boolean {
  if (skipWithout(t, ...tools)) return true;
  const isOpen = isAccessible('/dev/fuse', constants.R_OK | constants.W_OK);
  if (isOpen && (process.geteuid?.() === 0 || hasTool('fusermount3'))) return false;
  skip(t, '/dev/fuse, and root or fusermount3');
  return true;
}

function isAccessible(path: string, mode: number): boolean {
  try {
    accessSync(path, mode);
    return true;
  } catch {
    return false;
  }
}
