/**
 * The shared cache as a tier: a chunk's k + m shards on as many memcached nodes; a read finishes with the first k
 * shards that verify (gather.ts). A slow or dead node costs only its shard, which parity replaces.
 *
 * Filling: the first reader to miss on a chunk gets memcached's recache lease on the chunk's first node (`W`: an empty
 * item was created for it), reads the origin, and puts the shards. Others meanwhile (`Z`) wait for the shards. The
 * empty item lives for LEASE_SECONDS, so a lease holder that dies blocks nobody for longer.
 * Source: memcached's doc/protocol.txt, "mg", flags N, W, Z and X.
 */
import { erasureEncode } from '../../../native/index.ts';
import type { ReadContext } from '../../async/read-context.ts';
import { errorText, LazydiskError } from '../../errors.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../../format/chunk-id.ts';
import { Places } from '../places.ts';
import type { ChunkTier, SealedLoan } from '../tier.ts';
import { type Answer, type Gathered, gather, gatherBytes, type ShardSink, shardsOf } from './gather.ts';
import { type MetaReply, metaDelete, metaGet, metaSet } from './meta-protocol.ts';
import { FleetNode, type NodeAddress, type NodeOptions, type NodeStats } from './node.ts';
import { Placement } from './placement.ts';
import { type Code, checkCode, SHARD_HEADER_BYTES, shardBytesOf, writeShardHeader } from './shard.ts';

/** memcached counts whole seconds: an item with 2 lives for one to two. */
const LEASE_SECONDS = 2;
/** A chunk that failed verification stays marked stale for this long if nobody refills it. */
const STALE_SECONDS = 30;
/** The longest wait for another reader's fill, whoever holds the lease. */
const LEASE_WAIT_MS = 3_000;
const POLL_MIN_MS = 4;
const POLL_MAX_MS = 64;
const GATHERS_MAX = 32;
const CRLF = Buffer.from('\r\n', 'latin1');

export interface FleetOptions {
  readonly code: Code;
  readonly nodes: readonly NodeAddress[];
  readonly node: NodeOptions;
  /** How long one attempt at the fleet may take before the origin is asked. */
  readonly timeoutMs: number;
  /** Sealed bytes being written into the fleet at once; more is dropped. */
  readonly fillBytesMax: number;
  /**
   * Reads at the fleet at once; each has a buffer for a chunk and its parity until it is decoded. Others wait in a fair
   * queue, so that no node counts as slow for what waits behind our own reads. Default 32.
   */
  readonly gathersMax?: number;
}

export interface FleetStats {
  readonly nodes: readonly NodeStats[];
  readonly k: number;
  readonly m: number;
  readonly reconstructions: number;
  readonly repairs: number;
  readonly leaseWins: number;
  readonly leaseWaits: number;
  /** Reads that found some shards, but fewer than k. */
  readonly tooFew: number;
  readonly fills: number;
  readonly fillsDropped: number;
}

/** What a node holds of a chunk. */
export interface ShardPlace {
  readonly node: string;
  readonly zone: string | undefined;
  readonly state: 'there' | 'absent' | 'filling' | 'stale' | 'unreachable';
  /** For a shard that is there: its index, from 0, and its size in the node in bytes, header included. */
  readonly index?: number;
  readonly bytes?: number;
  readonly why?: string;
}

export class FleetTier implements ChunkTier {
  readonly name = 'fleet';
  readonly #options: FleetOptions;
  readonly #bufferBytes: number;
  readonly #buffers: Buffer[] = [];
  readonly #places: Places;
  readonly #discarded = new Set<ChunkId>();
  readonly #work = new Set<Promise<unknown>>();
  #placement: Placement<NodeAddress>;
  #nodes = new Map<string, FleetNode>();
  #fillBytes = 0;
  #closed = false;
  #reconstructions = 0;
  #repairs = 0;
  #leaseWins = 0;
  #leaseWaits = 0;
  #tooFew = 0;
  #fills = 0;
  #fillsDropped = 0;

  /** Throws USAGE for an invalid code. Connects to no node before the first read. */
  constructor(options: FleetOptions) {
    checkCode(options.code);
    this.#options = options;
    this.#places = new Places({ name: 'fleet', places: options.gathersMax ?? GATHERS_MAX });
    this.#bufferBytes = gatherBytes(SEALED_BYTES_MAX, options.code);
    this.#placement = new Placement([]);
    this.setNodes(options.nodes);
  }

  /** Replaces the list of nodes; connections to the nodes that remain are kept. With no nodes, every read is a miss. */
  setNodes(addresses: readonly NodeAddress[]): void {
    const next = new Map<string, FleetNode>();
    for (const address of addresses) {
      const known = this.#nodes.get(address.name);
      const same = known && known.address.host === address.host && known.address.port === address.port;
      next.set(address.name, same ? known : new FleetNode(address, this.#options.node));
    }
    for (const [name, node] of this.#nodes) if (next.get(name) !== node) node.close();
    this.#nodes = next;
    this.#placement = new Placement(addresses);
  }

  /** The nodes of shards 0 to k + m - 1 of a chunk. */
  holdersOf(id: ChunkId): FleetNode[] {
    const { k, m } = this.#options.code;
    return this.#placement.place(id, k + m).map((address) => this.#nodes.get(address.name)!);
  }

  async get(id: ChunkId, sealedBytes: number, ctx: ReadContext): Promise<SealedLoan | undefined> {
    if (this.#closed || sealedBytes > SEALED_BYTES_MAX) return undefined;
    const giveUpAt = performance.now() + Math.min(LEASE_WAIT_MS, (ctx.deadline - performance.now()) / 2);
    for (let pollMs = POLL_MIN_MS, waited = false; ; pollMs = Math.min(POLL_MAX_MS, pollMs * 2)) {
      const place = this.#places.tryEnter(ctx) ?? (await this.#places.enter(ctx));
      const buffer = this.#buffers.pop() ?? Buffer.allocUnsafeSlow(this.#bufferBytes);
      const holders = this.holdersOf(id);
      const gathered = await this.#gather(id, sealedBytes, holders, buffer, ctx);
      if (gathered.complete) {
        const loan = this.#lend(id, sealedBytes, holders, buffer, gathered);
        return this.#places.withPlace(place, loan);
      }
      this.#recycle(buffer);
      this.#places.leave(place);
      if (ctx.signal?.aborted) throw new LazydiskError('ABORTED', 'fleet: the read was cancelled');
      if (holders.length > 0 && gathered.present === 0 && gathered.empty.length === 0)
        throw this.#silence(holders, ctx);
      if (gathered.lease === 'won') this.#leaseWins++;
      else if (gathered.present !== 0) this.#tooFew++;
      if (gathered.lease !== 'held' || performance.now() + pollMs > giveUpAt) return undefined;
      if (!waited) this.#leaseWaits++;
      waited = true;
      await new Promise((resolve) => setTimeout(resolve, pollMs * (0.5 + Math.random())));
    }
  }

  /** The error when no node could tell. */
  #silence(holders: readonly FleetNode[], ctx: ReadContext): LazydiskError {
    const [node] = holders;
    const why = `fleet: no node answers (${node!.address.name}: ${node!.stats().lastError ?? 'no answer'})`;
    return new LazydiskError(performance.now() >= ctx.deadline ? 'TIMEOUT' : 'UNAVAILABLE', why);
  }

  /** Off the reader's path: resolves when the shards have been stored or dropped. */
  async put(id: ChunkId, sealed: Uint8Array): Promise<boolean> {
    if (this.#closed || this.#fillBytes + sealed.length > this.#options.fillBytesMax) {
      this.#fillsDropped++;
      return false;
    }
    this.#discarded.delete(id);
    this.#fills++;
    const { code } = this.#options;
    const shardBytes = shardBytesOf(sealed.length, code);
    const shards = Buffer.alloc((code.k + code.m) * shardBytes);
    shards.set(sealed);
    erasureEncode(code.k, code.m, shards);
    const sends = this.holdersOf(id).map((node, index) =>
      this.#send(
        node,
        id,
        sealed.length,
        index,
        shards.subarray(index * shardBytes, (index + 1) * shardBytes),
      ),
    );
    const stored = await this.#track(sealed.length, Promise.all(sends));
    return stored.filter(Boolean).length >= code.k;
  }

  /**
   * What each node that should hold a shard of the chunk reports. Never rejects: a node without an answer is a result
   * too.
   */
  locate(id: ChunkId): Promise<ShardPlace[]> {
    const deadline = performance.now() + this.#options.timeoutMs;
    const places = this.holdersOf(id).map(async (node): Promise<ShardPlace> => {
      const { name, zone } = node.address;
      const where = { node: name, zone };
      try {
        const { code, flags } = await node.request([metaGet(keyOf(id), ['s', 'f'])], deadline);
        const number = (flag: string) => Number(flags.find((word) => word.startsWith(flag))?.slice(1) ?? 0);
        const shardBytes = number('s');
        // An empty item is a lease: another reader is about to fill it.
        if (code !== 'HD' || shardBytes === 0)
          return { ...where, state: code === 'HD' ? 'filling' : 'absent' };
        if (flags.includes('X')) return { ...where, state: 'stale' };
        return { ...where, state: 'there', index: number('f') - 1, bytes: shardBytes };
      } catch (error) {
        return { ...where, state: 'unreachable', why: errorText(error) };
      }
    });
    return Promise.all(places);
  }

  /** Makes the shards stale: the next reader gets the lease and refills them. */
  discard(id: ChunkId): void {
    if (this.#discarded.size < 10_000) this.#discarded.add(id);
    const deadline = performance.now() + this.#options.timeoutMs;
    for (const node of this.holdersOf(id)) {
      if (node.askable)
        void node.request([metaDelete(keyOf(id), ['I', `T${STALE_SECONDS}`])], deadline).catch(() => {});
    }
  }

  stats(): FleetStats {
    return {
      nodes: [...this.#nodes.values()].map((node) => node.stats()),
      k: this.#options.code.k,
      m: this.#options.code.m,
      reconstructions: this.#reconstructions,
      repairs: this.#repairs,
      leaseWins: this.#leaseWins,
      leaseWaits: this.#leaseWaits,
      tooFew: this.#tooFew,
      fills: this.#fills,
      fillsDropped: this.#fillsDropped,
    };
  }

  async close(): Promise<void> {
    this.#closed = true;
    await Promise.allSettled(this.#work);
    for (const node of this.#nodes.values()) node.close();
  }

  #gather(
    id: ChunkId,
    sealedBytes: number,
    nodes: readonly FleetNode[],
    buffer: Buffer,
    ctx: ReadContext,
  ): Promise<Gathered> {
    const deadline = Math.min(ctx.deadline, performance.now() + this.#options.timeoutMs);
    const askable = nodes.map((node) => node.askable);
    // The lease is on the first node that is up; while workers disagree on that, two may fill.
    const leaseRank = askable.indexOf(true);
    const holders = nodes.map((node, rank) => {
      if (!askable[rank]) return undefined;
      const request = metaGet(keyOf(id), rank === leaseRank ? ['v', `N${LEASE_SECONDS}`] : ['v']);
      return async (sink: ShardSink, signal: AbortSignal) =>
        answerOf(await node.request([request], deadline, sink, signal));
    });
    const onLie = (rank: number) => nodes[rank]!.lied(`a shard of ${id.slice(0, 12)} fails its proof`);
    const { code } = this.#options;
    const { signal } = ctx;
    return gather({ id, sealedBytes, code, holders, leaseRank, buffer, signal, onLie });
  }

  /** Lends the chunk; when it is returned and has not been discarded, lost shards are put again. */
  #lend(
    id: ChunkId,
    sealedBytes: number,
    nodes: readonly FleetNode[],
    buffer: Buffer,
    gathered: Gathered,
  ): SealedLoan {
    if (gathered.reconstructed) this.#reconstructions++;
    const { code } = this.#options;
    const shards = shardsOf(buffer, sealedBytes, code);
    return {
      bytes: shards.subarray(0, sealedBytes),
      release: () => {
        if (gathered.empty.length > 0 && !this.#discarded.has(id) && !this.#closed) {
          this.#repair(id, sealedBytes, nodes, shards, gathered);
        }
        this.#recycle(buffer);
      },
    };
  }

  #repair(
    id: ChunkId,
    sealedBytes: number,
    nodes: readonly FleetNode[],
    shards: Buffer,
    gathered: Gathered,
  ): void {
    const { code, fillBytesMax } = this.#options;
    const shardBytes = shardBytesOf(sealedBytes, code);
    erasureEncode(code.k, code.m, shards);
    // An index that another node already returned, or may still hold at its own rank, is not needed twice.
    let taken = gathered.present;
    for (const rank of gathered.unanswered) taken |= 1 << rank;
    for (const rank of gathered.empty) {
      const index = (taken >> rank) & 1 ? lowestClear(taken) : rank;
      if (index >= code.k + code.m || this.#fillBytes + shardBytes > fillBytesMax) return;
      taken |= 1 << index;
      this.#repairs++;
      const shard = Buffer.from(shards.subarray(index * shardBytes, (index + 1) * shardBytes));
      void this.#track(shardBytes, this.#send(nodes[rank]!, id, sealedBytes, index, shard));
    }
  }

  async #send(
    node: FleetNode,
    id: ChunkId,
    sealedBytes: number,
    index: number,
    data: Buffer,
  ): Promise<boolean> {
    if (!node.askable) return false;
    const header = writeShardHeader(id, sealedBytes, this.#options.code, index, data);
    // The index is also a client flag, so that `locate` can report it without fetching the shard.
    const line = metaSet(keyOf(id), SHARD_HEADER_BYTES + data.length, [`F${index + 1}`]);
    return node.request([line, header, data, CRLF], performance.now() + this.#options.timeoutMs).then(
      ({ code }) => code === 'HD',
      () => false,
    );
  }

  #track<T>(bytes: number, work: Promise<T>): Promise<T> {
    this.#fillBytes += bytes;
    const tracked = work.finally(() => {
      this.#fillBytes -= bytes;
      this.#work.delete(tracked);
    });
    this.#work.add(tracked);
    return tracked;
  }

  #recycle(buffer: Buffer): void {
    if (this.#buffers.length < GATHERS_MAX) this.#buffers.push(buffer);
  }
}

/** One key per chunk, whatever the shard's index: see shard.ts. */
function keyOf(id: ChunkId): string {
  return `lazydisk:1:${id}`;
}

function answerOf(reply: MetaReply): Answer {
  const won = reply.flags.includes('W');
  const lease = won ? 'won' : reply.flags.includes('Z') ? 'held' : 'none';
  // An empty value is the lease's own item; a stale one (X) must not be used.
  if (reply.code !== 'VA' || reply.valueBytes === 0 || reply.flags.includes('X'))
    return { kind: 'miss', lease };
  return { kind: 'value', valueBytes: reply.valueBytes };
}

function lowestClear(mask: number): number {
  let bit = 0;
  while ((mask >> bit) & 1) bit++;
  return bit;
}
