/** Requests and their answers, good and bad, over a real socket. */
import t from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import {
  BLOCK_SIZE,
  CHUNK_TYPE,
  COMMAND,
  COMMAND_FLAG,
  NBD_ERROR,
} from '../../../src/export/nbd/protocol.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { BufferDevice, type BufferDeviceOptions } from '../../support/buffer-device.ts';
import { NbdClient } from '../../support/nbd-client.ts';
import { content, serve, until } from './serving.ts';

const { read, write, disconnect, flush, trim, cache, writeZeroes, blockStatus } = COMMAND;
/** Data, zeroes, data, zeroes, zeroes, data, … */
const bytes = content(20, [1, 3, 4, 19]);

async function open(
  t: Parameters<typeof serve>[0],
  options: { structured?: boolean; allocation?: boolean } & BufferDeviceOptions = {},
): Promise<{ client: NbdClient; device: BufferDevice } & Awaited<ReturnType<typeof serve>>> {
  const device = new BufferDevice(bytes, { hits: !options.cold, ...options });
  const serving = await serve(t, [device]);
  const client = await NbdClient.open(serving.where, '', options);
  t.teardown(() => client.close());
  return { ...serving, client, device };
}

const RANGES = [
  ['the first byte', 0, 1],
  ['the last byte', bytes.length - 1, 1],
  ['an odd range over a chunk border', CHUNK_BYTES - 333, 777],
  ['a long odd range over zeroes and data', 12345, 6 * CHUNK_BYTES + 1],
  ['more than a piece of data', 5 * CHUNK_BYTES, 9 * CHUNK_BYTES],
  ['zeroes alone', 3 * CHUNK_BYTES, 2 * CHUNK_BYTES],
  ['everything', 0, bytes.length],
] as const;

for (const structured of [false, true]) {
  for (const cold of [false, true]) {
    const how = `${structured ? 'structured' : 'simple'}, ${cold ? 'fetched' : 'from memory'}`;
    for (const [what, offset, lengthBytes] of RANGES) {
      t.test(`reads ${what}: ${how}`, async (t) => {
        const { client, device } = await open(t, { structured, cold });
        const answer = await client.request({ type: read, offset, lengthBytes });
        t.equal(answer.error, 0);
        t.ok(answer.data.equals(bytes.subarray(offset, offset + lengthBytes)));
        await until(() => device.pinned === 0);
      });
    }
  }

  const how = structured ? 'structured' : 'simple';
  const wrong: [string, number, { offset?: number; lengthBytes?: number; flags?: number }][] = [
    ['a read beyond the end', read, { offset: bytes.length - 1, lengthBytes: 2 }],
    ['a read at the end', read, { offset: bytes.length, lengthBytes: 1 }],
    ['a read at 2^62', read, { offset: 2 ** 62, lengthBytes: 4096 }],
    ['a read of nothing', read, { lengthBytes: 0 }],
    ['a read over the maximum', read, { lengthBytes: BLOCK_SIZE.maximum + 1 }],
    ['a read with an unknown flag', read, { lengthBytes: 1, flags: 0x8000 }],
    ['a read with FUA', read, { lengthBytes: 1, flags: COMMAND_FLAG.fua }],
    ['a cache request beyond the end', cache, { offset: bytes.length, lengthBytes: 1 }],
    ['a cache request with a flag', cache, { lengthBytes: 1, flags: 1 }],
    ['a flush with a range', flush, { offset: 4096, lengthBytes: 4096 }],
    ['a flush with a flag', flush, { flags: COMMAND_FLAG.fua }],
    ['block status of nothing', blockStatus, { lengthBytes: 0 }],
    ['block status beyond the end', blockStatus, { offset: 1, lengthBytes: bytes.length }],
    ['block status with an unknown flag', blockStatus, { lengthBytes: 1, flags: 0x4000 }],
    ['command 8', 8, {}],
    ['command 65535', 0xffff, { lengthBytes: 0xffffffff }],
  ];
  for (const [what, type, fields] of wrong) {
    t.test(`${what} is EINVAL, and the next request served: ${how}`, async (t) => {
      const { client } = await open(t, { structured });
      const answer = await client.request({ type, ...fields });
      t.equal(answer.error, NBD_ERROR.EINVAL);
      t.equal(answer.text.length > 0, structured, 'a text where the reply can carry one');
      t.ok((await client.request({ type: read, lengthBytes: 4096 })).data.equals(bytes.subarray(0, 4096)));
    });
  }

  t.test(`trim and write zeroes are refused as not permitted: ${how}`, async (t) => {
    const { client } = await open(t, { structured });
    for (const type of [trim, writeZeroes])
      t.equal((await client.request({ type, lengthBytes: 4096 })).error, NBD_ERROR.EPERM);
  });

  t.test(`a write is refused and its data, which looks like requests, is skipped: ${how}`, async (t) => {
    const { client, server } = await open(t, { structured });
    const looks = Buffer.from('25609513000000000000000000000000000000000000000000000001', 'hex');
    for (const lengthBytes of [28, 280, 28 * 40_000]) {
      const answer = await client.request({ type: write, lengthBytes }, Buffer.alloc(lengthBytes, looks));
      t.equal(answer.error, NBD_ERROR.EPERM);
      t.ok((await client.request({ type: read, lengthBytes: 512 })).data.equals(bytes.subarray(0, 512)));
    }
    t.equal(server.stats().ops.read, 3);
  });

  t.test(`flush and cache succeed: ${how}`, async (t) => {
    const { client, device } = await open(t, { structured });
    t.equal((await client.request({ type: flush })).error, 0);
    t.equal((await client.request({ type: cache, offset: 8192, lengthBytes: bytes.length - 8192 })).error, 0);
    t.same(device.prefetched, [[8192, bytes.length - 8192]]);
  });

  t.test(`an error of the drive is EIO for that request only: ${how}`, async (t) => {
    const { client, device } = await open(t, {
      structured,
      cold: true,
      beforeRead: (offset) => {
        if (offset === 4096) throw new LazydiskError('CORRUPT', 'drive test, chunk 0, origin: wrong digest');
      },
    });
    const failed = await client.request({ type: read, offset: 4096, lengthBytes: 4096 });
    t.equal(failed.error, NBD_ERROR.EIO);
    if (structured) t.equal(failed.text, 'drive test, chunk 0, origin: wrong digest');
    t.equal((await client.request({ type: read, lengthBytes: 4096 })).error, 0);
    await until(() => device.pinned === 0);
  });

  t.test(`an error in the middle of a long read is EIO: ${how}`, async (t) => {
    const { client, device } = await open(t, {
      structured,
      cold: true,
      beforeRead: (offset) => {
        if (offset > 7 * CHUNK_BYTES) throw new LazydiskError('TIMEOUT', 'origin is slow');
      },
    });
    const failed = await client.request({ type: read, lengthBytes: bytes.length });
    t.equal(failed.error, NBD_ERROR.EIO);
    t.equal((await client.request({ type: read, lengthBytes: 4096 })).error, 0, 'and the stream is in step');
    await until(() => device.pinned === 0);
  });

  t.test(`after DISC, reads in flight are answered and the connection is closed: ${how}`, async (t) => {
    const gate = Promise.withResolvers<void>();
    const { client, server } = await open(t, { structured, cold: true, beforeRead: () => gate.promise });
    for (let n = 0; n < 3; n++) client.send({ type: read, offset: n * 4096, lengthBytes: 4096 });
    client.send({ type: disconnect });
    client.send({ type: read, lengthBytes: 4096 });
    await until(() => server.stats().inflight === 3);
    gate.resolve();
    for (let n = 0; n < 3; n++)
      t.ok((await client.answer()).data.equals(bytes.subarray(n * 4096, (n + 1) * 4096)));
    t.equal((await client.rest()).length, 0, 'nothing after DISC is answered');
  });
}

t.test('answers are sent as they become ready, in any order', async (t) => {
  const gate = Promise.withResolvers<void>();
  const { client } = await open(t, {
    cold: true,
    beforeRead: (offset) => (offset === 0 ? gate.promise : undefined),
  });
  const slow = client.send({ type: read, lengthBytes: 4096 });
  const quick = client.send({ type: read, offset: CHUNK_BYTES * 2, lengthBytes: 4096 });
  t.equal((await client.answer()).chunks[0]!.cookie, quick);
  gate.resolve();
  t.equal((await client.answer()).chunks[0]!.cookie, slow);
});

t.test('a half-closed client still gets its answers', async (t) => {
  const { client } = await open(t, { cold: true });
  client.send({ type: read, lengthBytes: 4096 });
  client.socket.end();
  t.ok((await client.answer()).data.equals(bytes.subarray(0, 4096)));
  t.equal((await client.rest()).length, 0);
});

t.test('DF without structured replies is EINVAL', async (t) => {
  const { client } = await open(t, { structured: false });
  t.equal(
    (await client.request({ type: read, lengthBytes: 1, flags: COMMAND_FLAG.df })).error,
    NBD_ERROR.EINVAL,
  );
});

t.test('a read with DF is answered with one chunk of data, including holes', async (t) => {
  const { client } = await open(t, { cold: true });
  const answer = await client.request({ type: read, lengthBytes: bytes.length, flags: COMMAND_FLAG.df });
  t.same(
    answer.chunks.map(({ type }) => type),
    [CHUNK_TYPE.offsetData],
  );
  t.ok(answer.data.equals(bytes));
});

t.test('a long read gets zeroes as holes', async (t) => {
  const { client } = await open(t);
  const { chunks } = await client.request({ type: read, lengthBytes: 6 * CHUNK_BYTES });
  const { offsetData, offsetHole } = CHUNK_TYPE;
  t.same(
    chunks.map(({ type }) => type),
    [offsetData, offsetHole, offsetData, offsetHole, offsetData],
  );
});

t.test('block status without a chosen context is EINVAL', async (t) => {
  const { client } = await open(t, { structured: true, allocation: false });
  t.equal((await client.request({ type: blockStatus, lengthBytes: 4096 })).error, NBD_ERROR.EINVAL);
});

/** [length, flags] of an answer's extents. */
function extents(payload: Buffer): [number, number][] {
  t.equal(payload.readUInt32BE(0), 1, 'the id of the context');
  const runs: [number, number][] = [];
  for (let at = 4; at < payload.length; at += 8)
    runs.push([payload.readUInt32BE(at), payload.readUInt32BE(at + 4)]);
  return runs;
}

t.test('block status reports data and holes', async (t) => {
  const { client } = await open(t);
  const offset = 4096;
  const { chunks } = await client.request({ type: blockStatus, offset, lengthBytes: 5 * CHUNK_BYTES });
  t.same(extents(chunks[0]!.payload), [
    [CHUNK_BYTES - offset, 0],
    [CHUNK_BYTES, 3],
    [CHUNK_BYTES, 0],
    [2 * CHUNK_BYTES, 3],
    [offset, 0],
  ]);
});

t.test('block status with REQ_ONE reports one extent, within the request', async (t) => {
  const { client } = await open(t);
  const ask = async (offset: number, lengthBytes: number) => {
    const fields = { type: blockStatus, offset, lengthBytes, flags: COMMAND_FLAG.reqOne };
    return extents((await client.request(fields)).chunks[0]!.payload);
  };
  t.same(await ask(0, bytes.length), [[CHUNK_BYTES, 0]]);
  t.same(await ask(3 * CHUNK_BYTES, 1000), [[1000, 3]]);
});

t.test('block status of a disk with very many extents stops short and can be continued', async (t) => {
  const size = 5000 * CHUNK_BYTES;
  const striped = new (class extends BufferDevice {
    override readonly sizeBytes = size;
    override extents(offset: number, lengthBytes: number, extentsMax: number) {
      const count = Math.min(extentsMax, lengthBytes / CHUNK_BYTES);
      const first = offset / CHUNK_BYTES;
      return Array.from({ length: count }, (_, n) => ({
        lengthBytes: CHUNK_BYTES,
        zero: (first + n) % 2 === 1,
      }));
    }
  })(Buffer.alloc(0));
  const { where } = await serve(t, [striped]);
  const client = await NbdClient.open(where);
  const runs: [number, number][] = [];
  let at = 0;
  let answers = 0;
  while (at < size) {
    const { chunks } = await client.request({ type: blockStatus, offset: at, lengthBytes: size - at });
    for (const run of extents(chunks[0]!.payload)) {
      runs.push(run);
      at += run[0];
    }
    answers++;
  }
  t.equal(runs.length, 5000);
  t.ok(runs.every(([lengthBytes, flags], n) => lengthBytes === CHUNK_BYTES && flags === (n % 2) * 3));
  t.equal(answers, 2);
  client.close();
});

t.test('a wrong magic closes the connection, and the next client is served', async (t) => {
  const { client, where } = await open(t);
  client.socket.write(Buffer.alloc(28, 'x'));
  t.equal((await client.rest()).length, 0);
  const next = await NbdClient.open(where);
  t.equal((await next.request({ type: read, lengthBytes: 1 })).error, 0);
  next.close();
});

t.test('a write that announces too much data to skip closes the connection', async (t) => {
  const { client } = await open(t);
  client.send({ type: write, lengthBytes: 0xffffffff });
  t.equal((await client.rest()).length, 0);
});
