/** Image stores: the contract over each kind of object store, and what is specific to a directory. */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { chunkIdOf, SEALED_BYTES_MAX } from '../../../src/format/chunk-id.ts';
import type { ImageDigest } from '../../../src/format/image-digest.ts';
import { newWriterName } from '../../../src/store/objects/writer-dir.ts';
import { openStore } from '../../../src/store/open.ts';
import { manifestKey, meaningOf, stateKey } from '../../../src/store/roots/layout.ts';
import { chunkFileIn, openDirStore, rootDir } from '../../support/dir-store.ts';
import { skipWithoutRoot } from '../../support/tools.ts';
import { storeSuite } from '../store-suite.ts';

const digest = `sha256:${'5'.repeat(64)}` as ImageDigest;
const KEY_ID = 'c'.repeat(16);

t.test('contract over a directory', (t) => {
  storeSuite(t, async (t) => {
    const dir = join(t.testdir(), 'store');
    await (await openDirStore(dir)).close();
    return () => openDirStore(dir);
  });
  t.end();
});

async function newStore(t: Test) {
  const dir = join(t.testdir(), 'store');
  const store = await openDirStore(dir);
  t.teardown(() => store.close());
  const writer = await store.writer();
  const name = async (text: string) => {
    await writer.putManifest(digest, KEY_ID, Buffer.from('manifest'));
    await writer.putReference(text, digest);
  };
  return { dir, store, writer, name, root: rootDir(dir) };
}

t.test('a store is opened by URL or path, and made only when asked', async (t) => {
  const dir = t.testdir({ full: { file: 'something' }, file: 'x' });
  await t.rejects(openStore(`file://${dir}/new`), { code: 'NOT_FOUND' });
  t.notOk(existsSync(`${dir}/new`));
  const store = await openStore(`file://${dir}/new/deeper%20down`, { create: true });
  t.equal(store.url, `file://${dir}/new/deeper down`);
  await store.close();
  for (const url of [`${dir}/new/deeper down`, `file://${dir}/new/deeper%20down`])
    await (await openStore(url)).close();
  await t.rejects(openStore(`${dir}/full`, { create: true }), { code: 'USAGE', message: /not empty/ });
  await t.rejects(openStore(`${dir}/full`), { code: 'NOT_FOUND' });
  await t.rejects(openStore(`${dir}/file`, { create: true }), { code: 'UNAVAILABLE' });
  await t.rejects(openStore('FTP://x/y'), { code: 'UNSUPPORTED' });
  await t.rejects(openStore(''), { code: 'USAGE' });
});

t.test('a store of another layout, or a broken marker, is refused', async (t) => {
  const marker = (text: string) => t.testdir({ 'lazydisk-store.json': text });
  for (const version of [1, 2, 3, 5])
    await t.rejects(openStore(marker(`{"kind":"lazydisk store","version":${version}}`), { create: true }), {
      code: 'UNSUPPORTED',
      message: new RegExp(`layout version ${version}, this program knows 4`),
    });
  const shortPolicy = { graceMs: 5, retentionMs: 5, buildMs: 5, viewMs: 5, settleMs: 5 };
  for (const text of [
    '',
    '{',
    'null',
    '{"kind":"other","version":4}',
    '{"kind":"lazydisk store","version":4}',
    JSON.stringify({ kind: 'lazydisk store', version: 4, policy: shortPolicy }),
  ])
    await t.rejects(openStore(marker(text), { create: true }), { code: 'CORRUPT' });
});

t.test('many processes may make one store at once', async (t) => {
  const dir = join(t.testdir(), 'store');
  const stores = await Promise.all(Array.from({ length: 8 }, () => openStore(dir, { create: true })));
  const writers = await Promise.all(stores.map((store) => store.writer()));
  await Promise.all(writers.map((writer) => writer.putManifest(digest, KEY_ID, Buffer.from('manifest'))));
  await Promise.all(writers.map((writer, at) => writer.putReference(`name-${at}`, digest)));
  t.equal((await stores[0]!.listReferences()).length, 8);
  await Promise.all(stores.map((store) => store.close()));
});

t.test('a manifest that is replaced is gone from all areas', async (t) => {
  const { dir, store, writer } = await newStore(t);
  await writer.putManifest(digest, KEY_ID, Buffer.from('old'));
  await writer.putReference('app', digest);
  const { objects, views } = store.parts;
  for (const area of ['roots/2', 'roots/3', 'trash/2-x'] as const)
    await objects.put(stateKey(area, 'opened'), Buffer.alloc(0));
  for (const area of ['roots/2', 'roots/3', 'trash/2-x'] as const)
    await objects.put(manifestKey(area, digest, KEY_ID), Buffer.from('old'));
  const other = 'e'.repeat(16);
  await objects.put(manifestKey('roots/1', digest, other), Buffer.from('old'));
  await views.newerThan(0);
  await (await store.writer()).replaceManifest(digest, KEY_ID, Buffer.from('new'));
  const manifests = readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter(({ name }) => name === KEY_ID)
    .map(({ parentPath, name }) => [
      parentPath.slice(dir.length + 1, dir.length + 8),
      readFileSync(join(parentPath, name), 'utf8'),
    ])
    .sort();
  t.same(manifests, [
    ['roots/2', 'new'],
    ['roots/3', 'new'],
  ]);
  t.equal(String(await store.getManifest(digest, other)), 'old', "another key's stays");
  await (await store.writer()).replaceManifest(digest, KEY_ID, Buffer.from('new'));
  t.equal(String(await store.getManifest(digest, KEY_ID)), 'new');
  await t.rejects(
    (await store.writer()).replaceManifest(`sha256:${'6'.repeat(64)}`, KEY_ID, Buffer.alloc(1)),
    {
      code: 'NOT_FOUND',
    },
  );
  // Closing waits until the read from the retired root is recorded; only then may the directory go.
  await store.close();
});

t.test('files lie where FORMAT.md says, and nothing else does', async (t) => {
  const { dir, store, writer } = await newStore(t);
  const id = chunkIdOf(Buffer.alloc(32, 0xab));
  await writer.putChunk(id, Buffer.from('sealed'));
  await writer.putManifest(digest, KEY_ID, Buffer.from('manifest'));
  await writer.putReference('team/app:v1', digest);
  await store.close();
  const files = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map((file) => join(file.parentPath, file.name).slice(dir.length + 1)).sort();
  t.match(paths.shift(), new RegExp(`^history/team%2Fapp%3Av1/\\d+-[0-9a-f]{8}-${'5'.repeat(64)}$`));
  t.same(paths, [
    'lazydisk-store.json',
    `roots/1/chunks/ab/ab/${id}`,
    `roots/1/manifests/sha256/${'5'.repeat(64)}/${KEY_ID}`,
    'roots/1/references/team%2Fapp%3Av1.json',
    'state/index.json',
    'state/roots/1/opened',
  ]);
  const reference = readFileSync(join(dir, 'roots/1/references/team%2Fapp%3Av1.json'), 'utf8');
  t.match(JSON.parse(reference), { version: 1, name: 'team/app:v1', digest });
  t.same(readdirSync(join(dir, 'tmp')), [], 'no temporary file stays');
  for (const path of [...paths, `history/team%2Fapp%3Av1/1-00000000-none`]) t.ok(meaningOf(path), path);
  await t.rejects(writer.putChunk(id, Buffer.from('x')), { code: 'INTERNAL' }, 'closed is closed');
});

t.test('what no lazydisk wrote has no meaning', async (t) => {
  const hex = 'ab'.repeat(32);
  for (const key of [
    'README',
    `chunks/ab/ab/${hex}`,
    `roots/0/chunks/ab/ab/${hex}`,
    `roots/1/chunks/cd/ab/${hex}`,
    `roots/1/chunks/ab/ab/${hex}.tmp`,
    `roots/1/chunks/ab/ab/x/${hex}`,
    `roots/1/manifests/sha256/${hex}/KEY`,
    'roots/1/references/x.json',
    'roots/1/other/x',
    'state/roots/1/finished',
    'state/roots/1/opened/x',
    'trash/1/chunks',
    'history/x/1-2-3',
    'journal/x',
    'keys/x.json',
    'lazydisk-store.json.bak',
  ])
    t.equal(meaningOf(key), undefined, key);
});

t.test('a chunk that was cut short is replaced, one that grew is not read whole', async (t) => {
  const { dir, store, writer } = await newStore(t);
  const [id, sealed] = [chunkIdOf(randomBytes(32)), randomBytes(2000)];
  await writer.putChunk(id, sealed);
  truncateSync(chunkFileIn(dir, id), 0);
  t.equal(await writer.hasChunk(id, sealed.length), false);
  await writer.putChunk(id, sealed);
  t.ok((await store.getChunk(id))?.equals(sealed));
  truncateSync(chunkFileIn(dir, id), 2 ** 33);
  t.equal((await store.getChunk(id))?.length, SEALED_BYTES_MAX + 1);
});

t.test('a broken reference is CORRUPT and named; other files are none', async (t) => {
  const { root, store, name } = await newStore(t);
  await name('good');
  const dir = join(root, 'references');
  for (const file of ['.swp', 'no-suffix', 'good%3Alatest.json.bak', '%zz.json', '..%2Fx%3A1.json'])
    writeFileSync(join(dir, file), 'x');
  t.equal((await store.listReferences()).length, 1);
  const stray = readFileSync(join(dir, 'good%3Alatest.json'), 'utf8');
  for (const text of [
    '',
    '{',
    'null',
    '{}',
    stray,
    stray.replace('good', 'bad').replace(digest, 'sha256:1'),
  ]) {
    writeFileSync(join(dir, 'bad%3Alatest.json'), text);
    await t.rejects(store.getReference('bad'), { code: 'CORRUPT', message: /bad%3Alatest\.json/ });
    t.ok(await store.getReference('good'), 'and does not hurt others');
  }
});

t.test('what cannot be a name or id never becomes a path', async (t) => {
  const { store, writer } = await newStore(t);
  const bad = '../../../etc/passwd'.padEnd(64, '0') as ReturnType<typeof chunkIdOf>;
  const attempts: (() => Promise<unknown>)[] = [
    () => store.getChunk(bad),
    () => writer.hasChunk(bad),
    () => writer.putChunk(bad, Buffer.alloc(1)),
    () => store.getManifest('sha256:../x' as ImageDigest, 'a'.repeat(16)),
    () => writer.putManifest(digest, '../../x', Buffer.alloc(1)),
    () => writer.putReference('a', 'sha256:x' as ImageDigest),
  ];
  for (const attempt of attempts) await t.rejects(attempt(), { code: 'INTERNAL' });
});

t.test('what the file system refuses is UNAVAILABLE with its cause', async (t) => {
  const { root, store, writer, name } = await newStore(t);
  const id = chunkIdOf(randomBytes(32));
  await name('other');
  writeFileSync(join(root, 'chunks'), 'a file where a directory should be');
  await t.rejects(writer.putChunk(id, Buffer.alloc(10)), {
    code: 'UNAVAILABLE',
    message: /chunks\/.*(EEXIST|ENOTDIR)/,
  });
  await t.resolves(name('another'), 'and other puts go on');
  symlinkSync('loop%3A1.json', join(root, 'references', 'loop%3A1.json'));
  await t.rejects(store.getReference('loop:1'), { code: 'UNAVAILABLE', message: /ELOOP/ });
});

t.test('the leftovers of dead writers go, the work of live ones stays', async (t) => {
  const { dir } = await newStore(t);
  const tmp = join(dir, 'tmp');
  const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  const [host, pid, start] = (await newWriterName()).split('.');
  const startOf = (id: number) => readFileSync(`/proc/${id}/stat`, 'latin1').split(') ')[1]!.split(' ')[19];
  t.equal(start, startOf(process.pid));
  const names = {
    alive: `${host}.${child.pid}.${startOf(child.pid!)}.01`,
    own: `${host}.${pid}.${start}.02`,
    recycledId: `${host}.${child.pid}.12345.03`,
    dead: `${host}.4194304.12345.04`,
    foreignFresh: 'other-boot.1.1.05',
    foreignOld: 'other-boot.1.1.06',
  };
  for (const name of Object.values(names)) {
    mkdirSync(join(tmp, name), { recursive: true });
    writeFileSync(join(tmp, name, '0'), 'half a chunk');
  }
  const longAgo = Date.now() / 1000 - 25 * 60 * 60;
  utimesSync(join(tmp, names.foreignOld), longAgo, longAgo);

  const other = await openDirStore(dir);
  await (await other.writer()).putManifest(digest, KEY_ID, Buffer.from('manifest'));
  await other.close();
  const left = new Set(readdirSync(tmp));
  for (const name of ['alive', 'own', 'foreignFresh'] as const) t.equal(left.has(names[name]), true, name);
  for (const name of ['recycledId', 'dead', 'foreignOld'] as const)
    t.equal(left.has(names[name]), false, name);
});

t.test('a full disk is NO_SPACE, and leaves nothing half', async (t) => {
  if (skipWithoutRoot(t, 'mount a small tmpfs')) return;
  const dir = t.testdir({ mount: {} });
  const run = async (...words: [string, ...string[]]) => {
    const [code] = await once(spawn(words[0], words.slice(1), { stdio: 'inherit' }), 'exit');
    t.equal(code, 0, words.join(' '));
  };
  await run('mount', '-t', 'tmpfs', '-o', 'size=1m', 'lazydisk-test', join(dir, 'mount'));
  try {
    const store = await openDirStore(join(dir, 'mount', 'store'));
    const writer = await store.writer();
    const chunks = Array.from(
      { length: 10 },
      () => [chunkIdOf(randomBytes(32)), randomBytes(300_000)] as const,
    );
    const results = await Promise.allSettled(chunks.map(([id, sealed]) => writer.putChunk(id, sealed)));
    const failed = results.filter((result) => result.status === 'rejected');
    t.ok(failed.length >= 7 && failed.length < 10, `${failed.length} of 10 do not fit`);
    for (const { reason } of failed) t.match(reason, { code: 'NO_SPACE' });
    for (const [at, [id, sealed]] of chunks.entries()) {
      const there = await store.getChunk(id);
      if (results[at]!.status === 'fulfilled') t.ok(there?.equals(sealed));
      else t.equal(there, undefined);
    }
    await store.close();
    t.same(readdirSync(join(dir, 'mount', 'store', 'tmp')), []);
  } finally {
    await run('umount', join(dir, 'mount'));
  }
});

t.test('reading a store writes nothing', async (t) => {
  const { dir, store, name } = await newStore(t);
  await name('x');
  await store.close();
  const before = readdirSync(dir, { recursive: true });
  const reader = await openStore(dir);
  t.equal((await reader.listReferences()).length, 1);
  t.equal(await reader.getChunk(chunkIdOf(randomBytes(32))), undefined);
  t.same(readdirSync(dir, { recursive: true }), before);
  await reader.close();
  t.same(readdirSync(dir, { recursive: true }), before);
});
