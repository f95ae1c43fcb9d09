/** The daemon end to end, as a process, through the command line: what a user does, and what goes wrong. */
import { execFile } from 'node:child_process';
import { existsSync, lstatSync, readdirSync } from 'node:fs';
import { open, readFile, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';
import type { DaemonStatus, DriveInfo, DriveStat } from '../../src/daemon/api.ts';
import { ControlClient } from '../../src/daemon/client.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import type { ImageInfo } from '../../src/store/image-info.ts';
import { buildWorkplace, diskWorkplace, lazydisk, lazydiskJson, TestDaemon } from '../support/daemon.ts';
import { skipWithout, skipWithoutFuse, skipWithoutRoot } from '../support/tools.ts';
import { serveStore } from '../support/web-store.ts';

const run = promisify(execFile);

t.test('build, serve, attach, read over FUSE and NBD, stat, detach', async (t) => {
  const place = await buildWorkplace(t, 6);
  const daemon = await TestDaemon.start(t, place);
  const exported = join(place.dir, 'exported');
  await lazydiskJson(['export', 'app:1', exported, '--store', place.store, '--key', place.key]);

  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  t.match(drive, { name: 'app-1', image: 'app:1', sizeBytes: 256 * 1024 ** 2 });
  t.same(await daemon.ask<DriveInfo[]>('drives'), [drive]);
  t.match(await daemon.ask<ImageInfo[]>('images'), [{ name: 'app:1', digest: drive.digest }]);
  t.match(await daemon.ask('inspect', 'app:1'), { content: { config: { env: ['TOKEN=hunter2'] } } });

  const fresh = await daemon.ask<DriveStat>('stat', 'app-1');
  t.match(fresh, { readBytes: 0, fetchedBytes: 0, touchedChunks: 0, errors: 0, lastError: null });
  const hasFuse = !skipWithoutFuse(t);
  if (hasFuse) await run('cmp', [exported, drive.fuse!]);
  if (!skipWithout(t, 'nbdcopy')) {
    const copy = join(place.dir, 'copy');
    await run('nbdcopy', [drive.nbd, copy]);
    await run('cmp', [exported, copy]);
  }
  const stat = await daemon.ask<DriveStat>('stat', 'app-1');
  t.equal(stat.touchedChunks, stat.storedChunks);
  t.equal(stat.touchedShare, 1);
  t.ok(stat.fetchedBytes > 6 * 700_000);
  t.ok(stat.readBytes >= stat.storedChunks * CHUNK_BYTES);
  t.match(
    stat.tiers.find(({ tier }) => tier === 'origin'),
    { chunks: stat.storedChunks },
  );
  t.match((await lazydisk(['stat', 'app-1', '--run-dir', place.runDir])).stdout, /^origin +\d+ /m);

  t.match(await daemon.ask('detach', 'app-1'), { name: 'app-1' });
  t.same(await daemon.ask('drives'), []);
  if (hasFuse) t.notOk(existsSync(drive.fuse!));
  t.same(await daemon.stop(), { code: 0, signal: null });
});

t.test('names: given, taken, unknown, wrong', async (t) => {
  const place = await diskWorkplace(t, 4);
  const daemon = await TestDaemon.start(t, place);
  const words = (...words: string[]) => lazydisk([...words, '--run-dir', place.runDir]);
  t.match(await daemon.ask('attach', 'app:1', '--name', 'root'), { name: 'root' });
  t.match(await words('attach', 'app:1', '--name', 'root'), {
    code: 4,
    stderr: 'lazydisk: drive root is attached already\n',
  });
  t.match(await words('attach', 'app:2'), { code: 3 });
  t.match(await words('attach', 'app:1', '--name', '../x'), { code: 2 });
  t.match(await words('detach', 'nothing'), { code: 3 });
  t.match(await words('stat', 'nothing'), { code: 3 });
  t.match(await words('drives'), { code: 0, stdout: /^DRIVE +IMAGE +SIZE +FILE\nroot +app:1 / });
  const digest = place.image.digest;
  t.match(await daemon.ask('attach', digest), { name: digest.slice(7, 19), digest });
});

t.test('of many who attach one name at once, one wins', async (t) => {
  const place = await diskWorkplace(t, 4);
  const daemon = await TestDaemon.start(t, place);
  const attach = () =>
    new Promise<number>((resolve, reject) => {
      const call = request({
        socketPath: join(place.runDir, 'control.sock'),
        method: 'POST',
        path: '/v1/drives',
      });
      call.on('response', (response) => resolve(response.resume().statusCode!)).on('error', reject);
      call.end('{"image":"app:1","name":"one"}');
    });
  const statuses = await Promise.all(Array.from({ length: 20 }, attach));
  t.equal(statuses.filter((status) => status === 201).length, 1);
  t.equal(statuses.filter((status) => status === 409).length, 19);
  t.equal((await daemon.ask<DriveInfo[]>('drives')).length, 1);
});

t.test('a second daemon on the run directory is refused, and the first goes on', async (t) => {
  const place = await diskWorkplace(t, 4);
  const daemon = await TestDaemon.start(t, place);
  const serve = ['serve', '--store', place.store, '--key', place.key, '--run-dir', place.runDir];
  const second = await lazydisk([...serve, '--cache', join(place.dir, 'cache2'), '--cache-size', '64M']);
  t.equal(second.code, 12);
  t.match(second.stderr, new RegExp(`lazydisk: a daemon \\(pid ${daemon.child.pid}\\) serves`));
  t.same(await daemon.ask('drives'), []);

  const third = await lazydisk([...serve, '--run-dir', join(place.dir, 'run2'), '--cache', place.cache]);
  t.equal(third.code, 12, 'nor is a cache shared');
  t.notOk(existsSync(join(place.dir, 'run2', 'control.sock')), 'and what had been opened is closed again');
});

t.test('wrong settings do not start a daemon', async (t) => {
  const place = await diskWorkplace(t, 4);
  const base = ['serve', '--store', place.store, '--run-dir', place.runDir, '--cache', place.cache];
  const config = join(place.dir, 'lazydisk.toml');
  await writeFile(config, 'origin_timeout = "10s"\n');
  for (const [flags, code, text] of [
    [['--key', place.key, '--read-timeout', '5s'], 2, /must be under the read timeout of 5000 ms/],
    [['--key', place.key, '--config', config], 2, /must be under the read timeout/],
    [['--key', place.key, '--memory', '1M'], 2, /memory/],
    [['--key', place.key, '--cache-size', '1K'], 2, /cache size/],
    [['--key', place.key, '--metrics', 'x'], 2, /HOST:PORT/],
    [[], 2, /key/],
    [['--key', join(place.dir, 'none')], 5, /key file/],
    [['--key', place.key, '--store', join(place.dir, 'none')], 3, /store/],
    [['--key', place.key, '--config', join(place.dir, 'none')], 3, /none/],
    [['--key', place.key, '--metrics', '192.0.2.1:1'], 10, /192\.0\.2\.1:1/],
  ] as const) {
    const { code: found, stderr } = await lazydisk([...base, '--log-level', 'silent', ...flags]);
    t.equal(found, code, `${flags.join(' ')}: ${stderr}`);
    t.match(stderr, text);
    t.match(stderr, /^lazydisk: [^\n]+\n$/);
  }
  t.notOk(existsSync(join(place.runDir, 'control.sock')));
});

t.test('a start that fails late keeps the index of the cache', async (t) => {
  const place = await diskWorkplace(t, 4);
  const daemon = await TestDaemon.start(t, place);
  await daemon.stop();
  const index = join(place.cache, 'index');
  t.ok(existsSync(index));
  const login = join(place.dir, 'login');
  await writeFile(login, 'user:password\n', { mode: 0o644 });
  const fleet = ['--fleet', 'memcached://127.0.0.1:1', '--fleet-login', login];
  await t.rejects(TestDaemon.start(t, place, fleet), /others can read it/);
  t.ok(existsSync(index));
});

t.test('a configuration file serves, and its status tells all', async (t) => {
  const place = await diskWorkplace(t, 4);
  const config = join(place.dir, 'lazydisk.toml');
  await writeFile(config, 'nbd_tcp = "127.0.0.1:0"\nmetrics = "127.0.0.1:0"\nmemory = "999M"\n');
  const daemon = await TestDaemon.start(t, place, ['--config', config]);
  const socketPath = join(place.runDir, 'control.sock');
  const status = await new Promise<DaemonStatus>((resolve, reject) => {
    const call = request({ socketPath, path: '/v1/status' }, async (response) => {
      resolve(JSON.parse(Buffer.concat(await response.toArray()).toString()));
    });
    call.on('error', reject).end();
  });
  t.match(status, {
    state: 'serving',
    pid: daemon.child.pid,
    memoryBytes: 16 * 1024 ** 2,
    cacheBytes: 64 * 1024 ** 2,
  });
  t.match(status.nbdTcp, /^nbd:\/\/127\.0\.0\.1:[1-9]\d*\/$/);
  const scrape = await fetch(status.metrics!);
  t.match(await scrape.text(), /^lazydisk_drives_attached 0$/m);
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  if (!skipWithout(t, 'nbdcopy')) {
    await run('nbdcopy', [drive.nbdTcp!, join(place.dir, 'copy')]);
    t.ok(place.disk.equals(await readFile(join(place.dir, 'copy'))));
  }
});

t.test('the run directory is private, and empty after a stop', async (t) => {
  const place = await diskWorkplace(t, 4);
  const daemon = await TestDaemon.start(t, place);
  t.equal(lstatSync(place.runDir).mode & 0o777, 0o700);
  await daemon.ask('attach', 'app:1');
  t.same(await daemon.stop('SIGINT'), { code: 0, signal: null });
  t.same(readdirSync(place.runDir, { recursive: true }), ['drives']);
  t.ok(daemon.log.some(({ msg }) => msg === 'stopped'));
});

t.test('a stop lets reads in flight end, and a warm cache serves after it', async (t) => {
  // Few enough that the cache takes them all, however slow its disk is: it may drop writes beyond 16 MiB.
  const place = await diskWorkplace(t, 24);
  const daemon = await TestDaemon.start(t, place);
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  if (skipWithout(t, 'nbdcopy')) return;
  const copy = join(place.dir, 'copy');
  await run('nbdcopy', [drive.nbd, copy]);
  t.same(await daemon.stop(), { code: 0, signal: null });

  const again = await TestDaemon.start(t, place);
  const warm = await again.ask<DriveInfo>('attach', 'app:1');
  await run('nbdcopy', [warm.nbd, copy]);
  t.ok(place.disk.equals(await readFile(copy)));
  const stat = await again.ask<DriveStat>('stat', warm.name);
  t.equal(
    stat.tiers.find(({ tier }) => tier === 'origin'),
    undefined,
    'all came out of the saved cache',
  );
  t.ok(stat.tiers.find(({ tier }) => tier === 'disk')!.chunks >= 18);
});

t.test('a read in flight when a stop comes gets its bytes', async (t) => {
  if (skipWithoutFuse(t)) return;
  const place = await diskWorkplace(t, 8);
  const { id } = place.image.manifest.ref(1);
  const web = await serveStore(t, place.storeDir);
  const daemon = await TestDaemon.start(t, { ...place, store: web.url });
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');

  web.hang(new RegExp(id));
  const offset = place.image.manifest.indexOf(1) * CHUNK_BYTES;
  const handle = await open(drive.fuse!);
  const reading = handle.read(Buffer.alloc(4096), 0, 4096, offset);
  // Not through the command line, which takes its time to start: the read has a deadline.
  const client = new ControlClient(place.runDir);
  while ((await client.stat(drive.name)).inFlight === 0);
  daemon.child.kill('SIGTERM');
  await daemon.logged(({ msg }) => msg === 'stopping');
  await t.rejects(client.attach({ image: 'app:1', name: 'late' }), { code: 'UNAVAILABLE' });
  web.mend();
  t.ok((await reading).buffer.equals(place.disk.subarray(offset, offset + 4096)));
  // The file system is gone, so close may fail.
  await handle.close().catch(() => undefined);
  t.same(await daemon.exited, { code: 0, signal: null });
});

t.test('a second signal kills a stop that waits for a store that hangs', async (t) => {
  if (skipWithoutFuse(t, 'dd')) return;
  const place = await diskWorkplace(t, 4);
  const web = await serveStore(t, place.storeDir);
  const daemon = await TestDaemon.start(t, { ...place, store: web.url });
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  web.hang(/\/chunks\//);
  const reading = run('dd', [`if=${drive.fuse}`, 'of=/dev/null', 'bs=4096', 'count=1']);
  const failed = t.rejects(reading, 'and its reader is not left hanging');
  while ((await daemon.ask<DriveStat>('stat', drive.name)).inFlight === 0);
  daemon.child.kill('SIGTERM');
  await daemon.logged(({ msg }) => msg === 'stopping');
  daemon.child.kill('SIGTERM');
  t.same(await daemon.exited, { code: null, signal: 'SIGTERM' });
  await failed;
});

t.test('a mount that somebody takes away costs FUSE, and NBD goes on', async (t) => {
  if (skipWithoutRoot(t, 'unmount') || skipWithoutFuse(t, 'umount', 'nbdcopy')) return;
  const place = await diskWorkplace(t, 4);
  const daemon = await TestDaemon.start(t, place);
  const before = await daemon.ask<DriveInfo>('attach', 'app:1');
  t.ok(before.fuse);
  await run('umount', [join(place.runDir, 'drives')]);
  await daemon.logged(({ msg }) => /mount is gone/.test(msg ?? ''));
  const [drive] = await daemon.ask<DriveInfo[]>('drives');
  t.equal(drive!.fuse, null);
  await run('nbdcopy', [drive!.nbd, join(place.dir, 'copy')]);
  t.ok(place.disk.equals(await readFile(join(place.dir, 'copy'))));
  t.same(await daemon.stop(), { code: 0, signal: null });
});

t.test('where FUSE cannot be, NBD is served and that is said', async (t) => {
  if (skipWithoutRoot(t, 'hide /dev/fuse') || skipWithoutFuse(t, 'unshare')) return;
  const place = await diskWorkplace(t, 4);
  const hide = 'mount --bind /dev/null /dev/fuse && exec "$0" "$@"';
  const daemon = await TestDaemon.start(t, place, [], ['unshare', '--mount', 'sh', '-c', hide]);
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  t.equal(drive.fuse, null);
  t.ok(daemon.log.some(({ level, msg }) => level === 'warn' && /no FUSE/.test(msg ?? '')));
  if (skipWithout(t, 'nbdcopy')) return;
  await run('nbdcopy', [drive.nbd, join(place.dir, 'copy')]);
  t.ok(place.disk.equals(await readFile(join(place.dir, 'copy'))));
});

t.test('a thousand drives of one image share it', async (t) => {
  const place = await diskWorkplace(t, 8);
  const daemon = await TestDaemon.start(t, place);
  const socketPath = join(place.runDir, 'control.sock');
  const attach = (name: string) =>
    new Promise<number>((resolve, reject) => {
      const call = request({ socketPath, method: 'POST', path: '/v1/drives' });
      call.on('response', (response) => resolve(response.resume().statusCode!)).on('error', reject);
      call.end(JSON.stringify({ image: 'app:1', name }));
    });
  for (let first = 0; first < 1000; first += 100) {
    const names = Array.from({ length: 100 }, (_, n) => `vm${first + n}`);
    const statuses = await Promise.all(names.map(attach));
    t.ok(
      statuses.every((status) => status === 201),
      `drives ${first} and on`,
    );
  }
  t.equal((await daemon.ask<DriveInfo[]>('drives')).length, 1000);
  const stat = await daemon.ask<DriveStat>('stat', 'vm999');
  if (!skipWithoutFuse(t)) {
    const file = await open(stat.fuse!);
    const { buffer } = await file.read(Buffer.alloc(4096), 0, 4096, 0);
    await file.close();
    t.ok(buffer.equals(place.disk.subarray(0, 4096)));
  }
});
