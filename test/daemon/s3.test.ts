/** From a build to a drive over a real RGW, with a rotation meanwhile; the same image read through a web server. */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';
import type { DaemonStatus, DriveInfo, DriveStat } from '../../src/daemon/api.ts';
import { ControlClient } from '../../src/daemon/client.ts';
import type { ImageInfo } from '../../src/store/image-info.ts';
import { openStore } from '../../src/store/open.ts';
import { writeMarker } from '../../src/store/roots/marker.ts';
import { buildWorkplace, lazydisk, lazydiskJson, TestDaemon } from '../support/daemon.ts';
import { Nginx } from '../support/nginx.ts';
import { RGW_TOOLS, Rgw } from '../support/rgw.ts';
import { skipWithout } from '../support/tools.ts';

const run = promisify(execFile);

t.test(
  'an image in a bucket is built, copied, served, rotated under its drives, and refused without a bucket',
  async (t) => {
    if (skipWithout(t, 'nbdcopy', ...RGW_TOOLS)) return;
    const rgw = await Rgw.start();
    t.teardown(() => rgw.close());
    rgw.useInThisProcess();
    await rgw.createBucket('images');
    const place = await buildWorkplace(t, 6);
    const url = `s3://images/prod?endpoint=${rgw.endpoint}`;
    const env = { LAZYDISK_STORE: url, LAZYDISK_KEY: place.key };
    const disk = join(place.dir, 'disk');
    await lazydiskJson(['export', 'app:1', disk, '--store', place.store, '--key', place.key]);

    const built = await lazydiskJson<{ digest: string; newChunks: number }>(
      ['build', `oci:${place.dir}/oci`, '--name', 'app:1', '--size', '256M'],
      env,
    );
    const again = await lazydiskJson<{ digest: string; newChunks: number }>(
      ['build', `oci:${place.dir}/oci`, '--name', 'app:1', '--size', '256M'],
      env,
    );
    t.match(again, { digest: built.digest, newChunks: 0 }, 'uploads skip what is there');
    const copied = ['copy', 'app:1', place.store, url, '--name', 'copied'];
    const keyless = await lazydisk(copied);
    t.equal(keyless.code, 5, 'each build sealed a manifest of its own');
    t.match(keyless.stderr, /which one is good only --key can tell/);
    t.match(await lazydiskJson([...copied, '--key', place.key]), {
      copiedChunks: 0,
      manifests: 1,
      provenManifests: 1,
      keptManifests: [],
    });
    const images = await lazydiskJson<ImageInfo[]>(['images'], env);
    t.same(
      images.map(({ name }) => name),
      ['app:1', 'copied:latest'],
    );

    const daemon = await TestDaemon.start(t, { ...place, store: url });
    const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
    const store = await openStore(url);
    await writeMarker(store.parts.objects, { ...store.parts.policy, settleMs: 1_000 });
    await store.close();
    t.match(await lazydiskJson(['gc', 'rotate'], env), {
      from: 'roots/1',
      to: 'roots/2',
      names: 2,
      retired: true,
    });
    const copy = join(place.dir, 'copy');
    await run('nbdcopy', [drive.nbd, copy]);
    t.ok((await readFile(disk)).equals(await readFile(copy)), 'a drive that was attached before');
    const late = await daemon.ask<DriveInfo>('attach', 'copied', '--name', 'late');
    await run('nbdcopy', [late.nbd, copy]);
    t.ok((await readFile(disk)).equals(await readFile(copy)));
    t.match(await daemon.ask<DriveStat>('stat', drive.name), { errors: 0 });
    t.match(await daemon.ask<DaemonStatus>('status'), { store: url.split('?')[0], retiredReads: 0 });
    t.match(await new ControlClient(place.runDir).metrics(), /^lazydisk_store_retired_reads_total 0$/m);
    t.match(await lazydiskJson(['fsck', '--all', '--store', url]), {
      names: 2,
      damagedChunks: 0,
      remaining: 0,
    });

    const none = await lazydisk(['images', '--store', `s3://nowhere/x?endpoint=${rgw.endpoint}`]);
    t.equal(none.code, 10);
    t.match(none.stderr, /^lazydisk: .*no such bucket/i);
    t.notOk(none.stderr.includes(rgw.key.secretAccessKey));
  },
);

t.test('a daemon reads a store behind a web server, and says what that cannot do', async (t) => {
  if (skipWithout(t, 'nbdcopy', 'nginx')) return;
  const place = await buildWorkplace(t, 3);
  const nginx = await Nginx.start(place.storeDir, '');
  t.teardown(() => nginx.close());
  const url = `http://127.0.0.1:${nginx.port}`;
  const disk = join(place.dir, 'disk');
  await lazydiskJson(['export', 'app:1', disk, '--store', place.store, '--key', place.key]);
  const daemon = await TestDaemon.start(t, { ...place, store: url });
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  const copy = join(place.dir, 'copy');
  await run('nbdcopy', [drive.nbd, copy]);
  t.ok((await readFile(disk)).equals(await readFile(copy)));
  for (const words of [
    ['images', '--store', url],
    ['tag', 'app:1', 'b', '--store', url],
    ['gc', 'sweep', '--store', url],
  ]) {
    const { code, stderr } = await lazydisk(words);
    t.equal(code, 7, stderr);
    t.match(stderr, /^lazydisk: [^\n]+\n$/);
  }
});
