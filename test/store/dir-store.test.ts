/** The directory store: the contract of all stores, and what is special about files. */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { chunkIdOf, SEALED_BYTES_MAX } from '../../src/format/chunk-id.ts';
import { DirStore } from '../../src/store/dir-store.ts';
import { openStore } from '../../src/store/open.ts';
import type { ImageDigest } from '../../src/store/store.ts';
import { newWriterName } from '../../src/store/writer-dir.ts';
import { storeSuite } from './store-suite.ts';

const digest = `sha256:${'5'.repeat(64)}` as ImageDigest;

t.test('contract', (t) => {
  storeSuite(t, async (t) => {
    const dir = join(t.testdir(), 'store');
    await (await DirStore.open(dir, { create: true })).close();
    return () => DirStore.open(dir);
  });
  t.end();
});

async function newStore(t: Test): Promise<DirStore> {
  const store = await DirStore.open(join(t.testdir(), 'store'), { create: true });
  t.teardown(() => store.close());
  return store;
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
  for (const url of ['s3://bucket/x', 'https://example.org/x', 'FTP://x/y'])
    await t.rejects(openStore(url), { code: 'UNSUPPORTED' });
  await t.rejects(openStore(''), { code: 'USAGE' });
});

t.test('a store of a later layout, or a broken marker, is refused', async (t) => {
  const marker = (text: string) => t.testdir({ 'lazydisk-store.json': text });
  await t.rejects(openStore(marker('{"kind":"lazydisk store","version":2}'), { create: true }), {
    code: 'UNSUPPORTED',
  });
  for (const text of ['', '{', 'null', '{"kind":"other","version":1}'])
    await t.rejects(openStore(marker(text), { create: true }), { code: 'CORRUPT' });
});

t.test('many processes may make one store at once', async (t) => {
  const dir = join(t.testdir(), 'store');
  const stores = await Promise.all(Array.from({ length: 8 }, () => openStore(dir, { create: true })));
  await Promise.all(stores.map((store, at) => store.putReference(`name-${at}`, digest)));
  t.equal((await stores[0]!.listReferences()).length, 8);
  await Promise.all(stores.map((store) => store.close()));
});

t.test('files lie where FORMAT.md says, and nothing else does', async (t) => {
  const store = await newStore(t);
  const id = chunkIdOf(Buffer.alloc(32, 0xab));
  await store.putChunk(id, Buffer.from('sealed'));
  await store.putManifest(digest, 'c'.repeat(16), Buffer.from('manifest'));
  await store.putReference('team/app:v1', digest);
  await store.close();
  const files = readdirSync(store.path, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  );
  t.same(files.map((file) => join(file.parentPath, file.name).slice(store.path.length + 1)).sort(), [
    `chunks/ab/ab/${id}`,
    'lazydisk-store.json',
    `manifests/sha256/${'5'.repeat(64)}/${'c'.repeat(16)}`,
    'references/team%2Fapp%3Av1.json',
  ]);
  t.match(JSON.parse(readFileSync(join(store.path, 'references/team%2Fapp%3Av1.json'), 'utf8')), {
    version: 1,
    name: 'team/app:v1',
    digest,
  });
  t.same(readdirSync(join(store.path, 'tmp')), [], 'no temporary file stays');
  await t.rejects(store.putChunk(id, Buffer.from('x')), { code: 'INTERNAL' }, 'closed is closed');
});

t.test('a chunk that was cut short is replaced, one that grew is not read whole', async (t) => {
  const store = await newStore(t);
  const [id, sealed] = [chunkIdOf(randomBytes(32)), randomBytes(2000)];
  await store.putChunk(id, sealed);
  truncateSync(store.chunkPath(id), 0);
  t.equal(await store.hasChunk(id, sealed.length), false);
  await store.putChunk(id, sealed);
  t.ok((await store.getChunk(id))?.equals(sealed));
  truncateSync(store.chunkPath(id), 2 ** 33);
  t.equal((await store.getChunk(id))?.length, SEALED_BYTES_MAX + 1);
});

t.test('a broken reference is CORRUPT and named; other files are none', async (t) => {
  const store = await newStore(t);
  await store.putReference('good', digest);
  const dir = join(store.path, 'references');
  for (const name of ['.swp', 'no-suffix', 'good%3Alatest.json.bak', '%zz.json', '..%2Fx%3A1.json'])
    writeFileSync(join(dir, name), 'x');
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
  const store = await newStore(t);
  const bad = '../../../etc/passwd'.padEnd(64, '0') as ReturnType<typeof chunkIdOf>;
  const attempts: (() => Promise<unknown>)[] = [
    () => store.getChunk(bad),
    () => store.hasChunk(bad),
    () => store.putChunk(bad, Buffer.alloc(1)),
    () => store.getManifest('sha256:../x' as ImageDigest, 'a'.repeat(16)),
    () => store.putManifest(digest, '../../x', Buffer.alloc(1)),
    () => store.putReference('a', 'sha256:x'),
  ];
  for (const attempt of attempts) await t.rejects(attempt(), { code: 'INTERNAL' });
});

t.test('what the file system refuses is UNAVAILABLE with its cause', async (t) => {
  const store = await newStore(t);
  const id = chunkIdOf(randomBytes(32));
  writeFileSync(join(store.path, 'chunks'), 'a file where a directory should be');
  await t.rejects(store.putChunk(id, Buffer.alloc(10)), {
    code: 'UNAVAILABLE',
    message: /chunk .*(EEXIST|ENOTDIR)/,
  });
  await t.resolves(store.putReference('other', digest), 'and other puts go on');
  mkdirSync(join(store.path, 'references', 'dir%3A1.json'));
  await t.rejects(store.getReference('dir:1'), { code: 'UNAVAILABLE', message: /EISDIR/ });
});

t.test('the leftovers of dead writers go, the work of live ones stays', async (t) => {
  const store = await newStore(t);
  const tmp = join(store.path, 'tmp');
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

  const writer = await DirStore.open(store.path);
  await writer.putReference('x', digest);
  await writer.close();
  const left = new Set(readdirSync(tmp));
  for (const name of ['alive', 'own', 'foreignFresh'] as const) t.equal(left.has(names[name]), true, name);
  for (const name of ['recycledId', 'dead', 'foreignOld'] as const)
    t.equal(left.has(names[name]), false, name);
});

t.test('a full disk is NO_SPACE, and leaves nothing half', async (t) => {
  if (process.getuid?.() !== 0) return t.comment('skipped: needs root, to mount a small tmpfs');
  const dir = t.testdir({ mount: {} });
  const run = async (...words: [string, ...string[]]) => {
    const [code] = await once(spawn(words[0], words.slice(1), { stdio: 'inherit' }), 'exit');
    t.equal(code, 0, words.join(' '));
  };
  await run('mount', '-t', 'tmpfs', '-o', 'size=1m', 'lazydisk-test', join(dir, 'mount'));
  try {
    const store = await DirStore.open(join(dir, 'mount', 'store'), { create: true });
    const chunks = Array.from(
      { length: 10 },
      () => [chunkIdOf(randomBytes(32)), randomBytes(300_000)] as const,
    );
    const results = await Promise.allSettled(chunks.map(([id, sealed]) => store.putChunk(id, sealed)));
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
  const writer = await newStore(t);
  await writer.putReference('x', digest);
  await writer.close();
  const before = readdirSync(writer.path, { recursive: true });
  const reader = await DirStore.open(writer.path);
  t.equal((await reader.listReferences()).length, 1);
  t.equal(await reader.getChunk(chunkIdOf(randomBytes(32))), undefined);
  t.same(readdirSync(writer.path, { recursive: true }), before);
  await reader.close();
  t.same(readdirSync(writer.path, { recursive: true }), before);
});
