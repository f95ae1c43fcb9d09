/** The disk cache's file system hangs before the daemon starts: the daemon serves without it, and stops. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { fuseMount, fuseUnmount } from '../../native/index.ts';
import { ControlClient } from '../../src/daemon/client.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { diskWorkplace, TestDaemon } from '../support/daemon.ts';
import { NbdClient } from '../support/nbd-client.ts';
import { skipWithoutFuse, skipWithoutRoot } from '../support/tools.ts';

/**
 * Mounts a file system at `dir` whose server never answers. The function returned makes every call to the file system
 * fail.
 */
function mountHung(t: Test, dir: string): () => Promise<void> {
  mkdirSync(dir);
  const fd = fuseMount('hung', dir, 'fuse.hung', 'rootmode=40000,user_id=0,group_id=0');
  if (fd < 0) throw new Error(`fuseMount: ${fd}`);
  let aborted: Promise<void> | undefined;
  const abort = () => {
    aborted ??= new Promise((resolve) => fuseUnmount(dir, true, () => resolve()));
    return aborted;
  };
  t.teardown(abort);
  return abort;
}

t.test('a cache whose disk hangs keeps no daemon from starting, serving and stopping', async (t) => {
  if (skipWithoutRoot(t, 'mount without fusermount3') || skipWithoutFuse(t)) return;
  const place = await diskWorkplace(t, 8);
  const disk = join(place.dir, 'disk');
  mountHung(t, disk);
  const daemon = await TestDaemon.start(t, place, ['--cache', join(disk, 'cache')]);
  const control = new ControlClient(place.runDir);
  await control.attach({ image: 'app:1', name: 'web' });
  const client = await NbdClient.open({ path: join(place.runDir, 'nbd.sock') }, 'web');
  for (let chunk = 0; chunk < 8; chunk++) {
    const offset = chunk * CHUNK_BYTES;
    const { error, data } = await client.request({ type: 0, offset, lengthBytes: 4096 });
    t.equal(error, 0);
    t.ok(data.equals(place.disk.subarray(offset, offset + 4096)));
  }
  t.equal((await control.status()).cacheState, 'not open');
  const figures = await control.metrics();
  t.match(figures, /lazydisk_cache_up\{for="reads"\} 0\n/);
  t.match(figures, /lazydisk_cache_up\{for="writes"\} 0\n/);
  t.ok(daemon.log.some(({ level, msg }) => level === 'error' && /disk of the cache hangs/.test(msg!)));

  client.close();
  t.same(await daemon.stop(), { code: 0, signal: null });
});

t.test('a cache whose disk fails at last stays out, and the daemon says so', async (t) => {
  if (skipWithoutRoot(t, 'mount without fusermount3') || skipWithoutFuse(t)) return;
  const place = await diskWorkplace(t, 2);
  const disk = join(place.dir, 'disk');
  const abort = mountHung(t, disk);
  const daemon = await TestDaemon.start(t, place, ['--cache', join(disk, 'cache')]);
  await abort();
  await daemon.logged(({ msg }) => /could not be opened/.test(msg ?? ''));
  t.equal((await new ControlClient(place.runDir).status()).cacheState, 'not open');
});
