/**
 * A store in a file system, some of whose objects hang: reads of those use extra threads and leave the others alone.
 */
import t from 'tap';
import type { ReadContext } from '../../src/async/read-context.ts';
import { type ChunkSource, OriginTier } from '../../src/chunk/origin.ts';
import type { ChunkId } from '../../src/format/chunk-id.ts';
import { demand } from '../support/tiers.ts';

const idOf = (n: number) => n.toString(16).padStart(64, '0') as ChunkId;
const by = (drive: string, timeoutMs: number): ReadContext => ({ ...demand(timeoutMs), drive });

/** The objects from 1000 on hang until `thaw`. */
function setUp() {
  const hung: (() => void)[] = [];
  let asked = 0;
  const getChunkOnce = async (id: ChunkId) => {
    asked++;
    if (Number.parseInt(id, 16) >= 1000) await new Promise<void>((resolve) => hung.push(resolve));
    return Buffer.from(id);
  };
  const store: ChunkSource = { url: 'file:///store', getChunkOnce };
  const tier = new OriginTier(store, { threads: { reads: 8, hung: 24 } });
  const read = async (id: number, ctx: ReadContext) => {
    const loan = await tier.get(idOf(id), 64, ctx);
    loan?.release();
    return loan?.bytes.toString();
  };
  /** Asks for `count` objects that hang, gives up on them, and returns how many did not arrive. */
  const hang = async (drive: string, from: number, count: number) => {
    const reads = Array.from({ length: count }, (_, n) => read(from + n, by(drive, 20)));
    const ends = await Promise.allSettled(reads);
    return ends.filter(({ status }) => status === 'rejected').length;
  };
  const thaw = () => {
    for (const go of hung.splice(0)) go();
  };
  return { read, hang, asked: () => asked, thaw };
}

t.test('a third drive can read while many objects of two drives hang', async (t) => {
  const { read, hang } = setUp();
  t.equal((await Promise.all([hang('a', 1000, 12), hang('b', 2000, 12)])).join(), '12,12');
  for (let n = 0; n < 20; n++) t.equal(await read(n, by('c', 20_000)), idOf(n));
});

t.test('a drive whose objects keep hanging leaves threads to the others, and to itself', async (t) => {
  const { read, hang } = setUp();
  for (let round = 0; round < 2; round++) await hang('a', 1000 + 100 * round, 6);
  t.equal(await read(1, by('a', 20_000)), idOf(1), 'its healthy objects');
  for (let round = 0; round < 10; round++) await hang('a', 2000 + 100 * round, 10);
  t.equal(await read(2, by('b', 20_000)), idOf(2));
});

t.test('a hung object is asked for once, and frees its place when it answers', async (t) => {
  const { read, hang, asked, thaw } = setUp();
  for (let n = 0; n < 10; n++) t.equal(await hang('a', 1000, 1), 1);
  t.equal(asked(), 1);
  for (let n = 0; n < 100; n++) {
    await hang('a', 2000 + 100 * n, 8);
    thaw();
    t.equal(await read(n, by('b', 20_000)), idOf(n));
  }
  t.equal(await read(3, by('a', 20_000)), idOf(3), 'no place is lost');
});
