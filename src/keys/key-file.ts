/**
 * The file that holds a tenant's key: readable only by its owner, created once and never overwritten, because the
 * images sealed under a lost key are lost.
 */
import { constants } from 'node:fs';
import { type FileHandle, open, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errorText, LazydiskError } from '../errors.ts';
import { type NewKeyOptions, TenantKey } from '../format/keys.ts';

/** A key file is about 250 bytes; a file larger than this is not one. */
const KEY_FILE_BYTES_MAX = 16 * 1024;

/** Creates a new random key in a new file of mode 0600. Throws EXISTS if `path` exists, USAGE, UNAVAILABLE. */
export async function newKeyFile(path: string, options: NewKeyOptions = {}): Promise<TenantKey> {
  const key = TenantKey.generate(options);
  let file: FileHandle;
  try {
    file = await open(path, 'wx', 0o600);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'EEXIST')
      throw new LazydiskError('EXISTS', `key file ${path} already exists and is not replaced`, { cause });
    throw new LazydiskError('UNAVAILABLE', `key file ${path}: ${errorText(cause)}`, { cause });
  }
  try {
    await file.writeFile(key.secretText());
    await file.sync();
    await file.close();
    const directory = await open(dirname(path), 'r');
    await directory.sync().finally(() => directory.close());
  } catch (cause) {
    await file.close().catch(() => undefined);
    await unlink(path).catch(() => undefined);
    throw new LazydiskError('UNAVAILABLE', `key file ${path}: ${errorText(cause)}`, { cause });
  }
  return key;
}

/** Returns the key in `path`. Throws KEY if it is missing, unreadable, accessible to group or others, or not a key. */
export async function loadKeyFile(path: string): Promise<TenantKey> {
  const text = await readPrivate(path).catch((cause) => {
    if (cause instanceof LazydiskError) throw cause;
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
    const why = missing
      ? 'does not exist; `lazydisk key new` creates one'
      : `cannot be read: ${errorText(cause)}`;
    throw new LazydiskError('KEY', `key file ${path} ${why}`, { cause });
  });
  try {
    return TenantKey.parse(text);
  } catch (cause) {
    throw new LazydiskError('KEY', `key file ${path}: ${errorText(cause)}`, { cause });
  }
}

async function readPrivate(path: string): Promise<string> {
  // Nonblocking, otherwise a FIFO at this path would block the program until another process writes to it.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const { mode, size } = await file.stat();
    if ((mode & constants.S_IFMT) !== constants.S_IFREG)
      throw new LazydiskError('KEY', `key file ${path} is not a regular file`);
    if (mode & 0o077) {
      const octal = (mode & 0o777).toString(8).padStart(4, '0');
      throw new LazydiskError(
        'KEY',
        `key file ${path} is accessible to users other than its owner (mode ${octal}); chmod 600 it, and consider who may have read it`,
      );
    }
    if (size > KEY_FILE_BYTES_MAX)
      throw new LazydiskError('KEY', `key file ${path} is too large to be a key (${size} bytes)`);
    return await file.readFile('utf8');
  } finally {
    await file.close();
  }
}
