/** The control API's view of the fleet: its nodes, and where chunks are stored. */
import { pooled } from '../async/pooled.ts';
import type { Fleet } from '../chunk/fleet/fleet.ts';
import type { ShardPlace } from '../chunk/fleet/fleet-tier.ts';
import { LazydiskError } from '../errors.ts';
import type { ChunkId } from '../format/chunk-id.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import { loadImage } from '../store/image.ts';
import type { Store } from '../store/store.ts';
import type { FleetInfo, FleetPlaces } from './api.ts';

const CHUNK_ID = /^[0-9a-f]{64}$/;
/** Chunks that are looked up at once. */
const LOCATES_MAX = 64;
/** Keeps the answer within the control API's time limit. */
const CHUNKS_MAX = 100_000;

export function describeFleet(fleet: Fleet): FleetInfo {
  const { nodes, ...counters } = fleet.stats();
  return {
    url: fleet.url,
    state: fleet.state,
    ...counters,
    nodes: nodes.map(({ zone, lastError, ...node }) => ({
      ...node,
      zone: zone ?? null,
      lastError: lastError ?? null,
    })),
  };
}

/** Throws NOT_FOUND, USAGE, KEY, CORRUPT, as `loadImage` does; UNSUPPORTED for an image with too many chunks. */
export async function locateInFleet(
  fleet: Fleet,
  chunkOrImage: string,
  store: Store,
  keys: KeyRing,
): Promise<FleetPlaces> {
  const isChunk = CHUNK_ID.test(chunkOrImage);
  const ids = isChunk ? [chunkOrImage as ChunkId] : await chunksOf(chunkOrImage, store, keys);
  if (ids.length > CHUNKS_MAX)
    throw new LazydiskError('UNSUPPORTED', `${chunkOrImage} has ${ids.length} chunks; ask for one of them`);
  const { k } = fleet.stats();
  const nodes = new Map<
    string,
    { zone: string | null; expected: number; there: number; bytes: number; unreachable: number }
  >();
  let readable = 0;
  let last: ShardPlace[] = [];
  await pooled(LOCATES_MAX, ids, async (id) => {
    last = await fleet.locate(id);
    const indices = new Set<number>();
    for (const { node, zone, state, index, bytes } of last) {
      let sum = nodes.get(node);
      if (!sum) {
        sum = { zone: zone ?? null, expected: 0, there: 0, bytes: 0, unreachable: 0 };
        nodes.set(node, sum);
      }
      sum.expected++;
      if (state === 'unreachable') sum.unreachable++;
      if (state !== 'there') continue;
      sum.there++;
      sum.bytes += bytes ?? 0;
      indices.add(index ?? -1);
    }
    if (indices.size >= k) readable++;
  });
  return {
    chunks: ids.length,
    readable,
    nodes: [...nodes].map(([node, sum]) => ({ node, ...sum })).sort((a, b) => (a.node < b.node ? -1 : 1)),
    shards: isChunk
      ? last.map(({ node, state, index, bytes, why }) => ({
          node,
          state,
          index: index ?? null,
          bytes: bytes ?? null,
          why: why ?? null,
        }))
      : [],
  };
}

async function chunksOf(image: string, store: Store, keys: KeyRing): Promise<ChunkId[]> {
  const { manifest } = await loadImage(store, image, keys);
  const ids = new Set<ChunkId>();
  for (let entry = 0; entry < manifest.storedChunks; entry++) ids.add(manifest.ref(entry).id);
  return [...ids];
}
