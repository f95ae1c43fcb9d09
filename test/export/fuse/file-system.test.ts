/** The file system over a transport double: it answers every request once, whatever it is and whenever it finishes. */
import assert from 'node:assert/strict';
import { constants as fsConstants } from 'node:fs';
import { constants } from 'node:os';
import fc from 'fast-check';
import t from 'tap';
import { FuseFileSystem } from '../../../src/export/fuse/file-system.ts';
import { Opcode, ROOT_NODE_ID } from '../../../src/export/fuse/protocol.ts';
import { TurnBudget } from '../../../src/export/turn-budget.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { BufferDevice } from '../../support/buffer-device.ts';
import { diskOf, fields, READER_PID, readBody, type WireRequest, writeRequests } from './wire.ts';

const { EINTR, EINVAL, EIO, ENOENT, ENOSYS, ENXIO, EROFS } = constants.errno;
const { O_DIRECT } = fsConstants;

interface Reply {
  readonly unique: number;
  readonly errno: number;
  readonly bytes: Buffer;
}

/** A file system over doubles; `ask` sends one request and returns the replies that it caused at once. */
class Harness {
  readonly replies: Reply[] = [];
  readonly pushed: number[] = [];
  readonly requests = Buffer.from(new ArrayBuffer(64 * 1024));
  readonly fileSystem: FuseFileSystem;
  /** Threads that are being killed. */
  readonly dying = new Set<number>();
  #unique = 0;

  constructor(...drives: BufferDevice[]) {
    this.fileSystem = new FuseFileSystem({
      transport: {
        reply: (unique, errno, parts) => {
          const list = parts instanceof Uint8Array ? [parts] : parts;
          this.replies.push({ unique, errno, bytes: Buffer.concat(list) });
          return 0;
        },
      },
      push: (_nodeId, offset) => this.pushed.push(offset) > 0,
      requests: this.requests,
      uid: 0,
      gid: 0,
      pushChunks: true,
      // Turns whose time is never over: what is answered at once does not depend on how busy the machine is.
      turn: new TurnBudget(() => 0),
      onInit: () => {},
      isDying: (pid) => this.dying.has(pid),
    });
    for (const drive of drives) this.fileSystem.addDrive(drive);
  }

  send(opcode: number, nodeId: number, body: Uint8Array): number {
    this.#unique += 2;
    this.sendRaw([{ opcode, unique: this.#unique, nodeId, body }]);
    return this.#unique;
  }

  sendRaw(requests: readonly WireRequest[]): void {
    const bytes = writeRequests(requests);
    bytes.copy(this.requests);
    this.fileSystem.handle(bytes.length);
  }

  ask(opcode: number, nodeId: number, body: Uint8Array): Reply {
    const before = this.replies.length;
    const unique = this.send(opcode, nodeId, body);
    assert.equal(this.replies.length, before + 1, 'one reply');
    assert.equal(this.replies.at(-1)!.unique, unique);
    return this.replies.at(-1)!;
  }

  lookup(name: string): { errno: number; nodeId: number; links: number } {
    const { errno, bytes } = this.ask(Opcode.LOOKUP, ROOT_NODE_ID, Buffer.from(`${name}\0`));
    if (errno) return { errno, nodeId: 0, links: 0 };
    return { errno, nodeId: Number(bytes.readBigUInt64LE()), links: bytes.readUInt32LE(40 + 64) };
  }

  forget(nodeId: number, count: number): void {
    this.send(Opcode.FORGET, nodeId, fields(['u64', count]));
  }

  list(lengthBytes = 4096): string[] {
    const names: string[] = [];
    for (let cookie = 0; ; ) {
      const body = fields(['u64', 0], ['u64', cookie], ['u32', lengthBytes], ['u32', 0]);
      const { bytes } = this.ask(Opcode.READDIR, ROOT_NODE_ID, body);
      if (bytes.length === 0) return names;
      for (let at = 0; at < bytes.length; ) {
        const nameLength = bytes.readUInt32LE(at + 16);
        cookie = Number(bytes.readBigUInt64LE(at + 8));
        names.push(bytes.toString('latin1', at + 24, at + 24 + nameLength));
        at += (24 + nameLength + 7) & ~7;
      }
    }
  }
}

/** Lets resolved promises run. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

t.test('any request, well-formed or not, is answered once, except kinds without a reply', async (t) => {
  const silent = new Set<number>([Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY]);
  const anyRequest = fc.record({
    opcode: fc.oneof(fc.integer({ min: 0, max: 60 }), fc.nat()),
    nodeId: fc.integer({ min: 0, max: 4 }),
    body: fc.oneof(
      fc.uint8Array({ maxLength: 100 }),
      fc.tuple(fc.nat(3 * CHUNK_BYTES), fc.nat(2 ** 21)).map(([offset, length]) => readBody(offset, length)),
    ),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(anyRequest, { maxLength: 30 }), fc.boolean(), async (requests, cold) => {
      const device = new BufferDevice(diskOf('dzd'), { cold });
      const harness = new Harness(device);
      const numbered = requests.map((request, at) => ({ ...request, unique: (at + 1) * 1000 }));
      harness.sendRaw(numbered);
      await settle();
      const due = numbered.filter(({ opcode }) => !silent.has(opcode)).map(({ unique }) => unique);
      const got = harness.replies
        .map(({ unique }) => unique)
        // A malformed request of a kind without a reply is answered all the same; the kernel reports ENOENT for that.
        .filter((unique) => due.includes(unique));
      assert.deepEqual(
        got.sort((a, b) => a - b),
        due,
      );
      assert.equal(device.pinned, 0, 'nothing stays pinned');
    }),
    { numRuns: 300 },
  );
  t.pass('holds');
});

t.test('reads return the bytes of the disk, cut at its end', async (t) => {
  const disk = diskOf('dzdd');
  await fc.assert(
    fc.asyncProperty(
      fc.nat(disk.length + 5000),
      fc.nat(1024 * 1024),
      fc.boolean(),
      async (offset, length, cold) => {
        const harness = new Harness(new BufferDevice(disk, { cold }));
        const { nodeId } = harness.lookup('test');
        harness.send(Opcode.READ, nodeId, readBody(offset, length));
        await settle();
        const reply = harness.replies.at(-1)!;
        assert.equal(reply.errno, 0);
        assert.ok(reply.bytes.equals(disk.subarray(offset, offset + length)));
      },
    ),
    { numRuns: 60 },
  );
  const harness = new Harness(new BufferDevice(disk));
  const { nodeId } = harness.lookup('test');
  t.equal(harness.ask(Opcode.READ, nodeId, readBody(0, 1024 * 1024 + 1)).errno, EINVAL, 'over max_pages');
  t.equal(harness.ask(Opcode.READ, 99, readBody(0, 1)).errno, ENOENT);
});

t.test('a read pushes its chunk, unless it is direct', async (t) => {
  const harness = new Harness(new BufferDevice(diskOf('d'), { hits: true }));
  const { nodeId } = harness.lookup('test');
  harness.ask(Opcode.READ, nodeId, readBody(0, 4096, O_DIRECT));
  t.equal(harness.pushed.length, 0);
  harness.ask(Opcode.READ, nodeId, readBody(0, 4096));
  t.equal(harness.pushed.length, 1);
});

t.test('drives of one image share an inode; other drives and writable ones do not', async (t) => {
  const image = (name: string, imageDigest: string, readOnly = true) => {
    return new BufferDevice(diskOf('d'), { name, imageDigest, readOnly });
  };
  const [a, b, c] = [image('a', 'sha256:1'), image('b', 'sha256:1'), image('c', 'sha256:2')];
  const harness = new Harness(a, b, c, image('d', 'sha256:1', false), image('e', 'sha256:1', false));
  const found = Object.fromEntries([...'abcde'].map((name) => [name, harness.lookup(name)]));
  t.equal(found.a!.nodeId, found.b!.nodeId);
  t.equal(found.a!.links, 2);
  t.equal(new Set(Object.values(found).map(({ nodeId }) => nodeId)).size, 4);

  harness.fileSystem.removeDrive(a);
  t.equal(harness.lookup('a').errno, ENOENT);
  t.same(harness.lookup('b'), { errno: 0, nodeId: found.a!.nodeId, links: 1 });
  t.equal(harness.ask(Opcode.READ, found.a!.nodeId, readBody(0, 4096)).errno, 0, 'served by b');

  harness.fileSystem.removeDrive(b);
  t.equal(harness.ask(Opcode.READ, found.a!.nodeId, readBody(0, 4096)).errno, EIO, 'open, but detached');
  harness.fileSystem.addDrive(a);
  t.equal(
    harness.lookup('a').nodeId,
    found.a!.nodeId,
    'remembered by the kernel: the same inode, whose pages are valid',
  );
  harness.fileSystem.removeDrive(a);
  harness.forget(found.a!.nodeId, 4);
  harness.fileSystem.addDrive(a);
  t.not(harness.lookup('a').nodeId, found.a!.nodeId, 'forgotten: another inode, never the old number');
});

t.test('modes, and whether a file may be opened for writing, follow the drive', async (t) => {
  const fixed = new BufferDevice(diskOf('d'), { name: 'fixed' });
  const writable = new BufferDevice(diskOf('d'), { name: 'writable', readOnly: false });
  const harness = new Harness(fixed, writable);
  for (const [device, mode, errno] of [
    [fixed, 0o100440, EROFS],
    [writable, 0o100640, 0],
  ] as const) {
    const { nodeId } = harness.lookup(device.name);
    const attributes = () => harness.ask(Opcode.GETATTR, nodeId, Buffer.alloc(16)).bytes;
    t.equal(attributes().readUInt32LE(16 + 60), mode, device.name);
    t.equal(harness.ask(Opcode.OPEN, nodeId, fields(['u32', 2], ['u32', 0])).errno, errno, 'O_RDWR');
    harness.fileSystem.removeDrive(device);
    t.equal(attributes().readUInt32LE(16 + 60), mode, 'even after it was detached');
  }
});

t.test('detaching a drive that reads for others does not fail their reads', async (t) => {
  const stop = Promise.withResolvers<void>();
  const a = new BufferDevice(diskOf('d'), {
    name: 'a',
    imageDigest: 'sha256:1',
    cold: true,
    beforeRead: () => stop.promise,
  });
  const b = new BufferDevice(diskOf('d'), { name: 'b', imageDigest: 'sha256:1', cold: true });
  const harness = new Harness(b, a);
  const { nodeId } = harness.lookup('a');
  harness.send(Opcode.READ, nodeId, readBody(0, 4096));
  harness.fileSystem.removeDrive(a);
  stop.reject(new Error('detached'));
  await settle();
  t.equal(harness.replies.at(-1)!.errno, 0);
  t.ok(harness.replies.at(-1)!.bytes.equals(Buffer.alloc(4096, 1)));
});

t.test('a read that fails is EIO, is counted, and affects no other', async (t) => {
  const device = new BufferDevice(diskOf('dd'), {
    cold: true,
    beforeRead: (offset) => {
      if (offset === 0) throw new Error('origin lies');
    },
  });
  const harness = new Harness(device);
  const { nodeId } = harness.lookup('test');
  const bad = harness.send(Opcode.READ, nodeId, readBody(0, 4096));
  const good = harness.send(Opcode.READ, nodeId, readBody(CHUNK_BYTES, 4096));
  t.equal(harness.fileSystem.stats().inFlight, 2);
  await settle();
  const errnos = Object.fromEntries(harness.replies.map(({ unique, errno }) => [unique, errno]));
  t.same([errnos[bad], errnos[good]], [EIO, 0]);
  const stats = harness.fileSystem.stats();
  t.same([stats.inFlight, stats.readErrors, stats.ops.read, stats.readBytes], [0, 1, 2, 4096]);
});

t.test('a signal that does not kill the reader does not affect its read', async (t) => {
  const stop = Promise.withResolvers<void>();
  const device = new BufferDevice(diskOf('d'), { cold: true, beforeRead: () => stop.promise });
  const harness = new Harness(device);
  const { nodeId } = harness.lookup('test');
  const unique = harness.send(Opcode.READ, nodeId, readBody(0, 4096));
  const before = harness.replies.length;
  harness.send(Opcode.INTERRUPT, 0, fields(['u64', unique]));
  t.equal(harness.replies.length, before, 'no answer yet');
  stop.resolve();
  await settle();
  t.match(harness.replies.at(-1), { unique, errno: 0 });
  harness.send(Opcode.INTERRUPT, 0, fields(['u64', unique]));
  t.equal(harness.replies.length, before + 1, 'a late interrupt is ignored');
});

t.test('a killed reader is answered at once, and its fetch goes on for the next reader', async (t) => {
  const stop = Promise.withResolvers<void>();
  const device = new BufferDevice(diskOf('d'), { cold: true, beforeRead: () => stop.promise });
  const signals: (AbortSignal | undefined)[] = [];
  const read = device.read.bind(device);
  device.read = (offset: number, lengthBytes: number, signal?: AbortSignal) => {
    signals.push(signal);
    return read(offset, lengthBytes);
  };
  const harness = new Harness(device);
  const { nodeId } = harness.lookup('test');
  const unique = harness.send(Opcode.READ, nodeId, readBody(0, 4096));
  harness.dying.add(READER_PID);
  harness.send(Opcode.INTERRUPT, 0, fields(['u64', unique]));
  t.match(harness.replies.at(-1), { unique, errno: EINTR });
  const before = harness.replies.length;
  t.equal(harness.fileSystem.stats().inFlight, 0);
  t.same(
    signals.map((signal) => signal?.aborted),
    [false],
  );
  stop.resolve();
  await settle();
  t.equal(harness.replies.length, before, 'no second reply');
  t.equal(device.pinned, 0);
  t.equal(harness.ask(Opcode.READ, nodeId, readBody(0, 4096)).errno, 0, 'its bytes are in memory');
});

t.test('a reader that is killed after a harmless signal is answered', async (t) => {
  const device = new BufferDevice(diskOf('d'), { cold: true, beforeRead: () => new Promise(() => {}) });
  const harness = new Harness(device);
  const { nodeId } = harness.lookup('test');
  const unique = harness.send(Opcode.READ, nodeId, readBody(0, 4096));
  harness.send(Opcode.INTERRUPT, 0, fields(['u64', unique]));
  const before = harness.replies.length;
  harness.dying.add(READER_PID);
  while (harness.replies.length === before) await new Promise((resolve) => setTimeout(resolve, 10));
  t.match(harness.replies.at(-1), { unique, errno: EINTR });
});

t.test('each drive has its own bound on waiting reads, and hits wait behind none of them', async (t) => {
  const stop = Promise.withResolvers<void>();
  let running = 0;
  const deep = new BufferDevice(diskOf('d'.repeat(8)), {
    name: 'deep',
    cold: true,
    beforeRead: (offset) => {
      if (offset < CHUNK_BYTES) return undefined;
      running++;
      return stop.promise;
    },
  });
  const other = new BufferDevice(diskOf('dd'), { name: 'other', cold: true });
  const harness = new Harness(deep, other);
  const { nodeId } = harness.lookup('deep');
  const { nodeId: otherId } = harness.lookup('other');
  harness.send(Opcode.READ, nodeId, readBody(0, 4096));
  await settle();
  const count = 1000;
  for (let n = 0; n < count; n++) harness.send(Opcode.READ, nodeId, readBody(CHUNK_BYTES + n * 512, 512));
  t.equal(running, 256);
  t.equal(harness.fileSystem.stats().inFlight, count);
  t.equal(harness.ask(Opcode.READ, nodeId, readBody(8192, 4096)).errno, 0, 'a hit of the same drive');
  harness.send(Opcode.READ, otherId, readBody(0, 4096));
  await settle();
  t.equal(
    harness.ask(Opcode.READ, otherId, readBody(8192, 4096)).errno,
    0,
    'a miss and a hit of another drive',
  );
  stop.resolve();
  while (harness.fileSystem.stats().inFlight > 0) await settle();
  t.equal(harness.replies.filter(({ errno }) => errno !== 0).length, 0);
  t.equal(deep.pinned, 0);
});

t.test('answers that are ready together are sent in several turns of the event loop', async (t) => {
  const stop = Promise.withResolvers<void>();
  const device = new BufferDevice(diskOf('dd'), { cold: true, beforeRead: () => stop.promise });
  const harness = new Harness(device);
  const { nodeId } = harness.lookup('test');
  for (let n = 0; n < 64; n++) harness.send(Opcode.READ, nodeId, readBody(0, 1024 * 1024));
  stop.resolve();
  const perTurn: number[] = [];
  for (let before = harness.fileSystem.stats().readBytes; before < 64 * 1024 * 1024; ) {
    await settle();
    const { readBytes } = harness.fileSystem.stats();
    perTurn.push(readBytes - before);
    before = readBytes;
  }
  t.ok(Math.max(...perTurn) <= 4 * 1024 * 1024, `at most ${Math.max(...perTurn)} bytes in a turn`);
});

t.test('draining waits for reads, refuses new ones, and gives up after its timeout', async (t) => {
  const slow = Promise.withResolvers<void>();
  const device = new BufferDevice(diskOf('dd'), {
    cold: true,
    beforeRead: (offset) => (offset === 0 ? slow.promise : new Promise(() => {})),
  });
  const harness = new Harness(device);
  const { nodeId } = harness.lookup('test');
  const ends = harness.send(Opcode.READ, nodeId, readBody(0, 4096));
  const hangs = harness.send(Opcode.READ, nodeId, readBody(CHUNK_BYTES, 4096));
  const drained = harness.fileSystem.reads.drain(50);
  t.equal(harness.ask(Opcode.READ, nodeId, readBody(0, 4096)).errno, EIO);
  slow.resolve();
  await drained;
  const errnos = Object.fromEntries(harness.replies.map(({ unique, errno }) => [unique, errno]));
  t.same([errnos[ends], errnos[hangs]], [0, EIO]);
});

t.test('the directory lists each drive once, whatever the size of the replies', async (t) => {
  const drives = Array.from(
    { length: 50 },
    (_, at) => new BufferDevice(diskOf('d'), { name: `drive-${at}` }),
  );
  const harness = new Harness(...drives);
  const names = ['.', '..', ...drives.map(({ name }) => name)];
  for (const lengthBytes of [40, 64, 1000, 65536]) t.same(harness.list(lengthBytes), names);
  for (const drive of drives.slice(1)) harness.fileSystem.removeDrive(drive);
  t.same(harness.list(), ['.', '..', 'drive-0']);
});

t.test('SEEK_DATA and SEEK_HOLE find the data and holes of the disk', async (t) => {
  const SEEK_DATA = 3;
  const SEEK_HOLE = 4;
  await fc.assert(
    fc.asyncProperty(
      fc.string({ unit: fc.constantFrom('d', 'z'), minLength: 1, maxLength: 6 }),
      fc.nat(7 * CHUNK_BYTES),
      fc.constantFrom(SEEK_DATA, SEEK_HOLE),
      async (pattern, offset, whence) => {
        const harness = new Harness(new BufferDevice(diskOf(pattern)));
        const { nodeId } = harness.lookup('test');
        const body = fields(['u64', 0], ['u64', offset], ['u32', whence], ['u32', 0]);
        const { errno, bytes } = harness.ask(Opcode.LSEEK, nodeId, body);
        const kinds = `${pattern}z`;
        const size = pattern.length * CHUNK_BYTES;
        let at = offset;
        const wanted = whence === SEEK_DATA ? 'd' : 'z';
        while (at < size && kinds[Math.floor(at / CHUNK_BYTES)] !== wanted) {
          at = (Math.floor(at / CHUNK_BYTES) + 1) * CHUNK_BYTES;
        }
        if (offset >= size || (whence === SEEK_DATA && at >= size)) assert.equal(errno, ENXIO);
        else assert.equal(Number(bytes.readBigUInt64LE()), at);
      },
    ),
    { numRuns: 40 },
  );
  t.pass('holds');
});

t.test('requests that write are EROFS, unknown ones ENOSYS, and an old kernel is refused', async (t) => {
  const harness = new Harness(new BufferDevice(diskOf('d')));
  const { nodeId } = harness.lookup('test');
  t.equal(harness.ask(Opcode.WRITE, nodeId, Buffer.alloc(80)).errno, EROFS);
  t.equal(harness.ask(Opcode.UNLINK, ROOT_NODE_ID, Buffer.from('test\0')).errno, EROFS);
  t.equal(harness.ask(Opcode.OPEN, nodeId, fields(['u32', 2], ['u32', 0])).errno, EROFS, 'O_RDWR');
  t.equal(harness.ask(Opcode.OPEN, nodeId, fields(['u32', 0], ['u32', 0])).errno, 0);
  t.equal(harness.ask(22, nodeId, Buffer.alloc(16)).errno, ENOSYS, 'GETXATTR');
  t.equal(harness.ask(4000, nodeId, Buffer.alloc(0)).errno, ENOSYS);
  const init = harness.ask(Opcode.INIT, 0, fields(['u32', 7], ['u32', 30], ['u32', 0], ['u32', 0]));
  t.equal(init.errno, constants.errno.EPROTO);
});
