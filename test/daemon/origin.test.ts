/** The daemon's access to the origin: the wrappers together, and a daemon whose store fails and recovers. */
import { execFile } from 'node:child_process';
import { readFile, rename, rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import t from 'tap';
import type { ChunkSource } from '../../src/chunk/origin.ts';
import type { DaemonStatus, DriveInfo } from '../../src/daemon/api.ts';
import { ControlClient } from '../../src/daemon/client.ts';
import { Origin } from '../../src/daemon/origin.ts';
import { LazydiskError } from '../../src/errors.ts';
import type { ChunkId } from '../../src/format/chunk-id.ts';
import type { Store } from '../../src/store/store.ts';
import { diskWorkplace, lazydisk, TestDaemon } from '../support/daemon.ts';
import { rootDir } from '../support/dir-store.ts';
import { contextOf, demand } from '../support/tiers.ts';
import { skipWithout } from '../support/tools.ts';

const run = promisify(execFile);

const CONFIG = {
  originTimeoutMs: 5_000,
  originTries: 3,
  originConcurrency: 4,
  originRate: undefined,
  originBandwidth: undefined,
};

const idOf = (n: number) => n.toString(16).padStart(64, '0') as ChunkId;

/** A store that only reads chunks, with `getChunkOnce`. */
function storeOf(getChunkOnce: Store['getChunkOnce']): ChunkSource {
  return { url: 'test://store', getChunkOnce };
}

t.test('a store that fails is asked no more, refuses at once, and is probed back', async (t) => {
  let asked = 0;
  let burns = true;
  const origin = new Origin(
    storeOf(async () => {
      asked++;
      if (burns) throw new LazydiskError('UNAVAILABLE', 'the store burns');
      return Buffer.from('chunk');
    }),
    CONFIG,
  );
  t.teardown(() => origin.tier.close());
  let objects = 0;
  const read = async () => (await origin.tier.get(idOf(++objects), 5, demand()))?.release();
  await t.rejects(read(), { message: /the store burns \(tried 3 times\)/ });
  t.notOk(origin.isStrained);
  while (origin.stats().breaker === 'closed') await t.rejects(read(), { code: 'UNAVAILABLE' });
  t.equal(asked, 22, 'each object counts once, however often it is tried');
  t.ok(origin.isStrained);
  burns = false;
  while (origin.stats().breaker !== 'closed') {
    await read().catch((error) =>
      t.match(error, { message: /^origin: not asked, it has failed since .*burns/ }),
    );
    await sleep(20);
  }
  t.equal(asked, 23, 'one probe');
  t.notOk(origin.isStrained);
});

t.test('a guest that waits is strain, readahead that waits is none', async (t) => {
  const answers: (() => void)[] = [];
  const origin = new Origin(
    storeOf(() => new Promise((resolve) => answers.push(() => resolve(undefined)))),
    CONFIG,
  );
  const reads: Promise<unknown>[] = [];
  const ask = (readClass: 'demand' | 'prefetch') =>
    reads.push(origin.tier.get(idOf(reads.length), 5, contextOf(readClass)));
  for (let n = 0; n < 20; n++) ask('prefetch');
  t.ok(origin.stats().queued > 0);
  t.notOk(origin.isStrained);
  for (let n = 0; n < 4; n++) ask('demand');
  t.ok(origin.isStrained);
  let settled = false;
  const all = Promise.all(reads).then(() => {
    settled = true;
  });
  while (!settled) {
    for (const answer of answers.splice(0)) answer();
    await sleep(0);
  }
  await all;
  t.notOk(origin.isStrained);
  t.match(origin.stats(), { active: 0, queued: 0 });
});

t.test('a read that the rate holds back is strain too', async (t) => {
  const origin = new Origin(
    storeOf(async () => undefined),
    { ...CONFIG, originRate: 0.01 },
  );
  // A burst of one, and one on credit.
  for (let n = 0; n < 2; n++) await origin.tier.get(idOf(n), 5, demand());
  const controller = new AbortController();
  const held = origin.tier.get(idOf(2), 5, demand(20_000, controller.signal));
  await sleep(0);
  t.ok(origin.isStrained);
  t.match(origin.stats(), { rateWaits: 1, queued: 0 });
  controller.abort();
  await t.rejects(held, { code: 'ABORTED' });
  t.notOk(origin.isStrained);
});

t.test('a daemon whose store fails says so, holds starts back, and goes on when it is back', async (t) => {
  if (skipWithout(t, 'nbdcopy')) return;
  const place = await diskWorkplace(t, 24);
  const daemon = await TestDaemon.start(t, place, ['--starts-max', '1', '--origin-timeout', '2s']);
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  const status = () => daemon.ask<DaemonStatus>('status');
  t.match(await status(), { origin: { breaker: 'closed' }, admission: { strained: false } });

  // A link to itself: every lookup below it fails with an error other than "not found".
  const chunks = join(rootDir(place.storeDir), 'chunks');
  await rename(chunks, `${chunks}.away`);
  await symlink('chunks', chunks);
  const copy = join(place.dir, 'copy');
  do await t.rejects(run('nbdcopy', [drive.nbd, copy]));
  while ((await status()).origin.breaker === 'closed');
  const text = await lazydisk(['status', '--run-dir', place.runDir]);
  t.match(text.stdout, /origin +fails: breaker open/);

  const client = new ControlClient(place.runDir);
  const attaches = ['b', 'c', 'd'].map((name) => client.attach({ image: 'app:1', name }));
  await Promise.all(attaches);
  const { admission } = await status();
  t.ok(admission.strained);
  t.ok(admission.waited >= 2, 'one may start at once');
  t.equal(admission.refused, 0);
  const metrics = await client.metrics();
  t.match(metrics, /^lazydisk_origin_breaker_state\{state="open"\} 1$/m);
  t.match(metrics, /^lazydisk_attaches_held_total\{result="waited"\} [2-9]$/m);

  await rm(chunks);
  await rename(`${chunks}.away`, chunks);
  const copies = async () => {
    const gone = await run('nbdcopy', [drive.nbd, copy]).catch((error: unknown) => error);
    return !(gone instanceof Error);
  };
  while (!(await copies())) await sleep(50);
  t.ok(place.disk.equals(await readFile(copy)));
  t.match(await status(), { origin: { breaker: 'closed', breakerOpened: 1 } });
});
