/** Restores swept objects that are live by now: a writer relied on them before the sweep could know. */
import { pooled } from '../../async/pooled.ts';
import { LazydiskError } from '../../errors.ts';
import type { ObjectInfo, ObjectStore } from '../objects/object-store.ts';
import { type AreaPath, chunkKey, manifestKey, meaningOf } from '../roots/layout.ts';
import { carryManifest } from '../roots/place-manifest.ts';
import type { LiveSet } from './mark.ts';

const COPIES_MAX = 16;

/**
 * Copies the live objects of `page` that are missing from `root` into it. Returns those that it copied, or with
 * `dryRun` would copy.
 */
export async function restore(
  objects: ObjectStore,
  page: readonly ObjectInfo[],
  root: AreaPath,
  live: LiveSet,
  dryRun = false,
): Promise<ObjectInfo[]> {
  const restored: ObjectInfo[] = [];
  await pooled(COPIES_MAX, page, async (info) => {
    const { key } = info;
    const meaning = meaningOf(key);
    if (meaning?.kind !== 'chunk' && meaning?.kind !== 'manifest') return;
    const isLive = meaning.kind === 'chunk' ? live.chunks.has(meaning.id) : live.images.has(meaning.digest);
    if (!isLive || (await objects.head(inArea(key, root)))) return;
    restored.push(info);
    if (dryRun) return;
    if (meaning.kind === 'manifest') await carryManifest(objects, meaning, [meaning.area], root);
    else await objects.copy(key, inArea(key, root));
  });
  return restored;
}

/** The key of the same object in another area. Throws INTERNAL for an object that belongs to no area. */
export function inArea(key: string, area: AreaPath): string {
  const meaning = meaningOf(key);
  if (meaning?.kind === 'chunk') return chunkKey(area, meaning.id);
  if (meaning?.kind === 'manifest') return manifestKey(area, meaning.digest, meaning.keyId);
  throw new LazydiskError('INTERNAL', `${key} does not move between areas`);
}
