/** The fleet tier with real memcached processes that are killed, stopped, restarted, slowed and fed wrong values. */
import { createHash, randomBytes } from 'node:crypto';
import t, { type Test } from 'tap';
import type { ReadContext } from '../../../src/async/read-context.ts';
import { FleetTier } from '../../../src/chunk/fleet/fleet-tier.ts';
import type { NodeAddress } from '../../../src/chunk/fleet/node.ts';
import type { LazydiskError } from '../../../src/errors.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import { Memcached, startProxy } from '../../support/memcached.ts';
import { skipWithout } from '../../support/tools.ts';

interface Stored {
  id: ChunkId;
  bytes: Buffer;
}

function chunks(count: number): Stored[] {
  return Array.from({ length: count }, (_, n) => {
    const bytes = randomBytes(50_000 + n * 777);
    return { id: createHash('sha256').update(bytes).digest('hex') as ChunkId, bytes };
  });
}

const ctx = (milliseconds = 10_000): ReadContext => ({
  class: 'demand',
  deadline: performance.now() + milliseconds,
});

/** No node of a healthy fleet exceeds this, however loaded the machine is. */
const PATIENT_MS = 15_000;
/** Short, for nodes that never answer, so that the test finishes. */
const HASTY_MS = 1_000;

function fleet(t: Test, nodes: readonly NodeAddress[], timeoutMs = PATIENT_MS): FleetTier {
  const tier = new FleetTier({
    code: { k: 4, m: 1 },
    nodes,
    node: { connectTimeoutMs: timeoutMs, inflightMax: 1024, queuedBytesMax: 64 << 20 },
    timeoutMs,
    fillBytesMax: 256 << 20,
  });
  t.teardown(() => tier.close());
  return tier;
}

async function cluster(t: Test, count: number): Promise<Memcached[]> {
  const nodes = await Memcached.cluster(count);
  t.teardown(async () => {
    for (const node of nodes) node.resume();
    await Promise.all(nodes.map((node) => node.kill()));
  });
  return nodes;
}

/** Reads all chunks and checks every byte. Returns how many were read; a silent fleet returns none. */
async function readAll(tier: FleetTier, stored: readonly Stored[]): Promise<number> {
  let found = 0;
  for (const { id, bytes } of stored) {
    const loan = await tier.get(id, bytes.length, ctx()).catch((error: LazydiskError) => {
      if (error.code !== 'UNAVAILABLE') throw error;
      return undefined;
    });
    if (!loan) continue;
    if (!bytes.equals(loan.bytes)) throw new Error(`chunk ${id} came back wrong`);
    loan.release();
    found++;
  }
  return found;
}

t.test('with real memcached', async (t) => {
  if (skipWithout(t, 'memcached')) return;

  t.test('a wrong length is a miss, and does not count against the nodes that have the chunk', async (t) => {
    const nodes = await cluster(t, 5);
    const stored = chunks(4);
    const tier = fleet(
      t,
      nodes.map((node) => node.address),
    );
    for (const { id, bytes } of stored) await tier.put(id, bytes);
    for (let round = 0; round < 10; round++) {
      for (const { id, bytes } of stored) {
        for (const sealedBytes of [bytes.length - 1, bytes.length - 400, bytes.length + 1, 400_000, 7])
          t.equal(await tier.get(id, sealedBytes, ctx()), undefined);
      }
    }
    const { nodes: stats } = tier.stats();
    t.same(
      stats.map(({ up, errors, ejections }) => ({ up, errors, ejections })),
      stats.map(() => ({ up: true, errors: 0, ejections: 0 })),
    );
    t.equal(await readAll(tier, stored), 4);
  });

  t.test('a burst of reads is paced: it ejects no node, and few buffers are used', async (t) => {
    const nodes = await cluster(t, 5);
    const stored = chunks(600);
    const list = nodes.map((node) => node.address);
    const writer = fleet(t, list);
    for (const { id, bytes } of stored) await writer.put(id, bytes);
    const tier = fleet(t, list);
    let held = 0;
    let heldMost = 0;
    const got = await Promise.all(
      stored.map(async ({ id, bytes }, n) => {
        const loan = await tier.get(id, bytes.length, { ...ctx(120_000), drive: `drive ${n % 4}` });
        if (!loan) return false;
        heldMost = Math.max(heldMost, ++held);
        const isRight = bytes.equals(loan.bytes);
        held--;
        loan.release();
        return isRight;
      }),
    );
    t.ok(heldMost <= 32);
    const { nodes: stats } = tier.stats();
    t.equal(
      stats.reduce((sum, { ejections }) => sum + ejections, 0),
      0,
    );
    t.equal(got.filter(Boolean).length, stored.length);
  });

  t.test('a chunk that was put is there for another worker; any other chunk is a miss', async (t) => {
    const nodes = await cluster(t, 5);
    const list = nodes.map((node) => node.address);
    const stored = chunks(30);
    const writer = fleet(t, list);
    for (const { id, bytes } of stored) await writer.put(id, bytes);
    const reader = fleet(t, [...list].reverse());
    t.equal(await readAll(reader, stored), 30);
    t.equal(await reader.get(chunks(1)[0]!.id, 50_000, ctx()), undefined);
    t.equal(reader.stats().leaseWins, 1, 'and the miss comes with the lease to fill it');
  });

  for (const [name, break_] of [
    ['killed', (node: Memcached) => node.kill()],
    ['stopped', (node: Memcached) => node.pause()],
  ] as const) {
    t.test(`one node ${name}: every chunk is still served, by parity`, async (t) => {
      const nodes = await cluster(t, 5);
      const tier = fleet(
        t,
        nodes.map((node) => node.address),
        HASTY_MS,
      );
      const stored = chunks(40);
      for (const { id, bytes } of stored) await tier.put(id, bytes);
      await break_(nodes[2]!);
      t.equal(await readAll(tier, stored), 40);
      t.ok(tier.stats().reconstructions > 0);
      t.equal(await readAll(tier, stored), 40, 'again, with the node ejected');
      const second = nodes[3]!;
      await break_(second);
      for (let n = 0; n < 4; n++) await readAll(tier, stored.slice(0, 3));
      t.equal(
        await readAll(tier, stored),
        0,
        'two of five lost nodes are too many for 4+1: misses, but no wrong byte',
      );
    });
  }

  t.test('a node that restarted empty is refilled by the reads that miss its shards', async (t) => {
    const nodes = await cluster(t, 5);
    const tier = fleet(
      t,
      nodes.map((node) => node.address),
    );
    const stored = chunks(30);
    for (const { id, bytes } of stored) await tier.put(id, bytes);
    await nodes[1]!.kill();
    await nodes[1]!.start();
    for (let round = 0; round < 12 && tier.stats().repairs < 30; round++) {
      t.equal(await readAll(tier, stored), 30);
      await new Promise((resolve) => setTimeout(resolve, 150));
    }
    t.ok(tier.stats().repairs > 0, `${tier.stats().repairs} shards repaired`);
    await new Promise((resolve) => setTimeout(resolve, 200));
    const other = fleet(
      t,
      nodes.map((node) => node.address),
    );
    await nodes[4]!.kill();
    const found = await readAll(other, stored);
    t.ok(found >= tier.stats().repairs - 5, `${found} chunks survive the loss of another node`);
  });

  t.test('corrupt values in a node are replaced by parity and count against it', async (t) => {
    const nodes = await cluster(t, 5);
    const tier = fleet(
      t,
      nodes.map((node) => node.address),
    );
    const stored = chunks(20);
    for (const { id, bytes } of stored) await tier.put(id, bytes);
    const liar = tier.holdersOf(stored[0]!.id)[0]!;
    const node = nodes.find(({ port }) => port === liar.address.port)!;
    for (const { id, bytes } of stored) {
      const length = Math.ceil(bytes.length / 4) + 64;
      await node.raw(
        Buffer.concat([
          Buffer.from(`ms lazydisk:1:${id} ${length}\r\n`),
          randomBytes(length),
          Buffer.from('\r\n'),
        ]),
      );
    }
    t.equal(await readAll(tier, stored), 20);
    const { errors } = tier.stats().nodes.find(({ name }) => name === liar.address.name)!;
    t.ok(errors > 0, `${errors} errors counted against the node`);
  });

  t.test('nodes can be added and removed during reads', async (t) => {
    const nodes = await cluster(t, 8);
    const list = nodes.map((node) => node.address);
    const tier = fleet(t, list.slice(0, 6));
    const stored = chunks(40);
    for (const { id, bytes } of stored) await tier.put(id, bytes);
    let running = true;
    let served = 0;
    let rounds = 0;
    const load = (async () => {
      for (; running; rounds++) served += await readAll(tier, stored);
    })();
    for (const count of [7, 8, 7, 6, 8]) {
      tier.setNodes(list.slice(0, count));
      // Until reads have gone on for a while with these nodes.
      for (const before = rounds; rounds < before + 2; )
        await new Promise((resolve) => setTimeout(resolve, 10));
    }
    running = false;
    await load;
    t.ok(served > 40, `${served} reads served`);
    tier.setNodes([]);
    t.equal(await readAll(tier, stored), 0, 'without nodes every read is a miss');
    tier.setNodes(list.slice(0, 7));
    await readAll(tier, stored);
    t.equal(await readAll(tier, stored), 40, 'adding or removing one node at a time loses nothing');
  });

  t.test('connection resets, and a node that accepts but never answers, are survived', async (t) => {
    const nodes = await cluster(t, 5);
    const proxy = await startProxy(nodes[0]!.port);
    t.teardown(() => proxy.close());
    const list = nodes.map((node, n) => (n === 0 ? { ...node.address, port: proxy.port } : node.address));
    const tier = fleet(t, list, HASTY_MS);
    const stored = chunks(30);
    for (const { id, bytes } of stored) await tier.put(id, bytes);
    proxy.faults.resetShare = 0.3;
    t.equal(await readAll(tier, stored), 30);
    proxy.faults.resetShare = 0;
    proxy.faults.silent = true;
    t.equal(await readAll(tier, stored), 30);
    proxy.faults.silent = false;
    Object.assign(proxy.faults, { delayMs: 20, delayShare: 0.5 });
    t.equal(await readAll(tier, stored), 30);
  });

  t.test('with the whole fleet down, reads fail soon, and succeed again when it is back', async (t) => {
    const nodes = await cluster(t, 5);
    const tier = fleet(
      t,
      nodes.map((node) => node.address),
      HASTY_MS,
    );
    const stored = chunks(5);
    for (const { id, bytes } of stored) await tier.put(id, bytes);
    await Promise.all(nodes.map((node) => node.kill()));
    t.equal(await readAll(tier, stored), 0);
    await Promise.all(nodes.map((node) => node.start()));
    for (let round = 0; round < 40; round++) {
      await readAll(tier, stored);
      for (const { id, bytes } of stored) await tier.put(id, bytes);
      if ((await readAll(tier, stored)) === 5) break;
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
    t.equal(await readAll(tier, stored), 5);
  });

  t.test('a lease holder that dies blocks nobody beyond the lease', async (t) => {
    const nodes = await cluster(t, 5);
    const list = nodes.map((node) => node.address);
    const [{ id, bytes }] = chunks(1) as [Stored];
    const dead = fleet(t, list);
    t.equal(await dead.get(id, bytes.length, ctx()), undefined);
    t.equal(dead.stats().leaseWins, 1);
    const next = fleet(t, list);
    t.equal(
      await next.get(id, bytes.length, ctx()),
      undefined,
      'returns a miss, so the caller asks the origin itself',
    );
    t.equal(next.stats().leaseWaits, 1, 'after a wait');
  });

  t.test('discard marks a chunk stale: the next reader gets the lease, not the bytes', async (t) => {
    const nodes = await cluster(t, 5);
    const tier = fleet(
      t,
      nodes.map((node) => node.address),
    );
    const [{ id, bytes }] = chunks(1) as [Stored];
    await tier.put(id, bytes);
    tier.discard(id);
    t.equal(await tier.get(id, bytes.length, ctx()), undefined);
    t.equal(tier.stats().leaseWins, 1);
    await tier.put(id, bytes);
    t.equal(await readAll(tier, [{ id, bytes }]), 1);
  });

  t.test('a thousand cold readers in eight workers read the origin about once per chunk', async (t) => {
    const nodes = await cluster(t, 5);
    const list = nodes.map((node) => node.address);
    const stored = chunks(40);
    const origin = new Map(stored.map(({ id, bytes }) => [id, bytes]));
    let originReads = 0;
    const workers = Array.from({ length: 8 }, () => ({
      tier: fleet(t, list),
      flights: new Map<ChunkId, Promise<Buffer>>(),
    }));
    const read = async ({ tier }: (typeof workers)[number], { id, bytes }: Stored): Promise<Buffer> => {
      const loan = await tier.get(id, bytes.length, ctx());
      if (loan) {
        const copy = Buffer.from(loan.bytes);
        loan.release();
        return copy;
      }
      originReads++;
      await new Promise((resolve) => setTimeout(resolve, 20));
      const found = origin.get(id)!;
      await tier.put(id, found);
      return found;
    };
    let wrong = 0;
    await Promise.all(
      Array.from({ length: 1000 }, async (_, n) => {
        const worker = workers[n % 8]!;
        const one = stored[(n * 7) % stored.length]!;
        let flight = worker.flights.get(one.id);
        if (!flight) {
          flight = read(worker, one);
          worker.flights.set(one.id, flight);
        }
        if (!one.bytes.equals(await flight)) wrong++;
      }),
    );
    t.equal(wrong, 0);
    t.ok(originReads <= stored.length * 1.05, `${originReads} origin reads for ${stored.length} chunks`);
  });
});
