/** A store in a directory, for tests, and the paths in it. */
import { readdirSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import type { ChunkId } from '../../src/format/chunk-id.ts';
import { DirObjects } from '../../src/store/objects/dir-objects.ts';
import { chunkKey, rootPath } from '../../src/store/roots/layout.ts';
import { RootStore } from '../../src/store/roots/root-store.ts';

/** Opens the store in `dir`, and creates it if it does not exist. */
export function openDirStore(dir: string): Promise<RootStore> {
  return RootStore.open(new DirObjects(dir), { create: true });
}

/** The path of the first root of the store in `dir`. */
export function rootDir(dir: string): string {
  return join(dir, rootPath(1));
}

/** The file of a chunk in the first root of the store in `dir`. */
export function chunkFileIn(dir: string, id: ChunkId): string {
  return join(dir, chunkKey(rootPath(1), id));
}

/**
 * Makes all files below `folder` of the store in `dir` that old, except those named in `but`: to the store, time has
 * passed.
 */
export function age(dir: string, folder: string, ms: number, but: readonly string[] = []): void {
  const time = new Date(Date.now() - ms);
  for (const entry of readdirSync(join(dir, folder), { recursive: true, withFileTypes: true }))
    if (entry.isFile() && !but.includes(entry.name))
      utimesSync(join(entry.parentPath, entry.name), time, time);
}
