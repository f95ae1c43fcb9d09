import fc from 'fast-check';
import t from 'tap';
import { ChunkMemory, memoryKey } from '../../src/chunk/memory.ts';
import type { Slot } from '../../src/chunk/slab.ts';
import { CHUNK_BYTES, type ChunkRef } from '../../src/format/chunk-id.ts';
import { contextOf, demand, makeImage } from '../support/tiers.ts';

/** Writes a key into a slot, as decoding would; enough of it to detect that a slot was filled with something else. */
function fill(slot: Slot, key: string): void {
  slot.bytes.write(key.padEnd(64), 0);
  slot.bytes.write(key.padEnd(64), CHUNK_BYTES - 64);
}

function holds(slot: Slot, key: string): boolean {
  const expected = key.padEnd(64);
  return (
    slot.bytes.toString('latin1', 0, 64) === expected &&
    slot.bytes.toString('latin1', CHUNK_BYTES - 64) === expected
  );
}

async function put(memory: ChunkMemory, key: string, pinned = false): Promise<Slot> {
  const slot = await memory.reserve(demand());
  fill(slot, key);
  const kept = memory.commit(key, slot, demand());
  if (!pinned) kept.release();
  return kept;
}

t.test('capacity is rounded down to whole chunks, and a capacity below one chunk is refused', async (t) => {
  t.equal(new ChunkMemory({ capacityBytes: 3 * CHUNK_BYTES + 5 }).slots, 3);
  for (const capacityBytes of [0, CHUNK_BYTES - 1, Number.NaN])
    t.throws(() => new ChunkMemory({ capacityBytes }), { code: 'USAGE' });
});

t.test('the least recently used chunk is evicted first, a pinned one never', async (t) => {
  const memory = new ChunkMemory({ capacityBytes: 3 * CHUNK_BYTES });
  await put(memory, 'a', true);
  await put(memory, 'b');
  await put(memory, 'c');
  memory.get('b')?.release();
  await put(memory, 'd');
  t.same(
    ['a', 'b', 'c', 'd'].map((key) => memory.has(key)),
    [true, true, false, true],
  );
  t.match(memory.stats(), { evictions: 1, pinnedBytes: CHUNK_BYTES, cachedBytes: 3 * CHUNK_BYTES });
});

t.test('a drive that reads more than its share of memory gives up its own chunks', async (t) => {
  const memory = new ChunkMemory({ capacityBytes: 12 * CHUNK_BYTES });
  const read = async (drive: string, key: string) => {
    const ctx = { ...demand(), drive };
    memory.commit(key, await memory.reserve(ctx), ctx).release();
  };
  for (const drive of ['a', 'b']) for (let n = 0; n < 3; n++) await read(drive, `${drive}${n}`);
  for (let n = 0; n < 100; n++) await read('greedy', `greedy ${n}`);
  for (const drive of ['a', 'b'])
    for (let n = 0; n < 3; n++)
      t.ok(memory.has(`${drive}${n}`), 'older than all of its chunks, but still here');
  t.equal(memory.stats().evictions, 94);
});

t.test('of a drive over its share, a chunk that only native threads read is not evicted first', async (t) => {
  const memory = new ChunkMemory({ capacityBytes: 4 * CHUNK_BYTES });
  const read = async (drive: string, key: string) => {
    const ctx = { ...demand(), drive };
    const slot = memory.commit(key, await memory.reserve(ctx), ctx);
    slot.release();
    return slot;
  };
  await read('a', 'a');
  const hot = await read('greedy', 'hot');
  // As if a thread read it between any two evictions.
  hot.takeUsed = () => true;
  for (let n = 0; n < 10; n++) await read('greedy', `greedy ${n}`);
  t.ok(memory.has('hot'));
  t.ok(memory.has('a'), 'and the other drive gives up nothing for it');
});

t.test('the same id under another key is another chunk', async (t) => {
  const image = await makeImage('a');
  const ref = image.refs[0] as ChunkRef;
  const same = { ...ref, key: Buffer.from(ref.key) };
  const thief = { ...ref, key: Buffer.alloc(32, 7) };
  t.equal(memoryKey(same), memoryKey(ref));
  t.not(memoryKey(thief), memoryKey(ref));
  t.notMatch(memoryKey(ref), Buffer.from(ref.key).toString('base64'), 'and it does not reveal the key');
});

t.test('when all slots are pinned, fills wait for free slots, most urgent first', async (t) => {
  const memory = new ChunkMemory({ capacityBytes: 2 * CHUNK_BYTES });
  const a = await put(memory, 'a', true);
  const b = await put(memory, 'b', true);
  const order: string[] = [];
  const waits = (['prefetch', 'readahead', 'demand'] as const).map((readClass) =>
    memory.reserve(contextOf(readClass)).then((slot) => {
      order.push(readClass);
      memory.cancel(slot);
    }),
  );
  t.equal(memory.stats().waiting, 3);
  a.release();
  await Promise.all(waits);
  t.same(order, ['demand', 'readahead', 'prefetch']);
  t.notOk(memory.has('a'), 'the released chunk made room');
  t.ok(memory.has('b'));
  b.release();
  t.match(memory.stats(), { waiting: 0, filling: 0, pinnedBytes: 0 });
});

t.test('a wait ends at its deadline, and when it is cancelled', async (t) => {
  const memory = new ChunkMemory({ capacityBytes: CHUNK_BYTES });
  const a = await put(memory, 'a', true);
  const controller = new AbortController();
  const late = memory.reserve(demand(20));
  const cancelled = memory.reserve(demand(20_000, controller.signal));
  controller.abort();
  await t.rejects(cancelled, { code: 'ABORTED' });
  await t.rejects(late, { code: 'TIMEOUT' });
  t.equal(memory.stats().waiting, 0);
  a.release();
  t.ok(memory.has('a'), 'no fill was waiting any longer, so it stays');
});

t.test('however many fills wait, none is refused, and drives take turns', async (t) => {
  const memory = new ChunkMemory({ capacityBytes: CHUNK_BYTES });
  const a = await put(memory, 'a', true);
  const order: string[] = [];
  const fill = (drive: string) =>
    memory.reserve({ ...demand(), drive }).then((slot) => {
      order.push(drive);
      memory.cancel(slot);
    });
  const waits = Array.from({ length: 5000 }, () => fill('greedy'));
  waits.push(fill('modest'), fill('modest'));
  t.equal(memory.stats().waiting, 5002);
  a.release();
  await Promise.all(waits);
  t.same(
    order.slice(0, 4).filter((drive) => drive === 'modest'),
    ['modest', 'modest'],
  );
});

t.test('when two slots are filled with the same chunk, the first is kept', async (t) => {
  const memory = new ChunkMemory({ capacityBytes: 2 * CHUNK_BYTES });
  const one = await memory.reserve(demand());
  const two = await memory.reserve(demand());
  t.equal(memory.commit('a', one, demand()), one);
  t.equal(memory.commit('a', two, demand()), one);
  one.release();
  one.release();
  t.throws(() => one.release(), { code: 'INTERNAL' }, 'a third release has no pin');
  t.equal(memory.freeSlots, 1);
});

t.test('prefetched chunks fill free memory and evict nothing', async (t) => {
  const memory = new ChunkMemory({ capacityBytes: 16 * CHUNK_BYTES });
  for (let n = 0; n < 8; n++) await put(memory, `hot ${n}`);
  for (let n = 0; n < 40; n++) {
    const slot = await memory.reserve(contextOf('prefetch'));
    memory.commit(`cold ${n}`, slot, contextOf('prefetch')).release();
  }
  for (let n = 0; n < 8; n++) t.ok(memory.has(`hot ${n}`));
  t.ok(memory.has('cold 0'));
  t.notOk(memory.has('cold 39'));
  t.equal(memory.stats().evictions, 0);
});

t.test('`crowded` is true while over half of the slots are pinned', async (t) => {
  const memory = new ChunkMemory({ capacityBytes: 4 * CHUNK_BYTES });
  await put(memory, 'a', true);
  await put(memory, 'b', true);
  t.notOk(memory.crowded);
  const c = await put(memory, 'c', true);
  t.ok(memory.crowded);
  c.release();
  t.notOk(memory.crowded);
});

t.test('property: no interleaving of fills, pins and evictions puts two chunks into one slot', async () => {
  const SLOTS = 4;
  const key = fc.nat(7).map((n) => `key ${n}`);
  const command = fc.oneof(
    fc.record({ do: fc.constant('reserve' as const) }),
    fc.record({ do: fc.constant('commit' as const), key, prefetch: fc.boolean(), which: fc.nat(9) }),
    fc.record({ do: fc.constant('cancel' as const), which: fc.nat(9) }),
    fc.record({ do: fc.constant('get' as const), key }),
    fc.record({ do: fc.constant('release' as const), which: fc.nat(9) }),
  );
  const property = fc.asyncProperty(fc.array(command, { maxLength: 120 }), async (commands) => {
    const memory = new ChunkMemory({ capacityBytes: SLOTS * CHUNK_BYTES });
    const filling: Slot[] = [];
    const pins: { slot: Slot; key: string }[] = [];
    let waiting = 0;
    const pick = <T>(from: T[], which: number) => from.splice(which % from.length, 1)[0] as T;
    const check = () => {
      // The model: a slot is either being filled by one caller or pinned for one key, and pinned bytes do not change.
      const owners = new Map<Slot, string>();
      for (const slot of filling) {
        if (owners.has(slot)) throw new Error('one slot, two fills');
        owners.set(slot, 'a fill');
      }
      for (const { slot, key } of pins) {
        const owner = owners.get(slot);
        if (owner !== undefined && owner !== key) throw new Error(`slot of ${key} belongs to ${owner}`);
        owners.set(slot, key);
        if (!holds(slot, key)) throw new Error(`slot of ${key} holds something else`);
      }
      const stats = memory.stats();
      if (stats.filling !== filling.length) throw new Error('wrong count of fills');
      if (stats.waiting !== waiting) throw new Error(`${stats.waiting} wait, not ${waiting}`);
      if (stats.pinnedBytes !== new Set(pins.map((pin) => pin.slot)).size * CHUNK_BYTES)
        throw new Error('wrong count of pins');
      const freeBytes = memory.freeSlots * CHUNK_BYTES;
      if (stats.cachedBytes + stats.filling * CHUNK_BYTES + freeBytes > stats.capacityBytes)
        throw new Error('more slots than there are');
      // No fill waits while a slot could be given.
      const movable =
        memory.freeSlots + stats.cachedBytes / CHUNK_BYTES - new Set(pins.map((pin) => pin.slot)).size;
      if (waiting > 0 && movable > 0) throw new Error('a slot is idle while a fill waits');
    };
    for (const step of commands) {
      if (step.do === 'reserve' && waiting < 6) {
        waiting++;
        void memory.reserve(demand()).then((slot) => {
          waiting--;
          // A fill overwrites its slot at once, which would show in bytes that are still held.
          slot.bytes.fill(0xee, 0, 64);
          filling.push(slot);
        });
      } else if (step.do === 'commit' && filling.length > 0) {
        const slot = pick(filling, step.which);
        fill(slot, step.key);
        const kept = memory.commit(step.key, slot, contextOf(step.prefetch ? 'prefetch' : 'demand'));
        pins.push({ slot: kept, key: step.key });
      } else if (step.do === 'cancel' && filling.length > 0) memory.cancel(pick(filling, step.which));
      else if (step.do === 'get') {
        const slot = memory.get(step.key);
        if (slot) pins.push({ slot, key: step.key });
      } else if (step.do === 'release' && pins.length > 0) pick(pins, step.which).slot.release();
      // Lets the promises of reserve settle.
      await Promise.resolve();
      await Promise.resolve();
      check();
    }
    while (filling.length > 0 || pins.length > 0) {
      while (pins.length > 0) pick(pins, 0).slot.release();
      while (filling.length > 0) memory.cancel(pick(filling, 0));
      await Promise.resolve();
      await Promise.resolve();
      check();
    }
    if (waiting > 0) throw new Error('a fill was forgotten');
  });
  await fc.assert(property, { numRuns: 300 });
});
