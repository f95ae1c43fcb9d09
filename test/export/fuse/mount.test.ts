/** Real mounts, read by other programs: byte for byte, from many drives, and in every way of reading. */
import { createHash, randomFillSync } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import t from 'tap';
import { cleanStaleMount, FuseMount } from '../../../src/export/fuse/mount.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { BufferDevice } from '../../support/buffer-device.ts';
import { skipWithoutFuse, skipWithoutRoot } from '../../support/tools.ts';
import { mountDrives, sh, skipWithoutPushes } from './mounted.ts';
import { diskOf } from './wire.ts';

const MIB = 1024 * 1024;

function randomDisk(chunks: number): Buffer {
  const disk = randomFillSync(Buffer.alloc(chunks * CHUNK_BYTES));
  disk.fill(0, CHUNK_BYTES, 2 * CHUNK_BYTES);
  return disk;
}

for (const cold of [false, true]) {
  for (const pushChunks of [true, false]) {
    const name = `${cold ? 'fetched' : 'in memory'}, ${pushChunks ? 'pushed' : 'not pushed'}`;
    t.test(`every byte of a drive is right: ${name}`, async (t) => {
      if (skipWithoutFuse(t, 'git', 'dd', 'cmp')) return;
      const disk = randomDisk(11);
      const device = new BufferDevice(disk, { hits: true, cold });
      const { mount } = await mountDrives(t, [device], { pushChunks });
      const file = mount.pathOf('test');
      const plain = join(t.testdir(), 'plain');
      await writeFile(plain, disk);

      const stat = await sh('stat -c "%s %a %h %F" "$1"', file);
      t.equal(stat.stdout.toString(), `${disk.length} 440 1 regular file\n`);
      t.equal(
        (await sh('dd if="$1" iflag=direct bs=1M status=none | cmp - "$2"', file, plain)).code,
        0,
        'direct',
      );
      t.equal(mount.stats().pushesQueued, 0, 'direct reads push nothing');
      t.equal(
        (await sh('dd if="$1" iflag=direct bs=4k status=none | cmp - "$2"', file, plain)).code,
        0,
        'direct, 4k',
      );
      t.equal(
        (await sh('dd if="$1" bs=12345 status=none | cmp - "$2"', file, plain)).code,
        0,
        'buffered, odd sizes',
      );
      t.equal((await sh('cmp "$1" "$2"', file, plain)).code, 0, 'buffered, again');
      const hash = createHash('sha1').update(`blob ${disk.length}\0`).update(disk).digest('hex');
      const mapped = await sh('git hash-object --no-filters "$1"', file);
      t.equal(mapped.stdout.toString().trim(), hash, 'mapped');

      const beyond = await sh('dd if="$1" iflag=direct bs=1M skip=5 status=none | wc -c', file);
      t.equal(Number(beyond.stdout), CHUNK_BYTES, 'a read past the end is cut');
      const past = await sh(
        'dd if="$1" iflag=skip_bytes skip=$2 bs=4k status=none | wc -c',
        file,
        `${disk.length}`,
      );
      t.equal(Number(past.stdout), 0, 'a read beyond the end returns nothing');
      t.equal(mount.stats().readErrors, 0);
      t.equal(device.pinned, 0);
    });
  }
}

t.test('random mapped and direct reads at depth return the right bytes', async (t) => {
  if (skipWithoutFuse(t, 'fio')) return;
  const file = join(t.testdir(), 'pattern');
  // fio writes a file that it can verify by itself; then those bytes become the drive.
  const common =
    '--bs=4k --size=16m --verify=crc32c --verify_fatal=1 --verify_state_save=0 --minimal --name=job';
  t.equal((await sh(`fio ${common} --rw=write --filename="$1" --do_verify=0`, file)).code, 0);
  const { mount } = await mountDrives(t, [
    new BufferDevice(await readFile(file), { hits: true, cold: true }),
  ]);
  const read = `fio ${common} --rw=randread --norandommap=0 --readonly --filename="$1"`;
  const drive = mount.pathOf('test');
  for (const engine of ['--ioengine=libaio --direct=1 --iodepth=32', '--ioengine=mmap', '--ioengine=psync']) {
    const { code, stderr } = await sh(`cd "$2" && ${read} --invalidate=0 ${engine}`, drive, dirname(file));
    t.equal(code, 0, `${engine} ${stderr}`);
  }
});

t.test('a push fills the page cache: the rest of the chunk is read without the daemon', async (t) => {
  if (await skipWithoutPushes(t)) return;
  const { mount } = await mountDrives(t, [new BufferDevice(diskOf('dddd'), { hits: true })]);
  const file = mount.pathOf('test');
  await sh('dd if="$1" bs=4k count=1 status=none of=/dev/null', file);
  while (mount.stats().pushesSent < mount.stats().pushesQueued)
    await new Promise((done) => setTimeout(done, 5));
  t.ok(mount.stats().pushesSent >= 1);
  t.equal(mount.stats().pushesFailed, 0);
  const before = mount.stats().ops.read;
  const { stdout } = await sh('dd if="$1" bs=4k skip=100 count=20 status=none', file);
  t.ok(stdout.equals(Buffer.alloc(20 * 4096, 1)));
  t.equal(mount.stats().ops.read, before, 'no read reached the daemon');
});

t.test('two hundred drives are added and removed, and each file has its own bytes', async (t) => {
  if (skipWithoutFuse(t)) return;
  const drives = Array.from({ length: 200 }, (_, at) => {
    return new BufferDevice(Buffer.alloc(CHUNK_BYTES, at + 1), {
      hits: true,
      name: `drive-${String(at).padStart(3, '0')}`,
    });
  });
  const { mount, registry } = await mountDrives(t, drives.slice(0, 100));
  for (const drive of drives.slice(100)) registry.add(drive);
  const names = drives.map(({ name }) => name).join('\n');
  t.equal((await sh('ls "$1"', mount.dir)).stdout.toString(), `${names}\n`);
  const script = 'for file in "$1"/*; do dd if="$file" bs=512k status=none | od -An -tu1 -N1; done';
  const firsts = (await sh(script, mount.dir)).stdout.toString().trim().split(/\s+/).map(Number);
  t.same(
    firsts,
    drives.map((_, at) => (at + 1) % 256),
  );
  for (const { name } of drives.slice(1)) registry.remove(name);
  t.equal((await sh('ls "$1"', mount.dir)).stdout.toString(), 'drive-000\n');
  t.not((await sh('cat "$1"', mount.pathOf('drive-001'))).code, 0, 'a removed drive is gone at once');
  t.not((await sh('cat "$1"/no-such', mount.dir)).code, 0);
});

t.test('drives of one image share their inode and its pages', async (t) => {
  if (skipWithoutFuse(t)) return;
  const image = (name: string) =>
    new BufferDevice(diskOf('dd'), { hits: true, name, imageDigest: 'sha256:1' });
  const { mount, registry } = await mountDrives(t, [image('a'), image('b')]);
  const stat = async (name: string) =>
    (await sh('stat -c "%i %h" "$1"', mount.pathOf(name))).stdout.toString();
  t.equal(await stat('a'), await stat('b'));
  t.match(await stat('a'), / 2\n$/);
  await sh('cat "$1" > /dev/null', mount.pathOf('a'));
  const before = mount.stats().ops.read;
  const { stdout } = await sh('cat "$1"', mount.pathOf('b'));
  t.ok(stdout.equals(diskOf('dd')));
  t.equal(mount.stats().ops.read, before, 'read from the pages that the other drive brought in');

  registry.remove('a');
  registry.add(image('a'));
  t.ok((await sh('cat "$1"', mount.pathOf('a'))).stdout.equals(diskOf('dd')), 'detached and attached again');
});

t.test('a name that is attached again with another image shows the new bytes', async (t) => {
  if (skipWithoutFuse(t)) return;
  const { mount, registry } = await mountDrives(t, [
    new BufferDevice(diskOf('d'), { hits: true, imageDigest: 'sha256:1' }),
  ]);
  const read = async () => (await sh('cat "$1"', mount.pathOf('test'))).stdout;
  t.ok((await read()).equals(diskOf('d')));
  registry.remove('test');
  registry.add(new BufferDevice(diskOf('zd'), { hits: true, imageDigest: 'sha256:2' }));
  t.ok((await read()).equals(diskOf('zd')));
});

t.test('a read that fails is EIO for its reader, and the next try can succeed', async (t) => {
  if (skipWithoutFuse(t)) return;
  let broken = true;
  const device = new BufferDevice(diskOf('dd'), {
    hits: true,
    cold: true,
    beforeRead: () => {
      if (broken) throw new Error('origin is down');
    },
  });
  const { mount } = await mountDrives(t, [device]);
  const failed = await sh('LC_ALL=C cat "$1" > /dev/null', mount.pathOf('test'));
  t.match(failed, { code: 1, stderr: /Input\/output error/ });
  const direct = await sh('LC_ALL=C dd if="$1" iflag=direct bs=4k count=1 status=none', mount.pathOf('test'));
  t.match(direct.stderr, /Input\/output error/);
  broken = false;
  t.ok((await sh('cat "$1"', mount.pathOf('test'))).stdout.equals(diskOf('dd')));
  t.ok(mount.stats().readErrors >= 2);
});

t.test('a slow read delays no other, of its own drive or another', async (t) => {
  if (skipWithoutFuse(t)) return;
  const release = Promise.withResolvers<void>();
  const slow = new BufferDevice(diskOf('dddd'), {
    hits: true,
    name: 'slow',
    cold: true,
    beforeRead: (offset) => (offset < CHUNK_BYTES ? release.promise : undefined),
  });
  const { mount } = await mountDrives(t, [
    slow,
    new BufferDevice(diskOf('d'), { hits: true, name: 'quick' }),
  ]);
  let ended = false;
  const waiting = sh('dd if="$1" bs=4k count=1 iflag=direct status=none', mount.pathOf('slow')).finally(
    () => {
      ended = true;
    },
  );
  while (mount.stats().inFlight === 0) await new Promise((done) => setTimeout(done, 5));
  t.ok((await sh('cat "$1"', mount.pathOf('quick'))).stdout.equals(diskOf('d')));
  const elsewhere = await sh(
    'dd if="$1" bs=512k skip=3 count=1 iflag=direct status=none',
    mount.pathOf('slow'),
  );
  t.ok(elsewhere.stdout.equals(Buffer.alloc(CHUNK_BYTES, 4)));
  t.notOk(ended, 'the slow one still waits');
  t.ok(mount.stats().oldestInFlightMs > 0);
  release.resolve();
  t.ok((await waiting).stdout.equals(Buffer.alloc(4096, 1)));
});

t.test('a killed reader exits at once, although its bytes have not arrived', async (t) => {
  if (skipWithoutFuse(t)) return;
  const release = Promise.withResolvers<void>();
  const device = new BufferDevice(diskOf('d'), { hits: true, cold: true, beforeRead: () => release.promise });
  const { mount } = await mountDrives(t, [device]);
  const script = 'timeout -s KILL 0.3 dd if="$1" bs=4k count=1 status=none; echo killed';
  t.equal((await sh(script, mount.pathOf('test'))).stdout.toString().trim(), 'killed');
  t.ok(mount.stats().inFlight > 0, 'the read still waits, but its reader does not');
  release.resolve();
});

/** A page fault on the file in argument 1, with a signal handler and a timer of the seconds in argument 2, if given. */
const FAULT = `
import mmap, os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
pages = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)
pages.madvise(mmap.MADV_RANDOM)
if len(sys.argv) > 2: signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]), float(sys.argv[2]))
print(pages[5000])`;

t.test('a reader that is killed in a page fault exits at once, whatever signal came before', async (t) => {
  if (skipWithoutFuse(t, 'python3')) return;
  const release = Promise.withResolvers<void>();
  const device = new BufferDevice(diskOf('d'), { hits: true, cold: true, beforeRead: () => release.promise });
  const { mount } = await mountDrives(t, [device]);
  const script = 'python3 -c "$2" "$1" & pid=$!; echo $pid > "$3"; wait $pid; echo $?';
  const pidFile = join(t.testdir({}), 'pid');
  const reader = sh(script, mount.pathOf('test'), FAULT, pidFile);
  while (mount.stats().inFlight === 0) await new Promise((done) => setTimeout(done, 5));
  const pid = Number(await readFile(pidFile, 'utf8'));
  process.kill(pid, 'SIGALRM');
  while ((mount.stats().ops.interrupt ?? 0) === 0) await new Promise((done) => setTimeout(done, 5));
  t.equal(mount.stats().inFlight, 1, 'the first signal does not kill it');
  process.kill(pid, 'SIGTERM');
  t.equal((await reader).stdout.toString().trim(), '143');
  release.resolve();
});

t.test('a page fault under a timer finishes, and is fetched once', async (t) => {
  if (skipWithoutFuse(t, 'python3')) return;
  const release = Promise.withResolvers<void>();
  let fetches = 0;
  const beforeRead = () => {
    fetches++;
    return release.promise;
  };
  const { mount } = await mountDrives(t, [
    new BufferDevice(diskOf('d'), { hits: true, cold: true, beforeRead }),
  ]);
  const reader = sh('exec python3 -c "$2" "$1" 0.01', mount.pathOf('test'), FAULT);
  while ((mount.stats().ops.interrupt ?? 0) === 0) await new Promise((done) => setTimeout(done, 5));
  // Many more signals, none of which may end the read.
  await new Promise((done) => setTimeout(done, 300));
  t.equal(fetches, 1);
  release.resolve();
  t.match((await reader).stdout.toString(), /^1\n/);
  t.equal(fetches, 1);
});

t.test('a drive whose reads wait at any depth delays no other drive', async (t) => {
  if (skipWithoutFuse(t, 'fio')) return;
  const release = Promise.withResolvers<void>();
  const deep = new BufferDevice(diskOf('dddd'), {
    hits: true,
    name: 'deep',
    cold: true,
    beforeRead: () => release.promise,
  });
  const { mount } = await mountDrives(t, [deep, new BufferDevice(diskOf('d'), { hits: true, name: 'warm' })]);
  const load = '--name=job --readonly --rw=randread --bs=512 --size=1m --direct=1 --ioengine=libaio';
  const waiting = sh(`fio ${load} --iodepth=1000 --filename="$1"`, mount.pathOf('deep'));
  while (mount.stats().inFlight < 600) await new Promise((done) => setTimeout(done, 5));
  for (const flags of ['', 'iflag=direct']) {
    const { stdout } = await sh(`dd if="$1" bs=4k count=1 ${flags} status=none`, mount.pathOf('warm'));
    t.ok(stdout.equals(Buffer.alloc(4096, 1)), flags || 'buffered');
  }
  release.resolve();
  t.equal((await waiting).code, 0);
});

t.test('the bytes copied in one turn of the event loop are bounded', async (t) => {
  if (skipWithoutFuse(t, 'fio')) return;
  const device = new BufferDevice(diskOf('dddd'), { hits: true });
  let turnBytes = 0;
  let most = 0;
  const tryRead = device.tryRead.bind(device);
  device.tryRead = (offset: number, lengthBytes: number) => {
    if (turnBytes === 0) setImmediate(() => (turnBytes = 0));
    turnBytes += lengthBytes;
    most = Math.max(most, turnBytes);
    return tryRead(offset, lengthBytes);
  };
  const { mount } = await mountDrives(t, [device], { pushChunks: false });
  const load =
    '--name=job --readonly --rw=randread --bs=1m --size=2m --direct=1 --ioengine=libaio --loops=200';
  t.equal((await sh(`fio ${load} --iodepth=128 --filename="$1"`, mount.pathOf('test'))).code, 0);
  t.ok(most > 0 && most < 4 * 1024 * 1024, `${most} bytes`);
});

t.test('unmounting with an open file fails its reads, and the directory is free again', async (t) => {
  if (skipWithoutFuse(t)) return;
  const release = Promise.withResolvers<void>();
  const device = new BufferDevice(diskOf('dddd'), {
    hits: true,
    cold: true,
    beforeRead: () => release.promise,
  });
  const { mount, registry } = await mountDrives(t, [device]);
  const script = `exec 3< "$1"; dd bs=4k count=1 iflag=direct status=none <&3 | wc -c
    dd bs=4k count=1 iflag=direct status=none <&3 || echo failed`;
  const reader = sh(script, mount.pathOf('test'));
  while (mount.stats().inFlight === 0) await new Promise((done) => setTimeout(done, 5));
  const unmounted = mount.unmount();
  // It is detached first; then the read in flight may finish.
  while ((await sh('grep -F " $1 " /proc/self/mountinfo', mount.dir)).code === 0);
  release.resolve();
  await unmounted;
  t.match((await reader).stdout.toString(), /^4096\nfailed/);
  t.equal(await mount.unmount(), undefined, 'a second unmount does nothing');
  t.equal(registry.listenerCount('added') + registry.listenerCount('removed'), 0);
  const { mount: second } = await mountDrives(t, [new BufferDevice(diskOf('d'), { hits: true })]);
  t.ok((await sh('cat "$1"', second.pathOf('test'))).stdout.equals(diskOf('d')));
});

t.test('an unmount from outside is reported, and the mount can be made again', async (t) => {
  if (skipWithoutFuse(t, 'umount')) return;
  const lost = Promise.withResolvers<Error>();
  const { mount } = await mountDrives(t, [new BufferDevice(diskOf('d'), { hits: true })], {
    onLost: lost.resolve,
  });
  t.equal((await sh('umount "$1" || fusermount3 -u "$1"', mount.dir)).code, 0);
  t.match(await lost.promise, { code: 'UNAVAILABLE' });
  await mount.unmount();
});

t.test('an aborted connection is reported, and its dead mount is removed', async (t) => {
  if (skipWithoutRoot(t, 'abort a connection') || skipWithoutFuse(t)) return;
  const lost = Promise.withResolvers<Error>();
  const { mount } = await mountDrives(t, [new BufferDevice(diskOf('d'), { hits: true })], {
    onLost: lost.resolve,
  });
  // Without -l, a forced unmount of a busy mount only ends the connection.
  const script = 'cd "$1" && { umount -f "$1" || true; }';
  t.equal((await sh(script, mount.dir)).code, 0);
  t.match(await lost.promise, { code: 'UNAVAILABLE' });
  t.equal((await sh('grep -F " $1 " /proc/self/mountinfo', mount.dir)).code, 0, 'still there, dead');
  await mount.unmount();
  t.not((await sh('grep -F " $1 " /proc/self/mountinfo', mount.dir)).code, 0, 'gone');
});

t.test('mounting over a mount, or over something that is not a directory, is refused', async (t) => {
  if (skipWithoutFuse(t)) return;
  const { mount, registry } = await mountDrives(t, []);
  await t.rejects(FuseMount.mount({ dir: mount.dir, registry }), { code: 'BUSY' });
  const dir = t.testdir({ file: 'x' });
  await t.rejects(FuseMount.mount({ dir: join(dir, 'file'), registry }));
  await t.rejects(FuseMount.mount({ dir: join(dir, 'no', 'parent'), registry }));
});

t.test('cleaning touches no mount of others, and does nothing where there is none', async (t) => {
  if (skipWithoutFuse(t)) return;
  const dir = t.testdir({ place: {} });
  t.equal(await cleanStaleMount(join(dir, 'place')), false);
  t.equal(await cleanStaleMount(join(dir, 'no', 'such')), false);
  if (skipWithoutRoot(t, 'mount a tmpfs')) return;
  const place = join(dir, 'place');
  t.equal((await sh('mount -t tmpfs none "$1" && touch "$1/keep"', place)).code, 0);
  t.equal(await cleanStaleMount(place), false);
  t.equal((await sh('ls "$1"; umount "$1"', place)).stdout.toString(), 'keep\n');
});

t.test('an ext4 disk is mounted by the kernel through its file', async (t) => {
  if (skipWithoutRoot(t, 'mount a disk') || skipWithoutFuse(t, 'mkfs.ext4', 'losetup', 'mount')) return;
  const dir = t.testdir({
    tree: { 'hello.txt': 'hello\n', sub: { 'big.bin': 'x'.repeat(3 * MIB) } },
    at: {},
  });
  const disk = join(dir, 'disk');
  const made = await sh('truncate -s 16M "$1" && mkfs.ext4 -q -d "$2" "$1"', disk, join(dir, 'tree'));
  t.equal(made.code, 0, made.stderr);
  const { mount } = await mountDrives(t, [
    new BufferDevice(await readFile(disk), { hits: true, cold: true }),
  ]);
  const script = `set -e
    loop=$(losetup --find --show --read-only "$1"); trap 'losetup -d $loop' EXIT
    mount -o ro -t ext4 $loop "$2/at"
    diff -r --exclude=lost+found "$2/at" "$2/tree" && echo equal; umount "$2/at"`;
  const { stdout, stderr } = await sh(script, mount.pathOf('test'), dir);
  t.equal(stdout.toString(), 'equal\n', stderr);
});
