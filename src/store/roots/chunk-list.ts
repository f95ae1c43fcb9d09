/**
 * Which chunks a root has, for a writer that is about to look for many of them: one listing where that costs less than a
 * HEAD for each. Chunk ids are spread evenly, so the chunks of an image lie in all folders alike, and a listing of some
 * folders saves nothing: it is all of the root or none of it.
 *
 * The estimate. A page of 1,000 keys is a tenth of a second of a far store at most, and pages come one after the other; of
 * HEADs, 16 to 64 are in flight. So at a round trip of 30 ms, where a page takes some 45 ms, 1,000 HEADs in 32 lanes take as
 * long as 20 pages. In money a page is 12 HEADs (AWS: $5 a million LISTs, $0.40 a million HEADs), in bytes 300 (a page has
 * 300 KB, a HEAD 1 KB with its answer). With LISTED_PER_CHUNK = 10, 1,000 HEADs become 10 pages at most: half of the time, an
 * eighth of the money, and 3 bytes for each of the HEADs' one, which are 1 % of the chunks' own. How many chunks a root has
 * the first page tells, by how far into the ids it reaches; so one page is all that is lost to a root that is too large.
 *
 * Putting without a look, by `If-None-Match: *`, would not be cheaper: what is there already, in a second build all of it,
 * is sent nevertheless, and to wait for `100 Continue` first is the same round trip as the HEAD.
 */
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import { type AreaPath, chunksPrefix, meaningOf } from './layout.ts';

/** A root with up to this many chunks for each one that is looked for is listed. */
const LISTED_PER_CHUNK = 10;
/** Some 30 MB of ids. */
const LISTED_MAX = 100_000;
/** Digits of an id that say how far into all ids it is. */
const PLACE_DIGITS = 8;

/**
 * Lengths of all chunks in `area` by id, for who looks for `wanted` of them; undefined where it is cheaper to ask for each.
 * Throws UNAVAILABLE.
 */
export async function listChunks(
  objects: ObjectStore,
  area: AreaPath,
  wanted: number,
): Promise<Map<ChunkId, number> | undefined> {
  const listedMax = Math.min(wanted * LISTED_PER_CHUNK, LISTED_MAX);
  if (objects.isLocal || listedMax < 1) return undefined;
  const found = new Map<ChunkId, number>();
  let lastPlace = 0;
  for await (const page of objects.list(chunksPrefix(area))) {
    for (const { key, sizeBytes } of page) {
      const meaning = meaningOf(key);
      if (meaning?.kind !== 'chunk') continue;
      found.set(meaning.id, sizeBytes);
      lastPlace = Math.max(lastPlace, placeOf(meaning.id));
    }
    // So many chunks it will be. In another order it is fewer, and then the limit is met later.
    if (found.size > lastPlace * listedMax) return undefined;
  }
  return found;
}

/** Which share of all ids comes before `id` or is it; never 0. */
function placeOf(id: ChunkId): number {
  return (Number.parseInt(id.slice(0, PLACE_DIGITS), 16) + 1) / 16 ** PLACE_DIGITS;
}
