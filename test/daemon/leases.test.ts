/**
 * What a daemon has attached outlives its name, on a real RGW with exactly the permissions that systemd/README.md asks
 * for: reads, and writes below `hosts/`.
 */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import type { DaemonStatus, DriveInfo, DriveStat } from '../../src/daemon/api.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { loadKeyFile } from '../../src/keys/key-file.ts';
import { openStore } from '../../src/store/open.ts';
import { leasesPrefix } from '../../src/store/roots/layout.ts';
import type { RootStore } from '../../src/store/roots/root-store.ts';
import { lazydisk, lazydiskJson, TestDaemon, workplace } from '../support/daemon.ts';
import { RGW_TOOLS, Rgw } from '../support/rgw.ts';
import { putDisk } from '../support/stored-disk.ts';
import { skipWithout } from '../support/tools.ts';

const run = promisify(execFile);

const CHUNKS = 12;
/** A lease expires after the retention, so a loaded machine must not stall the daemon for that long. */
const POLICY = [
  '--view',
  '500ms',
  '--settle',
  '500ms',
  '--build',
  '8s',
  '--grace',
  '11s',
  '--retention',
  '12s',
];
/** The pause between checks, because each one costs a process. */
const PAUSE_MS = 1_000;

/** A bucket with the images `app:1` and `other:1`, and a daemon's credentials. */
async function newBucket(t: Test) {
  const rgw = await Rgw.start();
  t.teardown(() => rgw.close());
  rgw.useInThisProcess();
  await rgw.createBucket('images');
  const place = await workplace(t);
  const url = `s3://images/prod?endpoint=${rgw.endpoint}`;
  const key = await loadKeyFile(place.key);
  const store = await openStore(url, { create: true });
  t.teardown(() => store.close());
  const disk = randomBytes(CHUNKS * CHUNK_BYTES);
  const app = await putDisk(store, key, 'app:1', disk);
  const other = await putDisk(store, key, 'other:1', randomBytes(CHUNKS * CHUNK_BYTES));
  const daemonKey = await rgw.addStranger();
  await rgw.allowDaemon('images', 'prod', daemonKey);
  return { rgw, daemonKey, store, disk, app, other, place: { ...place, store: url } };
}

async function keysOf({ parts }: RootStore, prefix = ''): Promise<string[]> {
  const keys: string[] = [];
  for await (const page of parts.objects.list(prefix)) keys.push(...page.map((info) => info.key));
  return keys.sort();
}

/** What the store still has of an image that shares nothing: its manifest and chunks, in any area. */
async function leftOf(store: RootStore, { digest, manifest }: Awaited<ReturnType<typeof putDisk>>) {
  const parts = [digest.slice('sha256:'.length)];
  for (let entry = 0; entry < manifest.storedChunks; entry++) parts.push(manifest.ref(entry).id);
  return (await keysOf(store)).filter(
    (key) => /^(?:roots|trash)\//.test(key) && parts.some((part) => key.includes(part)),
  );
}

async function until(isSo: () => Promise<boolean>): Promise<void> {
  while (!(await isSo())) await sleep(PAUSE_MS);
}

t.test('an attached image outlives its name, and goes when it was detached', async (t) => {
  if (skipWithout(t, 'nbdcopy', ...RGW_TOOLS)) return;
  const { rgw, daemonKey, store, disk, app, other, place } = await newBucket(t);
  const asked = ['--store', place.store];
  await lazydiskJson(['gc', 'policy', ...asked, ...POLICY]);
  const before = await keysOf(store);

  rgw.useInThisProcess(daemonKey);
  const denied = await lazydisk(['rm', 'app:1', ...asked]);
  t.match(denied.stderr, /access denied/, 'a daemon may do nothing else');
  const daemon = await TestDaemon.start(t, place);
  rgw.useInThisProcess();
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  const twin = await daemon.ask<DriveInfo>('attach', app.digest, '--name', 'twin');
  await until(async () => (await daemon.ask<DaemonStatus>('status')).lease.unleased === 0);
  const [lease, ...more] = (await keysOf(store)).filter((key) => !before.includes(key));
  t.same(more, [], 'one object for one image, however often it is attached, and nothing else');
  t.ok(lease?.startsWith(leasesPrefix(app.digest)));

  await lazydiskJson(['rm', 'app:1', ...asked]);
  await lazydiskJson(['rm', 'other:1', ...asked]);
  const whole = await leftOf(store, app);
  t.equal(whole.length, CHUNKS + 1);
  const collectUntilGone = (image: typeof app) =>
    until(async () => {
      await lazydiskJson(['gc', 'run', ...asked]);
      return (await leftOf(store, image)).length === 0;
    });
  await collectUntilGone(other);
  t.same(await leftOf(store, app), whole, 'what nobody has attached is gone, and this is where it was');
  const copy = join(place.dir, 'copy');
  for (const { nbd, name } of [drive, twin]) {
    await run('nbdcopy', [nbd, copy]);
    t.ok(disk.equals(await readFile(copy)), `every byte of ${name}`);
    t.match(await daemon.ask<DriveStat>('stat', name), { errors: 0 });
  }
  t.match(await daemon.ask<DaemonStatus>('status'), {
    lease: { state: 'held', problem: null },
    retiredReads: 0,
  });

  await daemon.ask('detach', twin.name);
  await daemon.ask('detach', drive.name);
  await collectUntilGone(app);
  t.match(await daemon.ask<DaemonStatus>('status'), { lease: { state: 'none', images: 0 } });
  t.match(await daemon.stop(), { code: 0 });
  await until(async () => {
    await lazydiskJson(['gc', 'purge', ...asked]);
    return (await keysOf(store, 'hosts/')).length === 0;
  });
});
