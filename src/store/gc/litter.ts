/**
 * Finds objects in areas that no longer exist. A process that stalled, or whose write hung, may write into a root or
 * trash that has been purged meanwhile. Nobody reads those objects, so they only waste space.
 */

import type { ObjectInfo } from '../objects/object-store.ts';
import { type AreaPath, isAreaPath, meaningOf, rootNumberOf, stateKey } from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { View } from '../roots/view.ts';

const BATCH_MAX = 1000;

/** Pages of all such objects. `view` must be current. */
export async function* litterPages(
  { objects }: StoreParts,
  view: View,
): AsyncGenerator<readonly ObjectInfo[]> {
  for (const area of await strayAreas(objects, view))
    for await (const page of objects.list(`${area}/`, { pageMax: BATCH_MAX })) {
      const ours = page.filter(({ key }) => meaningOf(key));
      if (ours.length > 0) yield ours;
    }
}

/** Unknown areas with objects: roots older than all known ones, and trash without a marker. */
async function strayAreas(objects: StoreParts['objects'], view: View): Promise<AreaPath[]> {
  const known = new Set(view.areas.map(({ path }) => path));
  const oldest = Math.min(
    view.active.root,
    ...view.retired.map(({ root }) => root),
    view.draining?.root ?? Number.POSITIVE_INFINITY,
  );
  const unknown = new Set<AreaPath>();
  for (const folder of ['roots/', 'trash/'])
    for await (const page of objects.list(folder, { shallow: true }))
      for (const { key } of page) {
        const area = key.split('/', 2).join('/');
        if (!isAreaPath(area) || known.has(area)) continue;
        if (folder === 'trash/' || rootNumberOf(area) < oldest) unknown.add(area);
      }
  const stray: AreaPath[] = [];
  for (const area of unknown) {
    // The area may be so new that no listing shows its marker yet.
    const markers = [stateKey(area, 'opened'), stateKey(area, 'deleting')];
    const found = await Promise.all(markers.map((key) => objects.head(key)));
    if (found.every((info) => info === undefined)) stray.push(area);
  }
  return stray;
}
