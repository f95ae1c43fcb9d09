/** Input that is split anywhere, or random: the answers are equal, and the server survives. */
import fc from 'fast-check';
import t from 'tap';
import { COMMAND, OPTION, type Request } from '../../../src/export/nbd/protocol.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { BufferDevice } from '../../support/buffer-device.ts';
import { contextQuery, goData, NbdClient, optionBytes, writeRequest } from '../../support/nbd-client.ts';
import { content, serve, until } from './serving.ts';

const bytes = content(4, [1]);

function request(type: number, cookieLow: number, offset: number, lengthBytes: number): Buffer {
  const fields: Request = { flags: 0, type, cookieHigh: 0, cookieLow, offset, lengthBytes };
  return writeRequest(fields);
}

/** A session from the client's flags to DISC, with all kinds of requests, all answered from memory, in order. */
const SESSION = Buffer.concat([
  Buffer.from([0, 0, 0, 3]),
  optionBytes(77, Buffer.alloc(300)),
  optionBytes(OPTION.list),
  optionBytes(OPTION.structuredReply),
  optionBytes(OPTION.setMetaContext, contextQuery('test', ['base:allocation'])),
  optionBytes(OPTION.go, goData('test', [1, 2, 3])),
  request(COMMAND.read, 1, 1000, 3000),
  request(COMMAND.write, 2, 0, 5000),
  Buffer.alloc(5000, 0x25),
  request(COMMAND.blockStatus, 3, 0, bytes.length),
  request(COMMAND.read, 4, CHUNK_BYTES, 70_000),
  request(COMMAND.flush, 5, 0, 0),
  request(99, 6, 0, 0),
  request(COMMAND.read, 7, bytes.length - 5, 5),
  request(COMMAND.disconnect, 8, 0, 0),
]);

async function play(where: { path: string }, pieces: readonly Buffer[]): Promise<Buffer> {
  const client = await NbdClient.raw(where);
  const rest = client.rest();
  for (const piece of pieces) {
    client.socket.write(piece);
    await new Promise((resolve) => setImmediate(resolve));
  }
  return await rest;
}

t.test('a session that is split anywhere gets the same answers', async (t) => {
  const { where } = await serve(t, [new BufferDevice(bytes)]);
  const expected = await play(where, [SESSION]);
  t.ok(expected.length > 3000, 'the session has answers');
  const borders = fc.uniqueArray(fc.integer({ min: 1, max: SESSION.length - 1 }), { maxLength: 40 });
  await fc.assert(
    fc.asyncProperty(borders, async (cuts) => {
      cuts.sort((a, b) => a - b);
      const pieces = [0, ...cuts].map((from, n) => SESSION.subarray(from, cuts[n] ?? SESSION.length));
      return (await play(where, pieces)).equals(expected);
    }),
    { numRuns: 60 },
  );
});

/** Checks that the next client gets its bytes. */
async function serves(where: { path: string }): Promise<boolean> {
  const client = await NbdClient.open(where);
  const { data } = await client.request({ type: COMMAND.read, offset: 4096, lengthBytes: 4096 });
  client.close();
  return data.equals(bytes.subarray(4096, 8192));
}

const noise = fc.uint8Array({ minLength: 1, maxLength: 2000 }).map((array) => Buffer.from(array));
/** Random bytes after something that is read as the start of a message. */
const nearly = fc
  .tuple(fc.constantFrom(16, 14, 10, 8, 6, 4, 0), fc.nat(SESSION.length - 20), noise)
  .map(([keep, at, rest]) => Buffer.concat([SESSION.subarray(at, at + keep), rest]));

t.test('random bytes instead of a negotiation harm no other client', async (t) => {
  const { where } = await serve(t, [new BufferDevice(bytes)]);
  const options = fc.array(
    fc.tuple(fc.integer({ min: 0, max: 12 }), noise).map(([option, data]) => optionBytes(option, data)),
    { maxLength: 5 },
  );
  const start = fc.oneof(fc.constant(Buffer.from([0, 0, 0, 3])), noise);
  await fc.assert(
    fc.asyncProperty(start, options, nearly, async (flags, known, rest) => {
      const client = await NbdClient.raw(where);
      client.socket.end(Buffer.concat([flags, ...known, rest]));
      await client.rest();
      return await serves(where);
    }),
    { numRuns: 150 },
  );
});

t.test('random bytes instead of requests harm no other client', async (t) => {
  const device = new BufferDevice(bytes, { hits: true });
  const { where, server } = await serve(t, [device]);
  const number = (max: number) => fc.oneof(fc.nat(max), fc.constantFrom(0, 1, max));
  const requests = fc.array(
    fc
      .tuple(number(10), number(0xffff), number(bytes.length), number(0xffffffff))
      .map(([type, flags, offset, lengthBytes]) =>
        writeRequest({ type, flags, cookieHigh: 0, cookieLow: 0, offset, lengthBytes }),
      ),
    { maxLength: 20 },
  );
  await fc.assert(
    fc.asyncProperty(requests, noise, fc.boolean(), async (known, rest, structured) => {
      const client = await NbdClient.open(where, '', { structured });
      client.socket.end(Buffer.concat([...known, rest]));
      await client.rest();
      await until(() => device.pinned === 0);
      return serves(where);
    }),
    { numRuns: 150 },
  );
  t.equal(server.stats().inflight, 0);
});
