/** External programs that a test needs: present, or a visible skip for a user and a failure in CI. */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';

/** Whether `name` is an executable on the PATH or in a directory that only root's PATH has. */
export function hasTool(name: string): boolean {
  const dirs = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin'];
  return dirs.some((dir) => {
    try {
      accessSync(join(dir, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Returns true, after a visible skip (in CI: a failure), if one of `tools` is missing. */
export function skipWithout(t: Test, ...tools: string[]): boolean {
  const missing = tools.filter((tool) => !hasTool(tool));
  if (missing.length === 0) return false;
  const text = `needs ${missing.join(', ')}`;
  if (process.env.CI) t.fail(text);
  else t.comment(`skipped: ${text}`);
  return true;
}
