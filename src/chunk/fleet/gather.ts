/**
 * The first-k reader: asks every holder of a chunk's shards at once and finishes with the first k that verify, or as
 * soon as k can no longer arrive. It knows nothing of memcached: a holder is a function, so the same code runs against
 * real nodes and against a simulated network.
 */
import { erasureReconstruct } from '../../../native/index.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import { type Code, proveShard, SHARD_HEADER_BYTES, shardBytesOf } from './shard.ts';

/** A holder's answer: its value is now in the sink, or it has none (`won`: the caller must fill it). */
export type Answer =
  | { readonly kind: 'value'; readonly valueBytes: number }
  | { readonly kind: 'miss'; readonly lease: 'none' | 'won' | 'held' };

/** Where a holder's value goes: its header, then its data. */
export interface ShardSink {
  readonly head: Buffer;
  readonly body: Buffer;
}

/** Asks one holder. Rejects if it could not tell. After `signal` it must not touch the sink. */
export type Ask = (sink: ShardSink, signal: AbortSignal) => Promise<Answer>;

export interface Gathered {
  /** True: `shards` holds the whole chunk, data shards in order. */
  readonly complete: boolean;
  /** One bit for each index that was verified before the end. */
  readonly present: number;
  /** Data shards were computed from parity. */
  readonly reconstructed: boolean;
  /** Ranks of holders that have nothing, or whose shard failed verification. */
  readonly empty: readonly number[];
  /** Ranks that had not answered at the end. */
  readonly unanswered: readonly number[];
  readonly lease: 'none' | 'won' | 'held';
}

export interface GatherOptions {
  readonly id: ChunkId;
  readonly sealedBytes: number;
  readonly code: Code;
  /** Holders by rank; undefined: do not ask. Rank r most likely holds shard r. */
  readonly holders: readonly (Ask | undefined)[];
  /** The holder with the lease (-1: none is asked): a gather that fails waits for its answer. */
  readonly leaseRank: number;
  /** n × SHARD_HEADER_BYTES bytes, then n × shard length; owned by this gather until it settles. */
  readonly buffer: Buffer;
  /** Ends the gather at once, incomplete. */
  readonly signal?: AbortSignal | undefined;
  /** Called when the holder of this rank returned a shard that fails verification. */
  readonly onLie: (rank: number) => void;
}

/** Bytes of buffer that a gather needs. */
export function gatherBytes(sealedBytes: number, code: Code): number {
  return (code.k + code.m) * (SHARD_HEADER_BYTES + shardBytesOf(sealedBytes, code));
}

/** The part of `buffer` that holds the shards after a gather. */
export function shardsOf(buffer: Buffer, sealedBytes: number, code: Code): Buffer {
  const n = code.k + code.m;
  return buffer.subarray(n * SHARD_HEADER_BYTES, gatherBytes(sealedBytes, code));
}

/** Never rejects: failures are in the result. */
export function gather(options: GatherOptions): Promise<Gathered> {
  const { id, sealedBytes, code, holders, leaseRank, buffer } = options;
  const { k } = code;
  const shardBytes = shardBytesOf(sealedBytes, code);
  const shards = shardsOf(buffer, sealedBytes, code);
  const control = new AbortController();
  const unanswered = new Set<number>();
  const empty: number[] = [];
  const otherLengths: number[] = [];
  let present = 0;
  let proven = 0;
  let lease: Gathered['lease'] = 'none';

  /**
   * Shards whose index is not their holder's rank (the list of nodes has changed since they were written). The holder
   * of that rank may be writing to the index's place right now, so these shards are set aside until the end.
   */
  const aside = new Map<number, Buffer>();

  return new Promise((resolve) => {
    let done = false;
    const finishIfDecided = () => {
      if (done) return;
      const complete = proven >= k;
      const isOpen = proven + unanswered.size >= k || unanswered.has(leaseRank);
      if (!complete && isOpen && !options.signal?.aborted) return;
      done = true;
      options.signal?.removeEventListener('abort', finishIfDecided);
      control.abort();
      for (const [index, shard] of aside) shards.set(shard, index * shardBytes);
      // k shards prove the length; until then, the length that was asked for may be the wrong one.
      if (complete) for (const rank of otherLengths) options.onLie(rank);
      const dataMask = (1 << k) - 1;
      const reconstructed = complete && (present & dataMask) !== dataMask;
      if (reconstructed) erasureReconstruct(k, code.m, shards, present);
      resolve({ complete, present, reconstructed, empty, unanswered: [...unanswered], lease });
    };

    const take = (rank: number, answer: Answer, sink: ShardSink) => {
      if (answer.kind === 'miss') {
        empty.push(rank);
        if (answer.lease === 'won' || lease === 'none') lease = answer.lease;
        return;
      }
      const index = proveShard(sink.head, sink.body, answer.valueBytes, { id, sealedBytes }, code);
      if (typeof index !== 'number') {
        empty.push(rank);
        if (index === undefined) options.onLie(rank);
        else otherLengths.push(rank);
        return;
      }
      if (index === rank) aside.delete(index);
      if ((present >> index) & 1) return;
      if (index !== rank) aside.set(index, Buffer.from(sink.body));
      present |= 1 << index;
      proven++;
    };

    holders.forEach((ask, rank) => {
      if (ask) unanswered.add(rank);
    });
    holders.forEach((ask, rank) => {
      if (!ask) return;
      const sink = {
        head: buffer.subarray(rank * SHARD_HEADER_BYTES, (rank + 1) * SHARD_HEADER_BYTES),
        body: shards.subarray(rank * shardBytes, (rank + 1) * shardBytes),
      };
      const answered = (answer: Answer | undefined) => {
        unanswered.delete(rank);
        if (done) return;
        if (answer) take(rank, answer, sink);
        finishIfDecided();
      };
      ask(sink, control.signal).then(answered, () => answered(undefined));
    });
    options.signal?.addEventListener('abort', finishIfDecided);
    finishIfDecided();
  });
}
