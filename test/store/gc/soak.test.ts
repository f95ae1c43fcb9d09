/**
 * Garbage collection on a real RGW, with processes that build, tag, read, rotate, sweep and purge concurrently and are
 * killed at random: no drive misses a chunk, every name is intact in the end, and everything unnamed is gone.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { hash } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { newKeyFile } from '../../../src/keys/key-file.ts';
import { KeyRing } from '../../../src/keys/key-ring.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { openStore } from '../../../src/store/open.ts';
import { openManifest } from '../../../src/store/open-manifest.ts';
import { meaningOf } from '../../../src/store/roots/layout.ts';
import { writeMarker } from '../../../src/store/roots/marker.ts';
import { RGW_TOOLS, Rgw } from '../../support/rgw.ts';
import { skipWithout } from '../../support/tools.ts';

const CHILD = new URL('./soak-child.ts', import.meta.url).pathname;
/** The minimum; it goes on until each role has completed once, but for at most five times as long. */
const SOAK_MS = Number(process.env.LAZYDISK_SOAK_SECONDS ?? 40) * 1000;
const ROLES = ['build', 'build', 'retag', 'drive', 'drive', 'rotate', 'sweep', 'purge'];

/** As short as RGW's times, which are whole seconds, permit. */
const POLICY = { viewMs: 1_000, settleMs: 1_500, buildMs: 5_000, graceMs: 12_000, retentionMs: 12_000 };

t.test('collectors, builders and drives on one bucket, killed at random', async (t) => {
  if (skipWithout(t, ...RGW_TOOLS)) return;
  const dir = t.testdir();
  const rgw = await Rgw.start();
  t.teardown(() => rgw.close());
  rgw.useInThisProcess();
  await rgw.createBucket('soak');
  const url = `s3://soak/store?endpoint=${rgw.endpoint}`;
  const key = await newKeyFile(join(dir, 'key'));
  const store = await openStore(url, { create: true });
  await writeMarker(store.parts.objects, POLICY);
  await store.close();

  const said = new Map<string, number>();
  const faults: string[] = [];
  const children = new Set<ChildProcess>();
  let killed = 0;
  const startMs = Date.now();
  const isOver = () => {
    const soakedMs = Date.now() - startMs;
    return soakedMs > SOAK_MS && (soakedMs > 5 * SOAK_MS || ROLES.every((role) => said.has(`done ${role}`)));
  };
  const machine = async (role: string) => {
    while (!isOver()) {
      const child = spawn(process.execPath, [CHILD, role, url, join(dir, 'key')], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      children.add(child);
      createInterface({ input: child.stdout }).on('line', (line) => {
        if (line.startsWith('FAULT')) faults.push(line);
        const what = line.split(':')[0]!;
        said.set(what, (said.get(what) ?? 0) + 1);
      });
      // Long enough to complete now and then.
      const endMs = Date.now() + 5_000 + Math.random() * 20_000;
      while (child.exitCode === null && Date.now() < endMs && !isOver()) await sleep(200);
      child.kill('SIGKILL');
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
      killed++;
      children.delete(child);
    }
  };
  t.teardown(() => {
    for (const child of children) child.kill('SIGKILL');
  });
  await Promise.all(ROLES.map(machine));
  t.comment(`${killed} killed; ${JSON.stringify(Object.fromEntries(said))}`);
  t.same(faults, []);
  for (const role of new Set(ROLES)) t.ok(said.get(`done ${role}`)! > 0, `${role} came through`);

  // With nobody else active: the first rotation finishes one that was killed, the second leaves all garbage behind.
  const { parts } = await openStore(url);
  t.teardown(() => parts.objects.close());
  for (let turn = 0; turn < 2; turn++) await rotate(parts);
  await sleep(POLICY.retentionMs + 2 * POLICY.settleMs);
  t.same((await purge(parts)).held, []);
  const quiet = await openStore(url);
  t.teardown(() => quiet.close());
  const live = new Set<string>();
  for (const { name, digest } of await quiet.listReferences()) {
    const manifest = await openManifest(quiet, name, digest, KeyRing.of(key));
    for (let entry = 0; entry < manifest.storedChunks; entry++) {
      const { id } = manifest.ref(entry);
      live.add(id);
      const bytes = await quiet.getChunk(id);
      if (!bytes || hash('sha256', bytes) !== id) t.fail(`chunk ${id} of ${name} is not whole`);
    }
  }
  const stored: string[] = [];
  for await (const page of parts.objects.list('roots/'))
    for (const { key: at } of page) {
      const meaning = meaningOf(at);
      if (meaning?.kind === 'chunk') stored.push(meaning.id);
    }
  t.same(stored.sort(), [...live].sort(), 'what is left is what is named, once');
});
