/** The encoder stores each chunk once in any order of events, bounds what is in flight, and stops at a failure. */
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { LazydiskError } from '../../src/errors.ts';
import { decodeChunk } from '../../src/format/chunk-codec.ts';
import { CHUNK_BYTES, type ChunkId, type ChunkRef } from '../../src/format/chunk-id.ts';
import { ChunkEncoder, type ChunkStore } from '../../src/image/encode.ts';

const salt = Buffer.alloc(32, 'salt');

/** Chunks in a Map; `beforePut` may delay or throw. */
class MemoryStore implements ChunkStore {
  readonly chunks = new Map<ChunkId, Buffer>();
  inFlight = 0;
  inFlightMax = 0;
  readonly #beforePut: (id: ChunkId) => Promise<unknown> | unknown;

  constructor(beforePut: (id: ChunkId) => Promise<unknown> | unknown = () => undefined) {
    this.#beforePut = beforePut;
  }

  async hasChunk(id: ChunkId): Promise<boolean> {
    return this.chunks.has(id);
  }

  async putChunk(id: ChunkId, sealed: Uint8Array): Promise<void> {
    this.inFlightMax = Math.max(this.inFlightMax, ++this.inFlight);
    try {
      await this.#beforePut(id);
      if (this.chunks.has(id)) throw new Error(`${id} was put twice`);
      this.chunks.set(id, Buffer.from(sealed));
    } finally {
      this.inFlight--;
    }
  }
}

/** A few kinds of chunk, repeated: 0 is zeroes. */
function chunkOf(kind: number): Buffer {
  return kind === 0 ? Buffer.alloc(CHUNK_BYTES) : Buffer.alloc(CHUNK_BYTES, `kind ${kind} `);
}

async function encodeAll(encoder: ChunkEncoder, kinds: number[]): Promise<(ChunkRef | undefined)[]> {
  const refs: (ChunkRef | undefined)[] = kinds.map(() => undefined);
  for (const [at, kind] of kinds.entries()) {
    const buffer = encoder.takeBuffer();
    chunkOf(kind).copy(buffer);
    await encoder.add(buffer, (ref) => {
      refs[at] = ref;
    });
  }
  await encoder.drain();
  return refs;
}

const KINDS = Array.from({ length: 120 }, (_, at) => (at * 7) % 30);

t.test('every chunk gets its reference, and each distinct chunk is stored once', async (t) => {
  const store = new MemoryStore();
  const encoder = new ChunkEncoder(store, salt);
  const refs = await encodeAll(encoder, KINDS);
  for (const [at, ref] of refs.entries()) {
    const kind = KINDS[at]!;
    if (kind === 0) t.equal(ref, undefined, 'zeroes are not stored');
    else {
      const sealed = store.chunks.get(ref!.id)!;
      t.equal(sealed.length, ref!.sealedBytes);
      if (!decodeChunk(sealed, ref!.key).equals(chunkOf(kind))) t.fail(`chunk ${at}`);
    }
  }
  const sealedBytes = [...store.chunks.values()].reduce((sum, sealed) => sum + sealed.length, 0);
  t.same(encoder.counts, { chunks: 116, newChunks: 29, newBytes: sealedBytes, reusedChunks: 87 });
});

t.test('the result does not depend on the order in which puts finish', async (t) => {
  const calm = await encodeAll(new ChunkEncoder(new MemoryStore(), salt), KINDS);
  for (let run = 0; run < 3; run++) {
    const store = new MemoryStore(() => sleep(Math.random() * 20));
    t.same(await encodeAll(new ChunkEncoder(store, salt), KINDS), calm);
  }
});

t.test('a chunk that the store has is not put again', async (t) => {
  const store = new MemoryStore();
  await encodeAll(new ChunkEncoder(store, salt), [1, 2, 3]);
  const encoder = new ChunkEncoder(store, salt);
  await encodeAll(encoder, [2, 3, 4]);
  t.match(encoder.counts, { chunks: 3, newChunks: 1, reusedChunks: 2 });
});

t.test('a store that does not respond makes add wait', async (t) => {
  const gate = Promise.withResolvers<void>();
  const store = new MemoryStore(() => gate.promise);
  const encoder = new ChunkEncoder(store, salt);
  let taken = 0;
  const feeding = (async () => {
    for (; taken < 200; taken++) {
      const bytes = encoder.takeBuffer();
      bytes.fill(0);
      bytes.writeUInt32LE(taken + 1);
      await encoder.add(bytes, () => undefined);
    }
  })();
  for (let before = -1; before !== taken; await sleep(200)) before = taken;
  t.ok(taken < 60, `${taken} of 200 were taken`);
  t.ok(store.inFlightMax <= 32);
  gate.resolve();
  await feeding;
  await encoder.drain();
  t.equal(store.chunks.size, 200);
});

t.test('later calls reject with the first failure, and nothing is in flight after drain', async (t) => {
  let puts = 0;
  const store = new MemoryStore(async () => {
    await sleep(1);
    if (++puts === 5) throw new LazydiskError('NO_SPACE', 'full');
  });
  const encoder = new ChunkEncoder(store, salt);
  const feed = async () => {
    for (let kind = 1; ; kind++) await encoder.add(chunkOf(kind), () => undefined);
  };
  await t.rejects(feed(), { code: 'NO_SPACE' });
  await t.rejects(encoder.drain(), { code: 'NO_SPACE' });
  t.equal(store.inFlight, 0);
  const stored = store.chunks.size;
  await sleep(50);
  t.equal(store.chunks.size, stored);
  await t.rejects(
    encoder.add(chunkOf(1), () => undefined),
    { code: 'NO_SPACE' },
  );
});

t.test('an abort stops the encoder', async (t) => {
  const controller = new AbortController();
  const store = new MemoryStore(() => controller.abort());
  const encoder = new ChunkEncoder(store, salt, controller.signal);
  const feed = async () => {
    for (let kind = 1; ; kind++) await encoder.add(chunkOf(kind), () => undefined);
  };
  await t.rejects(feed(), { code: 'ABORTED' });
  await t.rejects(encoder.drain(), { code: 'ABORTED' });
  t.equal(store.inFlight, 0);
});

t.test('buffers are reused, but never while they are being read', async (t) => {
  const store = new MemoryStore();
  const encoder = new ChunkEncoder(store, salt);
  const seen = new Set<Buffer>();
  const plain: Buffer[] = [];
  const refs: ChunkRef[] = [];
  for (let at = 0; at < 60; at++) {
    const buffer = encoder.takeBuffer();
    seen.add(buffer);
    randomBytes(CHUNK_BYTES).copy(buffer);
    plain.push(Buffer.from(buffer));
    await encoder.add(buffer, (ref) => {
      refs[at] = ref;
    });
  }
  await encoder.drain();
  t.ok(seen.size < 20, `${seen.size} buffers for 60 chunks`);
  for (const [at, ref] of refs.entries()) {
    if (!decodeChunk(store.chunks.get(ref.id)!, ref.key).equals(plain[at]!)) t.fail(`chunk ${at}`);
  }
});
