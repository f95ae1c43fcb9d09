/** The parser reads every well-formed request and refuses all else; replies have the kernel's layout. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import {
  attrReply,
  entryReply,
  initReply,
  RequestReader,
  readdirReply,
} from '../../../src/export/fuse/protocol.ts';
import { fields, writeRequests } from './wire.ts';

const anyRequest = fc.record({
  opcode: fc.integer({ min: 0, max: 0xffffffff }),
  unique: fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
  nodeId: fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
  body: fc.uint8Array({ maxLength: 200 }),
});

t.test('a batch is parsed into the requests that were written', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.array(anyRequest, { maxLength: 20 }), async (requests) => {
      const bytes = writeRequests(requests);
      const reader = new RequestReader(bytes);
      let at = 0;
      for (const { opcode, unique, nodeId, body } of requests) {
        at = reader.next(at, bytes.length);
        assert.deepEqual([reader.opcode, reader.unique, reader.nodeId], [opcode, unique, nodeId]);
        assert.equal(reader.bodyBytes, body.length);
        if (body.length >= 4) assert.equal(reader.u32(0), Buffer.from(body).readUInt32LE());
        assert.throws(() => reader.u32(body.length - 3), LazydiskError);
        assert.throws(() => reader.u64(body.length - 7), LazydiskError);
        assert.throws(() => reader.u32(-1), LazydiskError);
      }
      assert.equal(at, bytes.length);
    }),
  );
  t.pass('holds');
});

t.test('random bytes are refused with CORRUPT or parsed within their bounds', async (t) => {
  const anyLength = fc.constantFrom(0, 39, 40, 41, 48, 80, 4096, 0xffffffff);
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 400 }), anyLength, async (noise, length) => {
      const bytes = Buffer.from(noise);
      if (bytes.length >= 4) bytes.writeUInt32LE(length);
      const reader = new RequestReader(bytes);
      try {
        for (let at = 0; at < bytes.length; ) {
          const next = reader.next(at, bytes.length);
          assert.ok(next >= at + 40);
          reader.name(0);
          at = next;
        }
      } catch (error) {
        assert.ok(error instanceof LazydiskError && error.code === 'CORRUPT', `${error}`);
      }
    }),
    { numRuns: 500 },
  );
  t.pass('holds');
});

t.test('names end at their NUL, which must be in the request', async (t) => {
  const named = writeRequests([
    { opcode: 1, unique: 2, nodeId: 1, body: Buffer.from('drive\0tail') },
    { opcode: 1, unique: 4, nodeId: 1, body: Buffer.from('endless') },
  ]);
  const reader = new RequestReader(named);
  const second = reader.next(0, named.length);
  t.equal(reader.name(0), 'drive');
  reader.next(second, named.length);
  t.throws(() => reader.name(0), { code: 'CORRUPT' }, 'the padding after it does not count');
});

t.test('a request id above 2^53 is refused', async (t) => {
  const bytes = writeRequests([{ opcode: 1, unique: 2, nodeId: 1, body: Buffer.alloc(0) }]);
  bytes.writeBigUInt64LE(2n ** 63n, 8);
  t.throws(() => new RequestReader(bytes).next(0, bytes.length), { code: 'CORRUPT' });
});

t.test('replies have the layout of linux/fuse.h', async (t) => {
  const attributes = {
    nodeId: 7,
    directory: false,
    mode: 0o440,
    sizeBytes: 5 * 2 ** 32 + 512,
    links: 3,
    uid: 11,
    gid: 12,
  };
  const attr = Buffer.concat([
    fields(['u64', 7], ['u64', 5 * 2 ** 32 + 512], ['u64', (5 * 2 ** 32 + 512) / 512]),
    fields(['u64', 0], ['u64', 0], ['u64', 0], ['u32', 0], ['u32', 0], ['u32', 0]),
    fields(['u32', 0o100440], ['u32', 3], ['u32', 11], ['u32', 12], ['u32', 0], ['u32', 4096], ['u32', 0]),
  ]);
  const entry = fields(['u64', 7], ['u64', 0], ['u64', 0], ['u64', 9], ['u32', 0], ['u32', 0]);
  t.same(entryReply(attributes, 9), Buffer.concat([entry, attr]));
  t.same(attrReply(attributes, 9), Buffer.concat([fields(['u64', 9], ['u32', 0], ['u32', 0]), attr]));
  const init = initReply({
    maxReadahead: 1,
    flags: 0x80000001 | 0,
    maxBackground: 3,
    congestionThreshold: 4,
    maxPages: 256,
  });
  const limits = fields(['u32', 3 + 4 * 65536], ['u32', 4096], ['u32', 1], ['u32', 256]);
  const versions = fields(['u32', 7], ['u32', 31], ['u32', 1], ['u32', 0x80000001]);
  t.same(init, Buffer.concat([versions, limits, Buffer.alloc(32)]));
});

t.test('a directory is cut between entries, and continues at a cookie', async (t) => {
  const entries = ['a', 'drive-with-a-longer-name'].map((name, at) => {
    return { name, nodeId: at + 2, cookie: at + 3, directory: at === 0 };
  });
  const whole = readdirReply(entries, 4096);
  t.equal(whole.length, 32 + 48);
  t.same(whole.subarray(0, 24), fields(['u64', 2], ['u64', 3], ['u32', 1], ['u32', 4]));
  t.equal(whole.toString('latin1', 32 + 24, 32 + 48), 'drive-with-a-longer-name');
  t.same(readdirReply(entries, whole.length - 1), whole.subarray(0, 32));
  t.equal(readdirReply(entries, 31).length, 0);
});
