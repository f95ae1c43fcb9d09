/**
 * The first-k reader on a simulated network: holders that answer late, return wrong data, miss, fail or never answer,
 * with delays from a seed, so that fast-check can replay a failure.
 */
import { createHash } from 'node:crypto';
import fc from 'fast-check';
import t from 'tap';
import { erasureEncode } from '../../../native/index.ts';
import { type Ask, gather, gatherBytes, shardsOf } from '../../../src/chunk/fleet/gather.ts';
import { SHARD_HEADER_BYTES, shardBytesOf, writeShardHeader } from '../../../src/chunk/fleet/shard.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';

type Behaviour = {
  kind: 'right' | 'flip' | 'miss' | 'fail' | 'silent' | 'other';
  delay: number;
  index: number;
};

/** Simulated time, which passes only on request. */
class SimulatedTime {
  readonly #queue: { at: number; run: () => void }[] = [];
  #now = 0;

  after(delay: number, run: () => void): void {
    this.#queue.push({ at: this.#now + delay, run });
  }

  async runOut(): Promise<void> {
    while (this.#queue.length > 0) {
      this.#queue.sort((a, b) => a.at - b.at);
      const next = this.#queue.shift()!;
      this.#now = next.at;
      next.run();
      for (let n = 0; n < 8; n++) await Promise.resolve();
    }
  }
}

t.test('property: a gather returns correct bytes or fails, whatever the holders do', async (t) => {
  const behaviour: fc.Arbitrary<Behaviour> = fc.record({
    kind: fc.constantFrom('right', 'right', 'right', 'flip', 'miss', 'fail', 'silent', 'other'),
    delay: fc.integer({ min: 0, max: 50 }),
    index: fc.nat(15),
  });
  const world = fc
    .tuple(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 0, max: 4 }))
    .chain(([k, m]) =>
      fc.tuple(
        fc.constant({ k, m }),
        fc.array(behaviour, { minLength: k + m, maxLength: k + m }),
        fc.integer({ min: 1, max: 3000 }),
      ),
    );
  await fc.assert(
    fc.asyncProperty(world, async ([code, behaviours, sealedBytes]) => {
      const n = code.k + code.m;
      const shardBytes = shardBytesOf(sealedBytes, code);
      const truth = Buffer.alloc(n * shardBytes);
      createHash('sha256').update(String(sealedBytes)).digest().copy(truth);
      for (let at = 32; at < sealedBytes; at++) truth[at] = (at * 31 + truth[at - 32]!) & 0xff;
      truth.fill(0, sealedBytes, code.k * shardBytes);
      erasureEncode(code.k, code.m, truth);
      const id = createHash('sha256').update(truth.subarray(0, sealedBytes)).digest('hex') as ChunkId;

      const time = new SimulatedTime();
      const lies = new Set<number>();
      const buffer = Buffer.alloc(gatherBytes(sealedBytes, code), 0xaa);
      let settled = false;
      let touchedAfterwards = false;
      const possible = new Set<number>();
      const holders = behaviours.map(({ kind, delay, index: wanted }, rank): Ask => {
        // `other`: the holder has a valid shard of another index, as after a change of the list of nodes.
        const index = kind === 'other' ? wanted % n : rank;
        if (kind === 'right' || kind === 'other') possible.add(index);
        return (sink, signal) =>
          new Promise((resolve, reject) => {
            if (kind === 'silent') return;
            time.after(delay, () => {
              if (signal.aborted) return reject(new Error('aborted'));
              if (settled) touchedAfterwards = true;
              if (kind === 'fail') return reject(new Error('node down'));
              if (kind === 'miss') return resolve({ kind: 'miss', lease: 'none' });
              const data = Buffer.from(truth.subarray(index * shardBytes, (index + 1) * shardBytes));
              const header = writeShardHeader(id, sealedBytes, code, index, data);
              if (kind === 'flip') data[delay % shardBytes]! ^= 1;
              sink.head.set(header);
              sink.body.set(data);
              resolve({ kind: 'value', valueBytes: SHARD_HEADER_BYTES + shardBytes });
            });
          });
      });
      const silent = behaviours.some(({ kind }) => kind === 'silent');
      const outcome = gather({
        id,
        sealedBytes,
        code,
        holders,
        leaseRank: -1,
        buffer,
        onLie: (rank) => lies.add(rank),
      }).then((gathered) => {
        settled = true;
        return gathered;
      });
      await time.runOut();
      const gathered = await Promise.race([outcome, Promise.resolve(undefined)]);
      for (const rank of lies) if (behaviours[rank]!.kind !== 'flip') return false;
      // Without k distinct shards and with a silent holder, it waits for that holder's deadline; otherwise it must end.
      if (!gathered) return silent && possible.size < code.k;
      if (touchedAfterwards) return false;
      if (gathered.complete !== possible.size >= code.k) return false;
      if (!gathered.complete) return true;
      return shardsOf(buffer, sealedBytes, code)
        .subarray(0, sealedBytes)
        .equals(truth.subarray(0, sealedBytes));
    }),
    { numRuns: 1500 },
  );
  t.pass();
});
