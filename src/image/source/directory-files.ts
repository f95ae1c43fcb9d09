/** The files of an OCI layout that is unpacked in a directory. */
import { open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { LazydiskError } from '../../errors.ts';
import { readRange, type SourceFiles, systemError } from './files.ts';

/** Throws NOT_FOUND if `directory` is not a directory. */
export async function openDirectoryFiles(directory: string): Promise<SourceFiles> {
  const found = await stat(directory).catch(() => undefined);
  if (!found?.isDirectory()) throw new LazydiskError('NOT_FOUND', `${directory} is not a directory`);
  return {
    description: directory,
    async sizeOf(name) {
      try {
        const file = await stat(join(directory, name));
        // Reading a FIFO or a device could hang or never end.
        return file.isFile() ? file.size : undefined;
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
        throw systemError(directory, error);
      }
    },
    async *read(name) {
      try {
        await using file = await open(join(directory, name));
        yield* readRange(file, 0, Number.MAX_SAFE_INTEGER);
      } catch (error) {
        throw systemError(directory, error);
      }
    },
    async close() {},
  };
}
