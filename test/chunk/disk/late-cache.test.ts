/**
 * A disk cache whose disk hangs while it is opened: a start does not wait long, and the cache joins when it is open.
 */
import { setImmediate as settle } from 'node:timers/promises';
import t from 'tap';
import type { DiskCache } from '../../../src/chunk/disk/disk-cache.ts';
import { LateCache } from '../../../src/chunk/disk/late-cache.ts';
import { LazydiskError } from '../../../src/errors.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';

const ID = 'ab'.repeat(32) as ChunkId;
const BYTES = Buffer.from('sealed');

function setUp(timeoutMs: number) {
  const opening = Promise.withResolvers<DiskCache>();
  const closed = Promise.withResolvers<void>();
  const events: string[] = [];
  const happened: Record<string, PromiseWithResolvers<void>> = {
    joined: Promise.withResolvers(),
    failed: Promise.withResolvers(),
  };
  const cache = {
    holds: () => true,
    get: async () => ({ bytes: BYTES, release() {} }),
    put: async () => true,
    stats: () => ({ capBytes: 7, entries: 1 }),
    close: async () => closed.resolve(),
  } as unknown as DiskCache;
  const late = LateCache.open(opening.promise, {
    capBytes: 7,
    timeoutMs,
    onLate: (event, cause) => {
      events.push(`${event} ${cause}`.trim());
      happened[event]?.resolve();
    },
  });
  return { opening, cache, late, events, happened, closed: closed.promise };
}

t.test('a cache that opens in time is used from the start', async (t) => {
  const { opening, cache, late, events } = setUp(60_000);
  opening.resolve(cache);
  const { holds, stats } = { holds: (await late).holds(ID, 6), stats: (await late).stats() };
  t.match({ holds, stats }, { holds: true, stats: { opening: false, entries: 1 } });
  t.same(events, []);
});

t.test('a cache that cannot be opened fails the start', async (t) => {
  const { opening, late } = setUp(60_000);
  opening.reject(new LazydiskError('BUSY', 'in use'));
  await t.rejects(late, { code: 'BUSY' });
});

t.test('a late cache holds and keeps nothing, reports that, and joins', async (t) => {
  const { opening, cache, late, events, happened } = setUp(1);
  const open = await late;
  t.equal(open.holds(ID, 6), false);
  t.equal(await open.get(ID, 6), undefined);
  t.equal(await open.put(ID, BYTES), false);
  open.discard(ID);
  await open.probe();
  t.match(open.stats(), { opening: true, writable: false, capBytes: 7, usedBytes: 0 });
  opening.resolve(cache);
  await happened.joined!.promise;
  t.equal((await open.get(ID, 6))?.bytes, BYTES);
  t.equal(open.stats().opening, false);
  t.same(events, ['late not open after 1 ms', 'joined']);
});

t.test('a late cache that fails stays out', async (t) => {
  const { opening, late, events, happened } = setUp(1);
  const open = await late;
  opening.reject(new LazydiskError('UNAVAILABLE', 'EIO'));
  await happened.failed!.promise;
  t.equal(open.holds(ID, 6), false);
  t.same(events, ['late not open after 1 ms', 'failed EIO']);
});

t.test('a cache that opens after close is closed, and nothing more is reported', async (t) => {
  const { opening, cache, late, events, closed } = setUp(1);
  const open = await late;
  await open.close();
  opening.resolve(cache);
  await closed;
  await settle();
  t.equal(open.holds(ID, 6), false);
  t.same(events, ['late not open after 1 ms']);
});

t.test('a cache that fails to open after close reports nothing more', async (t) => {
  const { opening, late, events } = setUp(1);
  await (await late).close();
  opening.reject(new LazydiskError('UNAVAILABLE', 'EIO'));
  await settle();
  t.same(events, ['late not open after 1 ms']);
});
