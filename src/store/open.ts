/** From a store's URL, as a person gives it, to the store. */
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LazydiskError } from '../errors.ts';
import { DirStore } from './dir-store.ts';
import type { Store } from './store.ts';

export interface OpenStoreOptions {
  /** Make the store if nothing is there. */
  readonly create?: boolean;
}

/**
 * Opens `file:///DIR` or a plain path. Throws USAGE for a URL that is none, UNSUPPORTED for other kinds of
 * store, NOT_FOUND if there is no store and `create` is not set.
 */
export async function openStore(url: string, options: OpenStoreOptions = {}): Promise<Store> {
  return DirStore.open(directoryOf(url), options);
}

function directoryOf(url: string): string {
  if (url === '') throw new LazydiskError('USAGE', 'store URL is empty; want file:///DIR or a path');
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):\/\//.exec(url)?.[1]?.toLowerCase();
  if (scheme === undefined) return resolve(url);
  if (scheme !== 'file')
    throw new LazydiskError('UNSUPPORTED', `store URL ${scheme}://…: want file:///DIR or a path`);
  // `file://relative/dir` is what people type; by the letter its first part is a host.
  const rest = url.slice('file://'.length);
  if (!rest.startsWith('/')) return resolve(rest);
  try {
    return fileURLToPath(url);
  } catch (cause) {
    throw new LazydiskError('USAGE', `store URL ${url}: want file:///DIR or a path`, { cause });
  }
}
