/**
 * socketSend sends as much as fits, in order, returns an errno otherwise, and never waits, raises a signal or
 * over-reads.
 */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import net from 'node:net';
import { constants } from 'node:os';
import { setTimeout } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { socketPair, socketSend } from '../../native/index.ts';

const { EAGAIN, EBADF, ENOTSOCK, EPIPE } = constants.errno;
const PIECE_BYTES = 100_000;
/** More than any socket buffer of a usual system holds. */
const PIECES_MAX = 1000;

/** Both ends, closed with the test unless it closes them itself. */
function pair(t: Test): { near: number; far: number; close(fd: number): void } {
  const [near, far] = socketPair();
  const open = new Set([near, far]);
  const close = (fd: number) => {
    if (open.delete(fd)) closeSync(fd);
  };
  t.teardown(() => [...open].forEach(close));
  return { near, far, close };
}

/** Sends random pieces until none fits; returns the bytes that the kernel took, and how many pieces it took in part. */
function fill(t: Test, fd: number): { sent: Buffer; partial: number } {
  const taken: Buffer[] = [];
  let partial = 0;
  for (let n = 0; n < PIECES_MAX; n++) {
    const piece = randomBytes(PIECE_BYTES);
    const count = socketSend(fd, piece, PIECE_BYTES);
    if (count < 0) {
      t.equal(count, -EAGAIN, 'a full socket takes nothing, and the call does not wait');
      return { sent: Buffer.concat(taken), partial };
    }
    if (count === 0 || count > PIECE_BYTES) throw new Error(`${count} bytes taken`);
    if (count < PIECE_BYTES) partial++;
    taken.push(piece.subarray(0, count));
  }
  throw new Error('the socket never filled up');
}

function readExactly(fd: number, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  for (let at = 0; at < lengthBytes; ) at += readSync(fd, bytes, at, lengthBytes - at, null);
  return bytes;
}

t.test('a Unix socket takes what fits, and takes more after a read', async (t) => {
  const { near, far } = pair(t);
  const first = fill(t, near);
  t.ok(first.partial > 0, 'the last piece fitted partly');
  t.ok(readExactly(far, first.sent.length).equals(first.sent), 'what was taken arrives');
  const second = fill(t, near);
  t.ok(readExactly(far, second.sent.length).equals(second.sent), 'and so does what followed');
});

t.test('a TCP socket of net.Socket takes what fits', async (t) => {
  const server = net.createServer().listen(0, '127.0.0.1');
  t.teardown(() => server.close());
  await once(server, 'listening');
  const client = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1').pause();
  t.teardown(() => client.destroy());
  const [socket] = (await once(server, 'connection')) as [net.Socket];
  t.teardown(() => socket.destroy());
  const { fd } = (socket as unknown as { _handle: { fd: number } })._handle;
  const { sent } = fill(t, fd);
  socket.end('the end');
  const got: Buffer[] = [];
  for await (const bytes of client) got.push(bytes as Buffer);
  t.ok(Buffer.concat(got).equals(Buffer.concat([sent, Buffer.from('the end')])), 'all in order');
});

t.test('only the first `lengthBytes` are sent, and a length of zero sends none', async (t) => {
  const { near, far } = pair(t);
  const bytes = Buffer.from('..0123456789..').subarray(2, 12);
  t.equal(socketSend(near, bytes, 0), 0);
  t.equal(socketSend(near, bytes, 4), 4);
  t.equal(socketSend(near, bytes, bytes.length), 10);
  t.equal(readExactly(far, 14).toString(), '01230123456789');
});

t.test('a closed peer is an error, without a signal', async (t) => {
  const { near, far, close } = pair(t);
  close(far);
  let signals = 0;
  const count = () => signals++;
  process.on('SIGPIPE', count);
  t.teardown(() => process.off('SIGPIPE', count));
  t.equal(socketSend(near, Buffer.from('x'), 1), -EPIPE);
  // A plain write does raise the signal, which shows that one from socketSend would have been noticed.
  t.throws(() => writeSync(near, 'x'), { code: 'EPIPE' });
  while (signals === 0) await setTimeout(5);
  t.equal(signals, 1);
});

t.test('a descriptor that is not an open socket returns an errno', async (t) => {
  const { near, close } = pair(t);
  close(near);
  t.equal(socketSend(-1, Buffer.from('x'), 1), -EBADF);
  const file = openSync('/dev/null', 'w');
  t.teardown(() => closeSync(file));
  t.equal(socketSend(file, Buffer.from('x'), 1), -ENOTSOCK);
});

t.test('invalid arguments throw, and nothing is sent', async (t) => {
  const { near, far } = pair(t);
  const send = socketSend as (...values: unknown[]) => number;
  const bytes = Buffer.from('abc');
  const bad: unknown[][] = [
    [],
    [near],
    [near, bytes],
    [near, bytes, 1, 2],
    [`${near}`, bytes, 1],
    [undefined, bytes, 1],
    [near, 'abc', 1],
    [near, null, 1],
    [near, [1, 2, 3], 1],
    [near, new ArrayBuffer(3), 1],
    [near, bytes, '1'],
    [near, bytes, 4],
    [near, bytes, -1],
    [near, bytes, 2 ** 31],
    [near, Buffer.alloc(0), 1],
  ];
  for (const [n, values] of bad.entries()) t.throws(() => send(...values), TypeError, `case ${n}`);
  t.equal(socketSend(near, bytes, 3), 3);
  t.equal(readExactly(far, 3).toString(), 'abc', 'the first bytes that arrive are those of the valid call');
});
