/** The commands that work on a whole store, end to end: copy, tag, rm, images, gc. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { CopyReport } from '../../src/store/copy.ts';
import type { PurgeReport } from '../../src/store/gc/purge.ts';
import type { GcStatus } from '../../src/store/gc/status.ts';
import type { SweepReport } from '../../src/store/gc/sweep.ts';
import type { ImageInfo } from '../../src/store/image-info.ts';
import type { PastReference } from '../../src/store/store.ts';
import { diskWorkplace, lazydisk, lazydiskJson, TestDaemon } from '../support/daemon.ts';
import { age, chunkFileIn, rootDir } from '../support/dir-store.ts';
import { serveHttp } from '../support/http-server.ts';
import { serveStore } from '../support/web-store.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;
const DAY_MS = 24 * 60 * 60 * 1000;
/** Short periods, so that everything a day old counts as old. */
const POLICY = ['--grace', '1m', '--retention', '1h', '--build', '50s', '--view', '500ms', '--settle', '1s'];

function manifestsIn(storeDir: string, digest: string): string {
  return join(rootDir(storeDir), 'manifests/sha256', digest.slice('sha256:'.length));
}

/** A store with `app:1`, of 18 chunks; functions that run commands on it, and their results as JSON. */
async function withStore(t: Test) {
  const place = await diskWorkplace(t);
  const env = { LAZYDISK_STORE: place.store };
  const run = (...words: string[]) => lazydisk(words, env);
  const json = <T>(...words: string[]) => lazydiskJson<T>(words, env);
  const names = async (store = place.store) =>
    (await lazydiskJson<ImageInfo[]>(['images', '--store', store])).map(({ name }) => name);
  return { place, run, json, names, digest: place.image.digest };
}

t.test('an image is copied, found there already, and opens with its key', async (t) => {
  const { place, run, json, names, digest } = await withStore(t);
  const there = join(place.dir, 'there');
  const planned = await json<CopyReport>('copy', 'app:1', place.store, there, '--dry-run');
  t.match(planned, { copiedChunks: 18, presentChunks: 0 });
  t.notOk(existsSync(there), 'a dry run makes no store');
  const report = await json<CopyReport>('copy', 'app:1', place.store, there);
  t.match(report, { name: 'app:1', digest, chunks: 18, copiedChunks: 18, manifests: 1 });
  t.equal(report.copiedBytes, planned.copiedBytes);
  const again = await run('copy', digest, place.store, there, '--name', 'app:2');
  t.match(again.stdout, /^chunks +18, of which 18 were there$/m);
  t.match(again.stdout, /^copied +0 B in 0 chunks$/m);
  t.same(await names(there), ['app:1', 'app:2']);
  const disk = await lazydisk([
    'export',
    'app:2',
    join(place.dir, 'disk'),
    '--store',
    there,
    '--key',
    place.key,
  ]);
  t.equal(disk.code, 0);

  const [keyId] = readdirSync(manifestsIn(place.storeDir, digest));
  const bent = join(manifestsIn(place.storeDir, digest), keyId!);
  const bytes = readFileSync(bent);
  bytes[bytes.length - 40]! ^= 1;
  writeFileSync(bent, bytes);
  const kept = await run('copy', 'app:1', place.store, there);
  t.match(kept, { code: 5, stderr: new RegExp(`^lazydisk: .*another manifest .* key ${keyId}.*--key`) });
  t.match(
    kept.stdout,
    new RegExp(`^keys +1, of which 0 were proven; the target keeps its own for ${keyId}$`, 'm'),
  );
  t.equal((await run('copy', 'app:1', place.store, there, '--key', place.key)).code, 6);

  rmSync(chunkFileIn(place.storeDir, place.image.manifest.ref(7).id));
  const bad = await run('copy', 'app:1', place.store, join(place.dir, 'elsewhere'));
  t.equal(bad.code, 3);
  t.match(bad.stderr, /^lazydisk: .*chunk 9 \([0-9a-f]{64}\)[^\n]*\n$/);
  t.same(await names(join(place.dir, 'elsewhere')), []);
});

t.test('from a web server an image is copied for the keys that are named', async (t) => {
  const { place, json, names, run } = await withStore(t);
  const { url: from } = await serveStore(t, place.storeDir);
  const there = join(place.dir, 'there');
  const blind = await run('copy', 'app:1', from, there);
  t.equal(blind.code, 7);
  t.match(blind.stderr, /^lazydisk: [^\n]*give --key[^\n]*\n$/);
  t.equal((await run('copy', 'app:1', place.store, from)).code, 7, 'it is only read');
  const report = await json<CopyReport>('copy', 'app:1', from, there, '--key', place.key);
  t.match(report, { copiedChunks: 18, manifests: 1 });
  t.same(await names(there), ['app:1']);
});

t.test('a copy and an export wait for a store that is away, if they are to', async (t) => {
  const { place, run } = await withStore(t);
  const { id } = place.image.manifest.ref(3);
  // Everything is refused until that chunk has been refused more often than is retried without patience.
  let refusals = 0;
  const from = await serveHttp(t, (request, response) => {
    if (request.url!.endsWith(id) && refusals < 8) refusals++;
    const isAway = refusals > 0 && refusals < 8;
    const file = join(place.storeDir, decodeURIComponent(request.url!));
    if (isAway) request.socket.destroy();
    else if (existsSync(file) && statSync(file).isFile()) response.end(readFileSync(file));
    else response.writeHead(404).end();
  });
  const commands = [
    ['copy', 'app:1', from, join(place.dir, 'there'), '--key', place.key],
    ['export', 'app:1', join(place.dir, 'disk'), '--key', place.key, '--store', from],
  ];
  for (const words of commands) {
    refusals = 0;
    const impatient = await run(...words, '--retry-for', '0s');
    t.match(impatient, { code: 10, stderr: /tried 5 times/ }, words[0]!);
    refusals = 0;
    t.match(await run(...words), { code: 0 }, words[0]!);
    t.equal(refusals, 8);
  }
  t.equal((await run(...commands[0]!, '--retry-for', 'long')).code, 2);
});

t.test('a copy that is interrupted says so, and goes on when it is run again', async (t) => {
  const place = await diskWorkplace(t, 200);
  const there = join(place.dir, 'there');
  const words = ['copy', 'app:1', place.store, there];
  const child = spawn(process.execPath, [MAIN, ...words], { stdio: ['ignore', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr.on('data', (text) => (stderr += text));
  const { manifest } = place.image;
  const first = chunkFileIn(there, manifest.ref(0).id);
  const poll = setInterval(() => {
    if (!existsSync(first)) return;
    clearInterval(poll);
    child.kill('SIGINT');
  }, 2);
  const [code] = await once(child, 'close');
  clearInterval(poll);
  t.equal(code, 13);
  t.equal(stderr, 'lazydisk: stopped by SIGINT\n');
  t.same(await lazydiskJson(['images', '--store', there]), []);
  const report = await lazydiskJson<CopyReport>(words);
  t.ok(report.presentChunks > 0);
  t.equal(report.presentChunks + report.copiedChunks, manifest.storedChunks);
});

t.test('names are given and taken away, by name and by digest', async (t) => {
  const { run, json, names, digest } = await withStore(t);
  t.same(await json('tag', 'app:1', 'web'), { name: 'web:latest', digest });
  t.same(await json('tag', digest, 'db:2', '--expected', 'none'), { name: 'db:2', digest });
  t.equal((await run('tag', 'app:1', 'db:2', '--expected', 'none')).code, 12);
  t.equal((await run('tag', 'app:1', 'db:2', '--expected', digest)).code, 0);

  t.match(await json('rm', 'web', 'db:2', '--dry-run'), {
    removed: [{ name: 'web:latest' }, {}],
    unnamed: [],
  });
  const some = await run('rm', 'web', 'none', 'missing', 'db:2');
  t.equal(some.code, 3);
  t.match(some.stderr, /^lazydisk: no image none:latest in [^\n]+\n$/);
  t.match(
    some.stdout,
    /^web:latest is gone; it was sha256:.*\ndb:2 is gone.*\nfailed: no image missing:latest in /,
  );
  t.same(await names(), ['app:1']);
  const last = await run('rm', 'app:1', '--expected', digest);
  t.match(last.stdout, new RegExp(`^no name is left for ${digest}: garbage in 7 d, after 20`, 'm'));
  const again = await run('rm', 'app:1', '--json');
  t.equal(again.code, 3);
  t.match(JSON.parse(again.stdout), { removed: [], failures: [{ name: 'app:1', code: 'NOT_FOUND' }] });
  t.equal((await run('tag', digest, 'back')).code, 0, 'as long as it is not deleted');

  const history = await json<PastReference[]>('images', '--history', 'app:1');
  t.match(history, [
    { name: 'app:1', digest },
    { name: 'app:1', digest: null },
  ]);
  t.equal((await json<PastReference[]>('images', '--history')).length, 8);
  t.match((await run('images', '--history')).stdout, /^SET +NAME +DIGEST\n.* app:1 +sha256:/);
});

t.test('the daemon lists images as the command line does, without asking for another key', async (t) => {
  const { place, json } = await withStore(t);
  await json('tag', 'app:1', 'web');
  const daemon = await TestDaemon.start(t, place);
  const listed = await daemon.ask<ImageInfo[]>('images');
  t.same(listed, await json('images', '--key', place.key));
  t.match(listed[0], { name: 'app:1', storedChunks: 18, keys: [String], problem: null });
  t.equal(listed[0]!.uniqueBytes, listed[0]!.storedBytes);
});

t.test('garbage is put aside, read from there with an alarm, and deleted when nobody reads it', async (t) => {
  const { place, run, json, digest } = await withStore(t);
  t.match(await json('gc', 'policy'), { graceMs: 7 * 86_400_000, settleMs: 60_000 });
  t.match(await json('gc', 'policy', ...POLICY), { graceMs: 60_000, settleMs: 1_000 });
  t.match((await run('gc', 'policy')).stdout, /^grace +60 s$/m);
  t.match(await json('gc', 'run'), { sweep: { sweptChunks: 0, trash: null }, purge: { purged: [] } });
  await json('rm', 'app:1');
  for (const folder of ['roots', 'history']) age(place.storeDir, folder, DAY_MS);
  const planned = await json<SweepReport>('gc', 'sweep', '--dry-run');
  t.match(planned, { chunks: 18, keptChunks: 0, sweptChunks: 18, sweptManifests: 1, trash: null });
  const swept = await json<SweepReport>('gc', 'sweep');
  t.match(swept, { sweptChunks: 18, sweptBytes: planned.sweptBytes, trash: /^trash\/1-/ });

  // A client still reads it.
  t.equal((await run('inspect', digest, '--key', place.key)).code, 0);
  const status = await json<GcStatus>('gc', 'status');
  t.match(status, { alarm: true, policy: { graceMs: 60_000 } });
  t.match(status.areas, [
    { area: 'roots/1', state: 'active' },
    { area: swept.trash, state: 'trash', isRead: true, heldUntil: String },
  ]);
  t.same(
    status.journal.map(({ command, state }) => `${command} ${state}`),
    ['sweep done', 'sweep --dry-run done', 'purge done', 'sweep done', 'policy done'],
  );
  const human = await run('gc', 'status');
  t.match(human.stdout, /^ALARM: trash\/1-\S+ was read by \S+ at 20[^\n]*: an image is in use/);

  for (const folder of ['state/trash', 'hosts']) age(place.storeDir, folder, DAY_MS);
  t.notMatch((await run('gc', 'status')).stdout, /ALARM/);
  const would = await json<PurgeReport>('gc', 'purge', '--dry-run');
  t.match(would, { purged: [swept.trash], held: [], deletedObjects: 19 });
  t.match((await run('gc', 'purge', '--dry-run')).stdout, /^would free +[\d.]+ MiB in 19 objects$/m);
  t.match(await json('gc', 'run'), { purge: would });
  t.equal((await run('tag', digest, 'late')).code, 3);
  t.equal((await json<GcStatus>('gc', 'status')).areas.length, 1);
});

t.test("gc, the daemon's log and its status say that the store's clock and the host's differ", async (t) => {
  const { place, run } = await withStore(t);
  const wrongClock = 'const right = Date.now; Date.now = () => right() + 600_000;';
  const options = `--import=data:text/javascript,${encodeURIComponent(wrongClock)}`;
  const said =
    /the clock of file:\S+ is (?:9 min 59|10 min 0) s behind this host's, more than the settle time of 60 s/;
  t.same((await run('gc', 'run')).stderr, '');
  const warned = await lazydisk(['gc', 'run', '--json'], {
    LAZYDISK_STORE: place.store,
    NODE_OPTIONS: options,
  });
  t.match(warned, { code: 0, stderr: said });
  t.ok(JSON.parse(warned.stdout).purge);
  const daemon = await TestDaemon.start(t, place, [], ['env', `NODE_OPTIONS=${options}`]);
  await daemon.logged((line) => line.level === 'warn' && said.test(line.msg ?? ''));
  const status = await lazydisk(['status', '--run-dir', place.runDir]);
  t.match(status, { code: 0, stdout: said });
});

t.test('a rotation moves what has a name, and the old root goes with the rest', async (t) => {
  const { place, run, json, digest } = await withStore(t);
  await json('gc', 'policy', ...POLICY);
  const planned = await json('gc', 'rotate', '--dry-run');
  t.match(planned, { from: 'roots/1', to: 'roots/2', names: 1, movedChunks: 18, retired: false });
  t.match((await json<GcStatus>('gc', 'status')).areas, [{ area: 'roots/1', state: 'active' }]);
  const human = await run('gc', 'rotate');
  t.match(
    human.stdout,
    /^active +roots\/2\nmoved +1 names and 0 images that are attached, .* in 18 chunks\nretired +roots\/1\n$/,
  );
  t.match(
    (await run('gc', 'status')).stdout,
    /^roots\/1 +retired .* leaves it until .*: kept for its retention$/m,
  );
  age(place.storeDir, 'state/roots/1', DAY_MS);
  t.match(await json('gc', 'run'), { purge: { purged: ['roots/1'] } });
  t.equal((await json<ImageInfo[]>('images', '--key', place.key))[0]!.digest, digest);
  t.equal((await run('export', 'app:1', '/dev/null', '--key', place.key)).code, 0);
});
