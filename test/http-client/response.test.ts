/** HTTP/1.1 responses as they arrive: in any pieces, with any framing, malformed in any way. */
import { once } from 'node:events';
import { get } from 'node:http';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import fc from 'fast-check';
import t from 'tap';
import { HEAD_BYTES_MAX, HttpResponse, HttpSyntaxError } from '../../src/http-client/response.ts';

const BYTES_MAX = 1000;

/** Feeds `bytes` in pieces of the lengths in `pieces`, in turn, as a connection does; returns what was not consumed. */
function feed(response: HttpResponse, bytes: Buffer, pieces: readonly number[] = [bytes.length]): Buffer {
  let held = Buffer.alloc(0);
  for (let at = 0, n = 0; at < bytes.length; n++) {
    const piece = bytes.subarray(at, at + pieces[n % pieces.length]!);
    at += piece.length;
    const { room } = response;
    if (room && held.length === 0) {
      const placed = piece.copy(room);
      response.placed(placed);
      held = Buffer.from(piece.subarray(placed));
    } else held = Buffer.concat([held, piece]);
    held = held.subarray(response.take(held));
  }
  return held;
}

function read(text: string, options: { isHead?: boolean; bytesMax?: number; into?: Buffer } = {}) {
  const response = new HttpResponse({ bytesMax: BYTES_MAX, ...options });
  const rest = feed(response, Buffer.from(text, 'latin1'));
  return { response, rest: rest.toString('latin1') };
}

const pieces = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 20 });

type Framing = 'length' | 'chunked' | 'close';

const message = fc.record({
  status: fc.constantFrom(200, 206, 404, 503),
  reason: fc.constantFrom(' OK', ' ', ''),
  body: fc.uint8Array({ maxLength: BYTES_MAX }).map((bytes) => Buffer.from(bytes)),
  framing: fc.constantFrom<Framing>('length', 'chunked', 'close'),
  interims: fc.integer({ min: 0, max: 3 }),
  header: fc.stringMatching(/^[a-zA-Z0-9 ]{0,30}$/).map((text) => text.trim()),
  chunks: fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 5 }),
});

type Message = typeof message extends fc.Arbitrary<infer T> ? T : never;

function serialized({ status, reason, body, framing, interims, header, chunks }: Message): Buffer {
  const head = [
    `HTTP/1.1 ${status}${reason}`,
    `X-One:  ${header} \t`,
    ...(framing === 'length' ? [`Content-LENGTH: ${body.length}`] : []),
    ...(framing === 'chunked' ? ['Transfer-Encoding: Chunked'] : []),
  ];
  const parts = [
    Buffer.from(`${'HTTP/1.1 100 Continue\r\n\r\n'.repeat(interims)}${head.join('\r\n')}\r\n\r\n`),
  ];
  if (framing !== 'chunked') return Buffer.concat([...parts, body]);
  for (let at = 0, n = 0; at < body.length; n++) {
    const chunk = body.subarray(at, at + chunks[n % chunks.length]!);
    at += chunk.length;
    parts.push(
      Buffer.from(`${chunk.length.toString(16)}${n % 2 ? ';a=b' : ''}\r\n`),
      chunk,
      Buffer.from('\r\n'),
    );
  }
  return Buffer.concat([...parts, Buffer.from('0\r\nX-Trailer: t\r\n\r\n')]);
}

t.test('a response is parsed the same with any framing and in any pieces', async () => {
  fc.assert(
    fc.property(message, pieces, fc.boolean(), (sent, lengths, hasInto) => {
      const into = hasInto ? Buffer.alloc(BYTES_MAX + 1, 0xee) : undefined;
      const response = new HttpResponse({ bytesMax: BYTES_MAX, into });
      const rest = feed(response, serialized(sent), lengths);
      const ended = response.isDone || response.end();
      const isSame =
        response.status === sent.status &&
        response.headers['x-one'] === sent.header &&
        response.body.equals(sent.body) &&
        response.isKept === (sent.framing !== 'close');
      return ended && rest.length === 0 && isSame;
    }),
    { numRuns: 2000 },
  );
});

t.test('a sink receives the same body, whatever the status, and only after the head', async () => {
  fc.assert(
    fc.property(message, pieces, fc.integer({ min: 1, max: 200 }), (sent, lengths, roomBytes) => {
      const parts: Buffer[] = [];
      let room = Buffer.alloc(roomBytes);
      let statusAtHead = 0;
      let heads = 0;
      const response = new HttpResponse({
        sink: {
          room: () => room,
          placed: (bytes) => {
            if (statusAtHead === 0) throw new Error('a body before its head');
            parts.push(room.subarray(0, bytes));
            room = Buffer.alloc(roomBytes);
          },
        },
        onHead: () => {
          heads++;
          statusAtHead = response.status;
        },
      });
      const rest = feed(response, serialized(sent), lengths);
      const ended = response.isDone || response.end();
      const isSame = Buffer.concat(parts).equals(sent.body) && statusAtHead === sent.status && heads === 1;
      return ended && rest.length === 0 && isSame && response.body.length === 0;
    }),
    { numRuns: 2000 },
  );
});

t.test('the body of a successful response goes into the given buffer if it fits', async (t) => {
  const into = Buffer.alloc(8, '.');
  const good = read('HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc', { into });
  t.equal(good.response.body.buffer, into.buffer);
  t.equal(String(into), 'abc.....');
  const bad = read('HTTP/1.1 500 OK\r\ncontent-length: 3\r\n\r\nxyz', { into });
  t.equal(String(bad.response.body), 'xyz');
  const long = read('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n123456789', { into });
  t.equal(String(long.response.body), '123456789');
  t.equal(String(into), 'abc.....');
});

t.test('a body over the bound is read to one byte past it, and its connection is not reused', async (t) => {
  for (const framing of [
    'content-length: 6\r\n\r\nabcdef',
    'transfer-encoding: chunked\r\n\r\n6\r\nabcdef',
    '\r\nabcdef',
  ]) {
    const { response, rest } = read(`HTTP/1.1 200 OK\r\n${framing}`, { bytesMax: 3 });
    t.ok(response.isDone);
    t.equal(String(response.body), 'abcd');
    t.equal(rest, 'ef');
    t.equal(response.isKept, false);
  }
  const exact = read('HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc', { bytesMax: 3 });
  t.equal(exact.response.isKept, true);
});

t.test('version and header decide whether the connection is kept', async (t) => {
  const isKept = (version: string, header: string) =>
    read(`HTTP/${version} 200 OK\r\ncontent-length: 0\r\n${header}\r\n`).response.isKept;
  t.equal(isKept('1.1', ''), true);
  t.equal(isKept('1.1', 'Connection: foo, Close\r\n'), false);
  t.equal(isKept('1.0', ''), false);
  t.equal(isKept('1.0', 'connection: Keep-Alive\r\n'), true);
});

t.test('responses to HEAD and of status 204 and 304 have no body, whatever their head says', async (t) => {
  const head = read('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n', { isHead: true });
  t.ok(head.response.isDone);
  t.equal(head.response.headers['content-length'], '9');
  for (const status of [204, 304]) {
    const { response } = read(`HTTP/1.1 ${status} No\r\ncontent-length: 9\r\n\r\n`);
    t.ok(response.isDone && response.isKept);
  }
});

t.test('malformed HTTP/1.1 is an error', async (t) => {
  const bad = [
    'hello\r\n\r\n',
    'HTTP/2 200 OK\r\n\r\n',
    'HTTP/1.1 20 OK\r\n\r\n',
    'HTTP/1.1 2000 OK\r\n\r\n',
    'HTTP/1.1 101 Switching Protocols\r\n\r\n',
    'HTTP/1.0 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n',
    'HTTP/1.1 200 OK\r\nno colon\r\n\r\n',
    'HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n',
    'HTTP/1.1 200 OK\r\na : b\r\n\r\n',
    'HTTP/1.1 200 OK\r\na: b\0c\r\n\r\n',
    'HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n',
    'HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n',
    'HTTP/1.1 200 OK\r\ncontent-length: 1e3\r\n\r\n',
    'HTTP/1.1 200 OK\r\ncontent-length: 9999999999999999\r\n\r\n',
    'HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n',
    'HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n',
    'HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n',
    'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n',
    'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n123456789\r\n',
    'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n',
    'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nno trailer\r\n\r\n',
    `HTTP/1.1 200 OK\r\na: ${'x'.repeat(HEAD_BYTES_MAX)}`,
    `HTTP/1.1 200 OK\r\na: ${'x'.repeat(HEAD_BYTES_MAX)}\r\n\r\n`,
    `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;${'x'.repeat(HEAD_BYTES_MAX)}`,
    `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n${'a: b\r\n'.repeat(HEAD_BYTES_MAX)}`,
    'HTTP/1.1 100 Continue\r\n\r\n'.repeat(9),
  ];
  for (const text of bad) {
    const isRefused = (): boolean => {
      try {
        read(text);
        return false;
      } catch (error) {
        return error instanceof HttpSyntaxError;
      }
    };
    t.ok(isRefused(), text.slice(0, 60));
  }
});

t.test('repeated headers are joined, and no header is confused with an object property', async (t) => {
  const { response } = read(
    'HTTP/1.1 200 OK\r\nVia: a\r\nvia: b\r\n__proto__: c\r\ncontent-length: 0\r\nContent-Length: 0\r\n\r\n',
  );
  t.equal(response.headers.via, 'a, b');
  t.equal(response.headers.constructor, undefined);
  t.ok(response.isDone);
});

/** A valid response with some bytes changed, removed or inserted. */
const spoiled = fc
  .tuple(
    message.map(serialized),
    fc.array(
      fc.tuple(fc.nat(), fc.constantFrom('\r', '\n', '\r\n', ' ', ':', '0', 'f', '\0', '\xff', '', 'xx')),
      {
        minLength: 1,
        maxLength: 4,
      },
    ),
  )
  .map(([bytes, edits]) => {
    let text = bytes.toString('latin1');
    for (const [n, put] of edits) {
      const at = n % (text.length + 1);
      text = `${text.slice(0, at)}${put}${text.slice(at + (n % 3))}`;
    }
    return Buffer.from(text, 'latin1');
  });

t.test('any input stays within the bounds or is an HttpSyntaxError', async () => {
  fc.assert(
    fc.property(
      fc.oneof(
        spoiled,
        fc.uint8Array({ maxLength: 300 }).map((b) => Buffer.from(b)),
      ),
      pieces,
      (bytes, lengths) => {
        const response = new HttpResponse({ bytesMax: BYTES_MAX });
        try {
          feed(response, bytes, lengths);
        } catch (error) {
          return error instanceof HttpSyntaxError;
        }
        return !response.isDone || response.body.length <= 64 * 1024 + 1;
      },
    ),
    { numRuns: 5000 },
  );
});

t.test('a response that node:http also accepts as complete is parsed to the same result', async (t) => {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  const { port } = server.address() as AddressInfo;
  const intact = message.map((sent) => ({ bytes: serialized(sent), isIntact: true }));
  const other = spoiled.map((bytes) => ({ bytes, isIntact: false }));
  let compared = 0;
  await fc.assert(
    fc.asyncProperty(fc.oneof(other, intact), async ({ bytes, isIntact }) => {
      const response = new HttpResponse({ bytesMax: BYTES_MAX });
      try {
        const rest = feed(response, bytes);
        const isWhole = response.isDone || response.end();
        if (!isWhole || rest.length > 0 || response.body.length > BYTES_MAX) return !isIntact;
      } catch {
        return !isIntact;
      }
      const seen = await nodeReads(server, port, bytes);
      if (!seen) return !isIntact;
      compared++;
      return seen.status === response.status && seen.body.equals(response.body);
    }),
    { numRuns: 300 },
  );
  t.ok(compared > 50, `both accepted ${compared}`);
});

/** What node:http parses from `bytes` of a server; undefined if that is an error. */
async function nodeReads(
  server: ReturnType<typeof createServer>,
  port: number,
  bytes: Buffer,
): Promise<{ status: number; body: Buffer } | undefined> {
  server.once('connection', (socket: Socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => socket.end(bytes));
  });
  return new Promise((resolve) => {
    const request = get({ host: '127.0.0.1', port, agent: false }, (answer) => {
      Array.fromAsync(answer).then(
        (parts) => resolve({ status: answer.statusCode ?? 0, body: Buffer.concat(parts as Buffer[]) }),
        () => resolve(undefined),
      );
    });
    request.on('error', () => resolve(undefined));
  });
}
