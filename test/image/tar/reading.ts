/** How the tests of the tar reader read, and the error that they expect of a malformed archive. */
import type { Test } from 'tap';
import { type ReadEntry, readEntries } from '../../support/image.ts';

/** The end marker. */
export const END = Buffer.alloc(1024);

/** The only entry of the tar. */
export async function one(tar: Buffer): Promise<ReadEntry> {
  const [entry, ...more] = await readEntries(tar);
  if (!entry || more.length > 0) throw new Error('want exactly one entry');
  return entry;
}

/** Asserts that reading the tar rejects with this message and code. */
export const corrupt = (t: Test, tar: Buffer, message: RegExp, code = 'CORRUPT') =>
  t.rejects(readEntries(tar), { code, message });
