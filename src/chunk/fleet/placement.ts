/**
 * Which nodes hold the shards of a chunk: weighted rendezvous hashing. Every node gets a score for the chunk from a
 * hash of both names; the best n, in order of score, hold shards 0 to n-1. This needs no table, all workers agree, and
 * a node that is added or removed moves only the shards that it gains or held.
 *
 * The score is `weight / -ln(u)` with u uniform in (0, 1) from the hash, which gives each node exactly the share of its
 * weight (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005). Where nodes name failure zones, a
 * zone gets a second shard only when every zone has one, so that n shards survive the loss of a zone as well as the
 * zones allow.
 */
import { createHash } from 'node:crypto';
import type { ChunkId } from '../../format/chunk-id.ts';

export interface PlacementNode {
  /** The name that is hashed: must stay the same across restarts and address changes of a node. */
  readonly name: string;
  /** Relative capacity, above 0. */
  readonly weight: number;
  /** Failure zone; nodes without one are each a zone of their own. */
  readonly zone?: string;
}

/** Makes the 64-bit state that a node's scores start from; computed once per node. */
function seedOf(name: string): [number, number] {
  const digest = createHash('sha256').update('lazydisk node ').update(name).digest();
  return [digest.readUInt32LE(0), digest.readUInt32LE(4)];
}

/** A 32-bit finaliser with full avalanche (the mixing constants of MurmurHash3's fmix32, public domain). */
function mix(value: number): number {
  let h = value | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

export class Placement<N extends PlacementNode> {
  readonly nodes: readonly N[];
  readonly #seeds: readonly [number, number][];

  constructor(nodes: readonly N[]) {
    // Sorted, so that equal scores give the same node on every worker, whatever the order of the list.
    this.nodes = [...nodes].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
    this.#seeds = this.nodes.map((node) => seedOf(node.name));
  }

  /** The nodes of shards 0 to n-1, distinct; fewer than n where there are fewer nodes. */
  place(id: ChunkId, n: number): N[] {
    // An id is a SHA-256, so any 64 bits of it are as good as a hash of it.
    const idHigh = Number.parseInt(id.slice(0, 8), 16);
    const idLow = Number.parseInt(id.slice(8, 16), 16);
    const scored = this.nodes.map((node, at) => {
      const [high, low] = this.#seeds[at]!;
      const top = mix(idHigh ^ high ^ mix(idLow ^ low));
      const bottom = mix(idLow ^ high ^ mix(idHigh ^ low ^ 0x9e3779b9));
      // 53 bits, in (0, 1).
      const uniform = ((top >>> 5) * 2 ** 26 + (bottom >>> 6) + 0.5) / 2 ** 53;
      return { node, score: node.weight / -Math.log(uniform) };
    });
    scored.sort((a, b) => b.score - a.score);
    const chosen: N[] = [];
    const perZone = new Map<string, number>();
    for (let round = 1; chosen.length < n && chosen.length < scored.length; round++) {
      for (const { node } of scored) {
        if (chosen.length === n) break;
        const zone = node.zone === undefined ? `node ${node.name}` : `zone ${node.zone}`;
        const held = perZone.get(zone) ?? 0;
        if (held >= round || chosen.includes(node)) continue;
        perZone.set(zone, held + 1);
        chosen.push(node);
      }
    }
    return chosen;
  }
}
