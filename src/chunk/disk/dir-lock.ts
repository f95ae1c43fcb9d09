/**
 * One process a directory. The lock is a listening socket in Linux's abstract namespace, named by the
 * directory's device and inode: taking it is atomic, and the kernel lets go of it when the process dies,
 * however it dies, so there is no stale lock to clean. It holds within one network namespace.
 */
import { stat } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { LazydiskError } from '../../errors.ts';

/** Throws BUSY if another process holds `dir`. `purpose` keeps locks for different uses of one directory apart. */
export async function lockDirectory(dir: string, purpose: string): Promise<{ release(): Promise<void> }> {
  const { dev, ino } = await stat(dir);
  const server: Server = createServer((socket) => socket.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      reject(
        error.code === 'EADDRINUSE'
          ? new LazydiskError('BUSY', `${dir} is in use by another process (${purpose})`)
          : error,
      );
    });
    server.listen(`\0lazydisk-${purpose}-${dev}-${ino}`, resolve);
  });
  server.unref();
  return { release: () => new Promise((resolve) => server.close(() => resolve())) };
}
