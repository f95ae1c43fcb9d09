/**
 * Finds which chunks a root has, for a writer that is about to look for many: with one listing if that costs less than
 * a HEAD for each. Chunk ids are spread evenly, so an image's chunks are in all folders alike, and listing only some
 * folders saves nothing: it lists the whole root or none of it.
 *
 * The estimate: a page of 1,000 keys takes at most 0.1 s from a distant store, and pages come one after the other; 16
 * to 64 HEADs are in flight at once. So at a round trip of 30 ms, where a page takes about 45 ms, 1,000 HEADs in 32
 * lanes take as long as 20 pages. In money a page is 12 HEADs (AWS: $5 per million LISTs, $0.40 per million HEADs); in
 * bytes, 300 (a page is 300 KB, a HEAD with its response 1 KB). With LISTED_PER_CHUNK = 10, 1,000 HEADs become at most
 * 10 pages: half the time, an eighth of the money, and 3 times the bytes of the HEADs, which are 1 % of the chunks'
 * own. The first page tells how many chunks a root has, by how far into the id space it reaches; so a root that is too
 * large costs only one page.
 *
 * Putting without looking, with `If-None-Match: *`, would not be cheaper: existing chunks, in a second build all of
 * them, would be sent nevertheless, and waiting for `100 Continue` first is the same round trip as the HEAD.
 */
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import { type AreaPath, chunksPrefix, meaningOf } from './layout.ts';

/** A root is listed if it has up to this many chunks for each chunk that is looked for. */
const LISTED_PER_CHUNK = 10;
/** About 30 MB of ids. */
const LISTED_MAX = 100_000;
/** Digits of an id that give its position in the id space. */
const PLACE_DIGITS = 8;

/**
 * The lengths of all chunks in `area` by id, for a caller that looks for `wanted` of them; undefined if it is cheaper
 * to ask for each. Throws UNAVAILABLE.
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
    // Estimates the total from the position of the last id. If the store lists in another order, the estimate is lower,
    // and the limit is reached later.
    if (found.size > lastPlace * listedMax) return undefined;
  }
  return found;
}

/** The fraction of the id space up to and including `id`; never 0. */
function placeOf(id: ChunkId): number {
  return (Number.parseInt(id.slice(0, PLACE_DIGITS), 16) + 1) / 16 ** PLACE_DIGITS;
}
