/**
 * Ending FUSE connections from outside.
 */
import { writeFile } from 'node:fs/promises';

/** Ends connection `minor`: every request that waits gets an error. False if sysfs does not offer it. */
export async function abortConnection(minor: number): Promise<boolean> {
  try {
    await writeFile(`/sys/fs/fuse/connections/${minor}/abort`, '1');
    return true;
  } catch {
    return false;
  }
}
