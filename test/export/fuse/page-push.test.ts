/** When a chunk is pushed into the page cache, and when it is not. */
import t from 'tap';
import type { HitMap } from '../../../src/chunk/hit-map.ts';
import { InodeTable } from '../../../src/export/fuse/inodes.ts';
import { PagePush, type Push } from '../../../src/export/fuse/page-push.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { BufferDevice } from '../../support/buffer-device.ts';
import { diskOf } from './wire.ts';

function setUp(room = true) {
  const device = new BufferDevice(diskOf('ddzd'), { hits: true });
  const inodes = new InodeTable();
  inodes.add(device);
  const inode = inodes.byName(device.name)!;
  const pushed: { nodeId: number; offset: number; lengthBytes: number; hits: HitMap | undefined }[] = [];
  const clock = { now: 10_000 };
  const enqueue: Push = (nodeId, offset, lengthBytes, hits) => {
    if (room) pushed.push({ nodeId, offset, lengthBytes, hits });
    return room;
  };
  const push = new PagePush(enqueue, () => clock.now);
  return {
    push,
    device,
    clock,
    pushed,
    touch: (at: number, length: number) => push.touched(inode, device, at, length),
  };
}

t.test('the whole chunk around a small read is pushed, at its offset', async (t) => {
  const { touch, pushed, device } = setUp();
  touch(CHUNK_BYTES + 8192, 4096);
  t.equal(pushed.length, 1);
  const { nodeId, offset, lengthBytes, hits } = pushed[0]!;
  t.same([nodeId, offset, lengthBytes], [2, CHUNK_BYTES, CHUNK_BYTES]);
  t.equal(hits, device.hitMap!());
  t.equal(device.pinned, 0);
});

t.test('zeroes, which are in no slot, are pushed as zeroes', async (t) => {
  const { touch, pushed } = setUp();
  touch(2 * CHUNK_BYTES, 4096);
  t.same(pushed, [{ nodeId: 2, offset: 2 * CHUNK_BYTES, lengthBytes: CHUNK_BYTES, hits: undefined }]);
});

t.test('a chunk that is in no slot for threads is not pushed', async (t) => {
  const device = new BufferDevice(diskOf('d'));
  const inodes = new InodeTable();
  inodes.add(device);
  const push = new PagePush(() => t.fail('pushed'));
  push.touched(inodes.byName(device.name)!, device, 0, 4096);
  t.equal(push.queued, 0);
});

t.test('a chunk that was read whole is not pushed; those at the ends of the read are', async (t) => {
  const { touch, pushed } = setUp();
  touch(0, 2 * CHUNK_BYTES);
  t.equal(pushed.length, 0);
  touch(CHUNK_BYTES - 4096, 2 * CHUNK_BYTES);
  t.same(
    pushed.map(({ offset }) => offset / CHUNK_BYTES),
    [0, 2],
  );
});

t.test('many simultaneous reads cause one push; a later read causes another', async (t) => {
  const { touch, pushed, clock } = setUp();
  for (let at = 0; at < 100; at++) {
    touch(at * 4096, 4096);
    clock.now += 9;
  }
  t.equal(pushed.length, 1, 'within a second');
  clock.now += 2000;
  touch(0, 4096);
  t.equal(pushed.length, 2, 'the kernel asks again much later, so it has dropped the pages');
});

t.test('a chunk is never pushed twice within the quiet time, whenever reads come', async (t) => {
  const { touch, pushed, clock } = setUp();
  const times: number[] = [];
  for (let step = 0; step < 2000; step++) {
    const before = pushed.length;
    touch(0, 4096);
    if (pushed.length > before) times.push(clock.now);
    clock.now += (step * 7919) % 97;
  }
  t.ok(times.length > 10, `${times.length} pushes`);
  t.ok(times.every((time, at) => at === 0 || time - times[at - 1]! >= 1000));
});

t.test('a push that finds the queue full is dropped, counted, and tried again later', async (t) => {
  const { touch, push, device } = setUp(false);
  touch(0, 4096);
  touch(4096, 4096);
  t.same([push.queued, push.dropped, device.pinned], [0, 2, 0]);
});

t.test('a chunk that is no longer in memory is not pushed', async (t) => {
  const cold = new BufferDevice(diskOf('d'), { cold: true, hits: true });
  const inodes = new InodeTable();
  inodes.add(cold);
  const push = new PagePush(() => t.fail('pushed'));
  push.touched(inodes.byName(cold.name)!, cold, 0, 4096);
  t.equal(push.queued, 0);
});
