/**
 * The contract of src/chunk/tier.ts as tests, for every tier and wrapper: call `tierSuite(t, make)` in the test file of
 * each. `make` returns a fresh, empty tier for each subtest and cleans up with `t.teardown`.
 */
import { createHash, randomBytes } from 'node:crypto';
import type { Test } from 'tap';
import type { ReadContext } from '../../src/async/read-context.ts';
import type { ChunkTier } from '../../src/chunk/tier.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../../src/format/chunk-id.ts';
import { contextOf, demand } from '../support/tiers.ts';

export interface TierUnderTest {
  readonly tier: ChunkTier;
  /** Puts a chunk where the tier finds it. Default: `tier.put`, which must then not drop it. */
  readonly seed?: (id: ChunkId, sealed: Buffer) => Promise<void>;
  /** False for a tier that only relays, where `put` and `discard` change nothing. Default true. */
  readonly keeps?: boolean;
  /** Makes the next reads hang, if the tier supports that. */
  readonly stall?: () => void | Promise<void>;
  /**
   * Makes the next reads fail with an error that is not retryable, if the tier supports that. Returns a function that
   * counts the reads below the tier since then.
   */
  readonly refuse?: () => () => number;
}

type Make = (t: Test) => Promise<TierUnderTest>;

function chunkOf(sizeBytes: number): { id: ChunkId; sealed: Buffer } {
  const sealed = randomBytes(sizeBytes);
  return { id: createHash('sha256').update(sealed).digest('hex') as ChunkId, sealed };
}

const SIZES = [18, 4096, 100_001, SEALED_BYTES_MAX];

/** A copy of the tier's bytes; the loan is released. */
async function bytesOf(tier: ChunkTier, id: ChunkId, sizeBytes: number, ctx: ReadContext = demand()) {
  const loan = await tier.get(id, sizeBytes, ctx);
  if (!loan) return undefined;
  const copy = Buffer.from(loan.bytes);
  loan.release();
  return copy;
}

export function tierSuite(t: Test, make: Make): void {
  const seeded = async (t: Test, sizes: readonly number[]) => {
    const made = await make(t);
    const chunks = sizes.map(chunkOf);
    const seed = made.seed ?? ((id, sealed) => made.tier.put(id, sealed));
    for (const { id, sealed } of chunks) await seed(id, sealed);
    return { ...made, seed, chunks };
  };

  t.test('an absent chunk is undefined', async (t) => {
    const { tier } = await make(t);
    for (const readClass of ['demand', 'readahead', 'prefetch'] as const)
      t.equal(await tier.get(chunkOf(100).id, 100, contextOf(readClass)), undefined);
  });

  t.test('a chunk of any size comes back unchanged', async (t) => {
    const { tier, chunks } = await seeded(t, SIZES);
    for (const { id, sealed } of chunks) {
      const bytes = await bytesOf(tier, id, sealed.length);
      t.ok(bytes?.equals(sealed), `${sealed.length} bytes`);
    }
  });

  t.test('loans are independent: each keeps its bytes until it is released', async (t) => {
    const { tier, chunks } = await seeded(
      t,
      Array.from({ length: 40 }, (_, n) => 50_000 + n * 1000),
    );
    const wanted = [...chunks, ...chunks];
    const loans = await Promise.all(wanted.map(({ id, sealed }) => tier.get(id, sealed.length, demand())));
    // Released and requested again in between, so that pooled buffers are reused.
    for (const loan of loans.splice(0, 10)) loan?.release();
    wanted.splice(0, 10);
    for (const { id, sealed } of chunks.slice(30)) await bytesOf(tier, id, sealed.length);
    const wrong = loans.filter((loan, n) => !loan || !wanted[n]!.sealed.equals(loan.bytes));
    t.equal(wrong.length, 0);
    for (const loan of loans) loan?.release();
  });

  t.test('put does not need the bytes after it has resolved', async (t) => {
    const { tier, keeps = true } = await make(t);
    const { id, sealed } = chunkOf(70_000);
    const lent = Buffer.from(sealed);
    await tier.put(id, lent);
    lent.fill(0);
    const bytes = await bytesOf(tier, id, sealed.length);
    if (keeps) t.ok(bytes?.equals(sealed));
    else t.equal(bytes, undefined, 'a tier that relays keeps nothing');
  });

  t.test('a put of a chunk that is already there changes nothing', async (t) => {
    const { tier, chunks } = await seeded(t, [5000]);
    const [{ id, sealed }] = chunks as [(typeof chunks)[0]];
    await Promise.all([tier.put(id, sealed), tier.put(id, sealed)]);
    t.ok((await bytesOf(tier, id, sealed.length))?.equals(sealed));
  });

  t.test('a discarded copy is not returned again until a good one is put', async (t) => {
    const { tier, chunks, seed, keeps = true } = await seeded(t, [60_000, 60_001]);
    const [bad, other] = chunks as [(typeof chunks)[0], (typeof chunks)[0]];
    await bytesOf(tier, bad.id, bad.sealed.length);
    tier.discard(bad.id);
    tier.discard(chunkOf(10).id);
    if (keeps) t.equal(await bytesOf(tier, bad.id, bad.sealed.length), undefined);
    t.ok((await bytesOf(tier, other.id, other.sealed.length))?.equals(other.sealed), 'other chunks stay');
    await seed(bad.id, bad.sealed);
    t.ok((await bytesOf(tier, bad.id, bad.sealed.length))?.equals(bad.sealed));
  });

  t.test('a read that is cancelled or past its deadline from the start ends', async (t) => {
    const { tier, chunks } = await seeded(t, [60_000]);
    const [{ id, sealed }] = chunks as [(typeof chunks)[0]];
    for (const ctx of [demand(20_000, AbortSignal.abort()), demand(-1)]) {
      // A tier that has the bytes at hand may still return them.
      const bytes = await bytesOf(tier, id, sealed.length, ctx).catch((error) => {
        t.match(error, { code: /^(ABORTED|TIMEOUT)$/ });
        return sealed;
      });
      t.ok(bytes?.equals(sealed));
    }
    t.ok((await bytesOf(tier, id, sealed.length))?.equals(sealed), 'and the next read works as before');
  });

  t.test('a hung read ends at its deadline, and when it is cancelled', async (t) => {
    const { tier, chunks, stall } = await seeded(t, [60_000]);
    const [{ id, sealed }] = chunks as [(typeof chunks)[0]];
    if (!stall) {
      t.comment('this tier cannot be made to hang');
      return;
    }
    await stall();
    await t.rejects(tier.get(id, sealed.length, demand(30)), { code: 'TIMEOUT' });
    const controller = new AbortController();
    const cancelled = tier.get(id, sealed.length, demand(20_000, controller.signal));
    setImmediate(() => controller.abort());
    await t.rejects(cancelled, { code: 'ABORTED' });
  });

  t.test('an error that is not retryable is not retried, and is reported as such', async (t) => {
    const { tier, chunks, refuse } = await seeded(t, [60_000]);
    const [{ id, sealed }] = chunks as [(typeof chunks)[0]];
    if (!refuse) {
      t.comment('this tier cannot be made to fail');
      return;
    }
    const asked = refuse();
    const error = await tier.get(id, sealed.length, demand()).catch((error) => error);
    t.match(error, { code: 'UNAVAILABLE', retryable: false });
    t.equal(asked(), 1);
  });

  t.test('close may be called twice', async (t) => {
    const { tier } = await seeded(t, [1000]);
    await tier.close();
    await t.resolves(tier.close());
  });
}
