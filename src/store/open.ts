/** Opens a store from its URL. Network clients are loaded on demand. */
import { readdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Patience } from '../async/patience.ts';
import { LazydiskError } from '../errors.ts';
import { DirObjects } from './objects/dir-objects.ts';
import type { ObjectStore } from './objects/object-store.ts';
import { MARKER_KEY } from './roots/layout.ts';
import { RootStore } from './roots/root-store.ts';

/** The forms of a store URL, for messages. */
const STORE_URL_FORMS = 'file:///DIR, a path, s3://BUCKET/PREFIX or https://HOST/PATH';

export interface OpenStoreOptions {
  /** Create the store if there is none. */
  readonly create?: boolean;
  /** For long work: how long to wait for a store on the network. Default: a few tries. */
  readonly patience?: Patience | undefined;
}

/**
 * Opens `file:///DIR` or a plain path, `s3://BUCKET/PREFIX?…` (s3-url.ts) or `https://HOST/PATH`. Throws USAGE for an
 * invalid URL, UNSUPPORTED for other kinds of store or another layout, NOT_FOUND if there is no store and `create` is
 * not set.
 */
export async function openStore(url: string, options: OpenStoreOptions = {}): Promise<RootStore> {
  const objects = await openObjects(url, options);
  try {
    return await RootStore.open(objects, options);
  } catch (error) {
    await objects.close();
    throw error;
  }
}

async function openObjects(url: string, { create, patience }: OpenStoreOptions): Promise<ObjectStore> {
  if (url === '') throw new LazydiskError('USAGE', `store URL is empty; want ${STORE_URL_FORMS}`);
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):\/\//.exec(url)?.[1]?.toLowerCase();
  switch (scheme) {
    case undefined:
    case 'file': {
      const path = directoryOf(url, scheme);
      if (create) await checkEmpty(path);
      return new DirObjects(path);
    }
    case 's3':
    case 'http':
    case 'https': {
      const { openRemote } = await import('./objects/remote.ts');
      return openRemote(url, scheme, patience);
    }
    default:
      throw new LazydiskError('UNSUPPORTED', `store URL ${scheme}://…: want ${STORE_URL_FORMS}`);
  }
}

function directoryOf(url: string, scheme: string | undefined): string {
  if (scheme === undefined) return resolve(url);
  // People type `file://relative/dir`; strictly, its first part is a host.
  const rest = url.slice('file://'.length);
  if (!rest.startsWith('/')) return resolve(rest);
  try {
    return fileURLToPath(url);
  } catch (cause) {
    throw new LazydiskError('USAGE', `store URL ${url}: want ${STORE_URL_FORMS}`, { cause });
  }
}

/**
 * Throws USAGE rather than create a store among other files. The beginnings of the same store, from another process,
 * are accepted.
 */
async function checkEmpty(path: string): Promise<void> {
  const names: string[] = await readdir(path).catch(() => []);
  const others = names.filter((name) => name !== 'tmp' && name !== 'state');
  if (names.includes(MARKER_KEY) || others.length === 0) return;
  throw new LazydiskError('USAGE', `${path} is no store and not empty; give an empty or a new directory`);
}
