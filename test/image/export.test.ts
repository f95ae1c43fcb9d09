/** An export writes the whole disk, sparse, or nothing at all, and never a wrong byte, whatever the store holds. */
import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { exportImage } from '../../src/image/export.ts';
import { newKeyFile } from '../../src/keys/key-file.ts';
import { chunkFileIn, openDirStore } from '../support/dir-store.ts';
import { putDisk } from '../support/stored-disk.ts';
import { skipWithout, skipWithoutRoot } from '../support/tools.ts';

const CHILD = join(import.meta.dirname, 'export-child.ts');

/** 40 chunks: text, noise, one chunk twice, and mostly zeroes. */
function sampleDisk(): Buffer {
  const disk = Buffer.alloc(40 * CHUNK_BYTES);
  disk.fill('some text\n', 0, 2 * CHUNK_BYTES + 1234);
  randomBytes(3 * CHUNK_BYTES).copy(disk, 7 * CHUNK_BYTES);
  disk.copy(disk, 20 * CHUNK_BYTES, 7 * CHUNK_BYTES, 8 * CHUNK_BYTES);
  disk.write('last', disk.length - 4);
  return disk;
}

async function setUp(t: Test, disk = sampleDisk()) {
  const dir = t.testdir({ out: {} });
  const store = await openDirStore(join(dir, 'store'));
  t.teardown(() => store.close());
  const key = await newKeyFile(join(dir, 'key'));
  const image = await putDisk(store, key, 'disk', disk);
  return { dir, outDir: join(dir, 'out'), store, image, disk };
}

t.test('a new file holds the disk, and takes space only for nonzero chunks', async (t) => {
  const { outDir, store, image, disk } = await setUp(t);
  const out = join(outDir, 'disk.img');
  const told: number[] = [];
  const report = await exportImage({
    image,
    store,
    out,
    onProgress: ({ doneBytes }) => told.push(doneBytes),
  });
  t.ok(readFileSync(out).equals(disk));
  t.match(report, { diskBytes: disk.length, dataBytes: image.manifest.storedChunks * CHUNK_BYTES });
  t.ok(statSync(out).blocks * 512 < 9 * CHUNK_BYTES, 'sparse');
  t.same(readdirSync(outDir), ['disk.img'], 'no other file');
  t.equal(told.at(-1), disk.length);
  t.same(
    told,
    told.toSorted((a, b) => a - b),
  );
});

t.test('an empty disk becomes a file without blocks', async (t) => {
  const { outDir, store, image } = await setUp(t, Buffer.alloc(4 * CHUNK_BYTES));
  await exportImage({ image, store, out: join(outDir, 'x') });
  t.equal(statSync(join(outDir, 'x')).size, 4 * CHUNK_BYTES);
  t.equal(statSync(join(outDir, 'x')).blocks, 0);
});

t.test('an existing file is replaced atomically, also through a symlink', async (t) => {
  const { outDir, store, image, disk } = await setUp(t);
  writeFileSync(join(outDir, 'old'), 'something longer, or shorter');
  symlinkSync('old', join(outDir, 'link'));
  await exportImage({ image, store, out: join(outDir, 'link') });
  t.ok(readFileSync(join(outDir, 'old')).equals(disk));
  t.same(readdirSync(outDir).sort(), ['link', 'old']);
});

t.test('standard output receives every byte in order', async (t) => {
  const { dir, disk } = await setUp(t);
  const child = spawn(process.execPath, [CHILD, join(dir, 'store'), join(dir, 'key'), 'disk', '-'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const hash = createHash('sha256');
  for await (const part of child.stdout) hash.update(part);
  t.equal(hash.digest('hex'), createHash('sha256').update(disk).digest('hex'));
});

t.test('if the reader goes away, the export fails with an error instead of crashing', async (t) => {
  const { dir } = await setUp(t, Buffer.alloc(64 * CHUNK_BYTES, 'x'));
  const words = [process.execPath, CHILD, join(dir, 'store'), join(dir, 'key'), 'disk', '-'];
  const { stderr } = spawnSync('sh', ['-c', '"$@" | head -c 1000 > /dev/null', 'sh', ...words], {
    encoding: 'utf8',
  });
  t.equal(stderr.trim(), 'UNAVAILABLE');
});

t.test('a FIFO is written to and not replaced', async (t) => {
  if (skipWithout(t, 'mkfifo')) return;
  const { outDir, store, image, disk } = await setUp(t);
  const fifo = join(outDir, 'fifo');
  spawnSync('mkfifo', [fifo]);
  const reader = spawn('cat', [fifo], { stdio: ['ignore', 'pipe', 'inherit'] });
  const parts: Buffer[] = [];
  reader.stdout.on('data', (part: Buffer) => parts.push(part));
  await Promise.all([exportImage({ image, store, out: fifo }), once(reader, 'close')]);
  t.ok(Buffer.concat(parts).equals(disk));
  t.ok(statSync(fifo).isFIFO());
});

t.test('a bad chunk fails the export with its id, and leaves an existing file unchanged', async (t) => {
  const { dir, outDir, store, image } = await setUp(t);
  const out = join(outDir, 'disk.img');
  writeFileSync(out, 'as it was');
  const entry = image.manifest.entryOf(8);
  const { id } = image.manifest.ref(entry);
  const path = chunkFileIn(join(dir, 'store'), id);
  const good = readFileSync(path);
  const flipped = Buffer.from(good);
  flipped[1000]! ^= 4;
  const cases: Record<string, [string, () => void]> = {
    flipped: ['CORRUPT', () => writeFileSync(path, flipped)],
    truncated: ['CORRUPT', () => truncateSync(path, 1000)],
    empty: ['CORRUPT', () => truncateSync(path, 0)],
    longer: ['CORRUPT', () => writeFileSync(path, Buffer.concat([good, Buffer.of(0)]))],
    huge: ['CORRUPT', () => truncateSync(path, 2 ** 32)],
    swapped: ['CORRUPT', () => copyFileSync(chunkFileIn(join(dir, 'store'), image.manifest.ref(0).id), path)],
    missing: ['NOT_FOUND', () => rmSync(path)],
    unreadable: [
      'UNAVAILABLE',
      () => {
        rmSync(path);
        symlinkSync(path, path);
      },
    ],
  };
  for (const [name, [code, damage]] of Object.entries(cases)) {
    damage();
    await t.rejects(exportImage({ image, store, out }), { code, message: new RegExp(id) }, name);
    t.equal(readFileSync(out, 'utf8'), 'as it was');
    t.same(readdirSync(outDir), ['disk.img']);
    rmSync(path, { recursive: true, force: true });
    writeFileSync(path, good);
  }
  await exportImage({ image, store, out });
});

t.test('a cancelled export leaves no file', async (t) => {
  const { outDir, store, image } = await setUp(t);
  const controller = new AbortController();
  const onProgress = () => controller.abort();
  const out = join(outDir, 'x');
  await t.rejects(exportImage({ image, store, out, onProgress, signal: controller.signal }), {
    code: 'ABORTED',
  });
  t.same(readdirSync(outDir), []);
});

t.test('an output that cannot be written fails with the cause', async (t) => {
  const { outDir, store, image } = await setUp(t);
  await t.rejects(exportImage({ image, store, out: join(outDir, 'no', 'dir') }), {
    code: 'UNAVAILABLE',
    message: /ENOENT/,
  });
  await t.rejects(exportImage({ image, store, out: outDir }), { code: 'USAGE' });
  if (process.getuid?.() === 0) return t.comment('skipped: root can write to any directory');
  chmodSync(outDir, 0o555);
  await t.rejects(exportImage({ image, store, out: join(outDir, 'x') }), {
    code: 'UNAVAILABLE',
    message: /EACCES/,
  });
});

t.test('a full disk fails the export with NO_SPACE', async (t) => {
  if (skipWithoutRoot(t, 'mount a small tmpfs')) return;
  const { outDir, store, image } = await setUp(t);
  t.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'lazydisk-test', outDir]).status, 0);
  try {
    await t.rejects(exportImage({ image, store, out: join(outDir, 'x') }), { code: 'NO_SPACE' });
    t.same(readdirSync(outDir), []);
  } finally {
    t.equal(spawnSync('umount', [outDir]).status, 0);
  }
});
