/** `lazydisk fsck` as a process: its output, its exit codes, and the files of an image that a damaged chunk affects. */
import { spawn } from 'node:child_process';
import { createCipheriv, createHash } from 'node:crypto';
import { once } from 'node:events';
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { decodeChunk } from '../../src/format/chunk-codec.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import type { FsckReport } from '../../src/store/fsck/report.ts';
import { loadImage } from '../../src/store/image.ts';
import { openStore } from '../../src/store/open.ts';
import { buildWorkplace, lazydisk, lazydiskJson, type Workplace, workplace } from '../support/daemon.ts';
import { chunkFileIn } from '../support/dir-store.ts';
import { makeOciLayout } from '../support/oci.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;

/** Runs fsck and returns its report, whatever the exit code. */
async function checked(
  place: Workplace,
  ...words: string[]
): Promise<{ code: number | null; report: FsckReport }> {
  const { code, stdout, stderr } = await lazydisk(['fsck', '--store', place.store, '--json', ...words]);
  if (stdout === '') throw new Error(`exit ${code}: ${stderr}`);
  return { code, report: JSON.parse(stdout) as FsckReport };
}

async function loaded(place: Workplace) {
  const store = await openStore(place.store);
  const image = await loadImage(store, 'app:1', await KeyRing.open([place.key]));
  await store.close();
  const refs = Array.from({ length: image.manifest.storedChunks }, (_, entry) => image.manifest.ref(entry));
  return { image, refs, files: refs.map(({ id }) => chunkFileIn(place.storeDir, id)) };
}

function flip(file: string): void {
  const bytes = readFileSync(file);
  bytes[bytes.length >> 1]! ^= 1;
  writeFileSync(file, bytes);
}

t.test('what it says of a store that is well, and of one that is not', async (t) => {
  const place = await buildWorkplace(t);
  const well = await lazydisk(['fsck', '--store', place.store, '--key', place.key, '--all']);
  t.match(well, { code: 0, stderr: '' });
  t.match(well.stdout, /^names +1, of 1 images; all well$/m);
  t.match(well.stdout, /^chunks +\d+ looked for; all well$/m);
  t.notMatch(well.stdout, /DAMAGED/);
  const few = await lazydisk(['fsck', '--store', place.store, '--seed', '7']);
  t.match(few, { code: 0, stdout: /a sample of 1 %, seed 7/ });

  const { refs, files } = await loaded(place);
  const last = refs.length - 1;
  cpSync(place.storeDir, `${place.dir}/copy`, { recursive: true });
  flip(files[last]!);
  rmSync(files[last - 1]!);
  writeFileSync(`${place.storeDir}/note.txt`, 'hello');
  const bad = await lazydisk(['fsck', '--store', place.store, '--all']);
  t.equal(bad.code, 6);
  t.match(bad.stderr, /^lazydisk: file:.*: 2 damaged or missing; .*--repair.*\n$/);
  t.match(bad.stdout, /^chunks +\d+ looked for; 2 damaged$/m);
  t.match(
    bad.stdout,
    new RegExp(`^${refs[last]!.id.slice(0, 16)}  content  roots/1  none found  app:1 `, 'm'),
  );
  t.match(bad.stdout, new RegExp(`^${refs[last - 1]!.id.slice(0, 16)}  missing  – `, 'm'));
  t.match(bad.stdout, /^foreign +1 objects, 5 B\n +note\.txt$/m);
  t.match(bad.stdout, /^app:1 +2 +not known: no key is given$/m);
  const named = await lazydisk(['fsck', '--store', place.store, '--all', '--key', place.key]);
  t.match(named.stdout, /^app:1 +2 +\/data\/\d/m);
  for (const secret of ['hunter2', 'wrapKey']) t.notOk(named.stdout.includes(secret));

  const from = ['--from', `${place.dir}/copy`];
  const dry = await lazydisk(['fsck', '--store', place.store, '--all', '--repair', '--dry-run', ...from]);
  t.match(dry, { code: 6, stdout: /^would be mended +2 chunks and 0 manifests$/m, stderr: /dry run/ });
  t.notOk(existsSync(files[last - 1]!));
  const mended = await lazydisk(['fsck', '--store', place.store, '--all', '--repair', ...from]);
  t.match(mended, {
    code: 0,
    stderr: '',
    stdout: /^mended +2 chunks and 0 manifests\n +2 from file:.*copy$/m,
  });
  t.match(await checked(place, '--all'), { code: 0, report: { remaining: 0, repair: null } });
  rmSync(`${place.storeDir}/roots/1/manifests`, { recursive: true });
  const unproven = await lazydisk(['fsck', '--store', place.store, '--repair', ...from]);
  t.match(unproven, {
    code: 5,
    stderr: /^lazydisk: file:.*: 1 mended with manifests that no key has opened/,
  });
  t.match(unproven.stdout, /^mended +0 chunks and 1 manifests, 1 unproven$/m);
  t.match(unproven.stdout, /mended from file:.*copy, unproven without its key$/m);
  const exported = ['export', 'app:1', `${place.dir}/disk`, '--store', place.store, '--key', place.key];
  t.ok(await lazydiskJson(exported));
});

/** Incompressible bytes, the same in every run: they determine which files share a chunk. */
function noise(seed: string, sizeBytes: number): Buffer {
  const key = createHash('sha256').update(seed).digest();
  return createCipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(sizeBytes));
}

t.test('the files that each chunk of an image holds, exactly', async (t) => {
  const place = await workplace(t);
  const bodies = new Map<string, Buffer>();
  for (let n = 0; n < 3; n++) bodies.set(`/big/${n}`, noise(`big ${n}`, 700_000 + n * 300_000));
  for (let n = 0; n < 12; n++) bodies.set(`/small/${n}`, noise(`small ${n}`, 3_000 + n * 10_000));
  await makeOciLayout(`${place.dir}/oci`, {
    layers: [
      [
        { name: 'big/', type: 'directory' },
        { name: 'small/', type: 'directory' },
        ...[...bodies].map(([path, body]) => ({ name: path.slice(1), body })),
        { name: 'small/link', type: 'link', target: 'small/5' },
      ],
    ],
  });
  const words = ['build', `oci:${place.dir}/oci`, '--name', 'app:1', '--size', '256M'];
  await lazydiskJson([...words, '--store', place.store, '--key', place.key]);
  const { image, refs, files } = await loaded(place);
  bodies.set('/small/link', bodies.get('/small/5')!);

  // The bytes alone show which blocks of which files are in a chunk.
  const holds = (plain: Buffer, body: Buffer) => {
    for (let at = 0; at < body.length; at += 4096)
      if (plain.includes(body.subarray(at, at + 4096))) return true;
    return false;
  };
  const should = new Map<number, string[]>();
  for (const [entry, { key }] of refs.entries()) {
    const plain = decodeChunk(readFileSync(files[entry]!), key);
    const paths = [...bodies].filter(([, body]) => holds(plain, body)).map(([path]) => path);
    if (paths.length === 0) continue;
    should.set(image.manifest.indexOf(entry), paths.sort());
    if (entry % 2) flip(files[entry]!);
    else rmSync(files[entry]!);
  }
  t.ok(should.size >= 8 && [...should.values()].some((paths) => paths.length > 3));
  const { code, report } = await checked(place, '--all', '--key', place.key);
  t.equal(code, 6);
  t.equal(report.damagedChunks, should.size);
  for (const { hits } of report.damaged) {
    t.equal(hits.length, 1);
    const [{ name, indices, paths }] = hits as [(typeof hits)[number]];
    t.same(
      { name, indices: indices.length, paths },
      { name: 'app:1', indices: 1, paths: should.get(indices[0]!) },
    );
  }
  t.match(report.hitImages, [{ damagedChunks: should.size, morePaths: 0, metadata: false, why: null }]);
  t.same(report.hitImages[0]!.paths, [...bodies.keys()].sort());
});

t.test('words that make no sense', async (t) => {
  const place = await workplace(t);
  const cases = [
    ['--dry-run'],
    ['--from', '/x'],
    ['--cache', '/x'],
    ['--fleet', 'memcached://h:1'],
    ['--sample', '5'],
    ['--sample', '101%'],
    ['--seed', 'x'],
  ];
  const store = await openStore(place.store, { create: true });
  await store.close();
  for (const words of cases) {
    const { code, stderr } = await lazydisk(['fsck', '--store', place.store, ...words]);
    t.equal(code, 2, `${words.join(' ')}: ${stderr}`);
  }
  const missing = await lazydisk([
    'fsck',
    '--store',
    place.store,
    '--repair',
    '--cache',
    `${place.dir}/none`,
  ]);
  t.match(missing, { code: 3, stderr: /no disk cache in/ });
  t.equal((await lazydisk(['fsck', '--store', `${place.dir}/none`])).code, 3);
});

t.test('stopped by SIGINT or killed, it goes on with its state', async (t) => {
  const place = await buildWorkplace(t, 20);
  const { files } = await loaded(place);
  flip(files[5]!);
  const words = ['fsck', '--store', place.store, '--all'];
  const { report: whole } = await checked(place, '--all', '--seed', '0');
  for (const signal of ['SIGINT', 'SIGKILL'] as const) {
    let code: number | null = 0;
    const state = `${place.dir}/state-${signal}`;
    // The process may finish before the signal arrives.
    for (let tries = 0; tries < 10 && !existsSync(state); tries++) {
      const child = spawn(process.execPath, [MAIN, ...words, '--seed', '0', '--resume', state], {
        stdio: 'ignore',
      });
      const ended = once(child, 'exit');
      while (!existsSync(state) && child.exitCode === null) await sleep(1);
      child.kill(signal);
      [code] = (await ended) as [number | null];
    }
    t.equal(code, signal === 'SIGINT' ? 13 : null, signal);
    t.ok(existsSync(state), 'the state is kept');
    const { code: end, report } = await checked(place, '--all', '--seed', '0', '--resume', state);
    t.equal(end, 6);
    t.same(report, whole);
    t.notOk(existsSync(state), 'and is gone when all is done');
  }
});
